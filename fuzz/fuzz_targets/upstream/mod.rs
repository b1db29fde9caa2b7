//! A company whose CA signed one leaf for the mesh, and what may come of an answer
//! of that CA. No key of theirs is left, so that nothing else can be accepted.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_ca::fuzzing;
use bulkhead_ca::upstream::UpstreamError;
use bulkhead_ca::upstream::answer::Answer;
use bulkhead_ca::vet::VettedCsr;
use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::csr::ParsedCsr;
use bulkhead_pki::elsewhere::Span;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;

/// What no message may repeat: a token or a key that lies beside what is read.
pub const SECRET: &str = "hvs.CAESIJ7xQ0u3mT9wYk2n";

/// More than any message has, in bytes: whoever answers decides about a part of it.
const LONGEST: usize = 4096;

const ROOT: &str = include_str!("root.pem");
const LEAF: &str = include_str!("leaf.pem");
const CSR: &str = include_str!("leaf.csr");

struct Company {
    trust_domain: TrustDomain,
    roots: Roots,
    leaf: Certificate,
    request: VettedCsr,
    /// For which nobody signed anything.
    key: PrivateKey,
    span: Span,
}

static COMPANY: LazyLock<Company> = LazyLock::new(|| {
    let trust_domain: TrustDomain = "cluster.local".parse().expect("a trust domain");
    let id = SpiffeId::workload(&trust_domain, "shop", "cart").expect("a name");
    let csr = ParsedCsr::from_pem(CSR).expect("a request");
    let mut leaves = Certificate::all_from_pem(LEAF, LONGEST).expect("a certificate");
    Company {
        request: fuzzing::vetted(id, csr),
        roots: Roots::from_pem(ROOT).expect("a root"),
        leaf: leaves.remove(0),
        key: PrivateKey::generate().expect("a key"),
        span: Span {
            now: now(),
            lifetime: Duration::from_secs(30 * 365 * 24 * 3600),
        },
        trust_domain,
    }
});

/// When the company's certificates are valid.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Judges an answer, which `read` reads, as the CA does.
pub fn judge(read: impl Fn(Option<&Roots>) -> Result<Answer, UpstreamError>) {
    let company = &*COMPANY;
    if let Some(answer) = told(read(Some(&company.roots))) {
        if let Some(signed) = told(leaf(answer.clone())) {
            assert_eq!(signed.0, company.leaf);
            assert_eq!(signed.1, company.roots.certificates()[0]);
        }
        nothing_for_a_new_key(answer);
    }
    // Where people named no roots, those of the answer are believed.
    if let Some(answer) = told(read(None)) {
        if let Some((leaf, root)) = told(leaf(answer.clone())) {
            assert!(root.is_self_signed());
            assert!(leaf.not_after() <= root.not_after());
        }
        nothing_for_a_new_key(answer);
    }
}

/// The leaf of an answer and the root that it ends in, where it is what was asked for.
fn leaf(answer: Answer) -> Result<(Certificate, Certificate), UpstreamError> {
    let company = &*COMPANY;
    let request = &company.request;
    let signed = answer.into_leaf(request, &company.trust_domain, company.span)?;
    let chain = signed.certificate;
    assert_eq!(chain.id(), request.id());
    assert!(chain.is_for(request.public_key()));
    Ok((chain.leaf().clone(), signed.root))
}

fn nothing_for_a_new_key(answer: Answer) {
    let Company {
        trust_domain,
        key,
        span,
        ..
    } = &*COMPANY;
    let intermediate = answer
        .clone()
        .into_intermediate(key, trust_domain, span.now);
    assert!(told(intermediate).is_none());
    let name = ServerName::parse("ca.test").expect("a name");
    let serving = answer.into_serving(&[name], key.clone(), *span);
    assert!(told(serving).is_none());
}

/// What came of it; why nothing did can be shown to anybody.
pub fn told<T>(outcome: Result<T, UpstreamError>) -> Option<T> {
    match outcome {
        Ok(outcome) => Some(outcome),
        Err(error) => {
            can_be_shown(&error.to_string());
            None
        }
    }
}

/// It goes into the log, and into the status of an object.
pub fn can_be_shown(message: &str) {
    assert!(message.len() <= LONGEST, "{} bytes", message.len());
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(!message.contains(SECRET), "{message:?}");
}
