//! A peer's certificates, from anybody who can reach a proxy; and the CA's
//! answer, as PEM.
//!
//! The bytes are a sequence of certificates in DER, each behind its length in
//! two bytes, as TLS carries them.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_pki::bundle::TrustBundle;
use bulkhead_pki::svid::SvidChain;
use bulkhead_pki::verifier::{PeerVerifier, Role};
use libfuzzer_sys::fuzz_target;

/// The root of the mesh, whose key nobody has: no input can be a member.
const ROOT: &str = include_str!("svid_chain/root.pem");

static VERIFIER: LazyLock<PeerVerifier> = LazyLock::new(|| {
    let trust_domain = "cluster.local".parse().expect("a trust domain");
    let bundle = TrustBundle::from_pem(trust_domain, ROOT).expect("a root");
    PeerVerifier::any_member(Arc::new(bundle))
});

/// When the certificates among the seeds are valid.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(chain) = SvidChain::from_pem(text)
    {
        assert_eq!(SvidChain::from_pem(&chain.to_pem()).as_ref(), Ok(&chain));
    }
    let certificates = certificates(bytes);
    if let Ok(chain) = SvidChain::from_der(certificates.clone()) {
        // What was accepted can be given on.
        assert_eq!(SvidChain::from_der(chain.to_der()).as_ref(), Ok(&chain));
    }
    if let Some((leaf, intermediates)) = certificates.split_first() {
        for role in [Role::Client, Role::Server] {
            if let Ok(peer) = VERIFIER.verify(leaf, intermediates, role, now()) {
                assert_eq!(peer.id().trust_domain(), "cluster.local");
            }
        }
    }
});

fn certificates(mut bytes: &[u8]) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    let mut certificates = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (certificate, rest) = rest.split_at(length.min(rest.len()));
        certificates.push(certificate.to_vec().into());
        bytes = rest;
    }
    certificates
}
