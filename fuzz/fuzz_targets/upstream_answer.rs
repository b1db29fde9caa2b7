//! What a CA above ours answers, or what lies in the files of one: certificates
//! in PEM, in whatever order.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::elsewhere::{Signed, Span};
use bulkhead_pki::key::{PrivateKey, PublicKey};
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_pki::svid::SvidChain;
use libfuzzer_sys::fuzz_target;

/// The longest answer that the CA reads, in bytes.
const MAX_PEM: usize = 256 * 1024;

/// The root that is trusted, and the one leaf that was ever signed below it: no
/// key of theirs is left, so that nothing else can be accepted.
const ROOT: &str = include_str!("upstream_answer/root.pem");
const LEAF: &str = include_str!("upstream_answer/leaf.pem");

struct Known {
    trust_domain: TrustDomain,
    id: SpiffeId,
    roots: Roots,
    leaf: Certificate,
    key: PublicKey,
    own: PrivateKey,
    span: Span,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let trust_domain: TrustDomain = "cluster.local".parse().expect("a trust domain");
    let mut leaves = Certificate::all_from_pem(LEAF, MAX_PEM).expect("a certificate");
    let leaf = leaves.remove(0);
    Known {
        id: SpiffeId::workload(&trust_domain, "shop", "cart").expect("a name"),
        roots: Roots::from_pem(ROOT).expect("a root"),
        key: leaf.public_key().expect("a key that is accepted"),
        own: PrivateKey::generate().expect("a key"),
        span: Span {
            now: now(),
            lifetime: Duration::from_secs(30 * 365 * 24 * 3600),
        },
        leaf,
        trust_domain,
    }
});

/// When the certificates among the seeds are valid.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fuzz_target!(|text: &str| {
    let known = &*KNOWN;
    let Ok(certificates) = Certificate::all_from_pem(text, MAX_PEM) else {
        return;
    };
    let wanted = (&known.id, &known.key);
    let signed = Signed::<SvidChain>::svid(
        certificates.clone(),
        &known.roots,
        &known.trust_domain,
        wanted,
        known.span,
    );
    if let Ok(signed) = signed {
        assert_eq!(signed.certificate.leaf(), &known.leaf);
        assert_eq!(signed.root, known.roots.certificates()[0]);
    }
    // Where nobody named the roots, those of the answer are believed.
    let own_roots = certificates.iter().filter(|part| part.is_self_signed());
    if let Ok(roots) = Roots::new(own_roots.cloned()) {
        let signed = Signed::<SvidChain>::svid(
            certificates.clone(),
            &roots,
            &known.trust_domain,
            wanted,
            known.span,
        );
        if let Ok(signed) = signed {
            assert_eq!(signed.certificate.id(), &known.id);
            assert!(signed.certificate.is_for(&known.key));
            assert!(signed.certificate.not_after() <= signed.root.not_after());
            assert!(roots.certificates().contains(&signed.root));
        }
    }
    // Nobody has a certificate for a key that was made just now.
    let name = ServerName::parse("ca.test").expect("a name");
    let key = known.own.clone();
    let serving = Signed::<ServingCertificate>::serving(
        certificates.clone(),
        &known.roots,
        &[name],
        key.clone(),
        known.span,
    );
    assert!(serving.is_err());
    let now = known.span.now;
    let signing =
        Authority::from_elsewhere(&known.trust_domain, certificates, key, &known.roots, now);
    assert!(signing.is_err());
    let _ = PrivateKey::from_pem(text);
});
