//! The TLS that Bulkhead speaks, in one place: version 1.3, and a key exchange
//! that a quantum computer of tomorrow cannot undo, offered first.

use std::sync::{Arc, LazyLock};

use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::key::{KeyError, PrivateKey};

pub(crate) static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// AWS-LC with the hybrid key exchange first. The order is written out because
/// rustls' own depends on which features a build happens to enable.
///
/// AES-128 goes before AES-256, as browsers and Go have it: its hash is SHA-256,
/// for which processors have instructions, and hashing by SHA-384 was a tenth of
/// what a handshake took.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut usual = aws_lc_rs::default_provider();
    usual
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..usual
    })
});

/// The signatures that are accepted, in certificates and in handshakes.
pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    PROVIDER.signature_verification_algorithms
}

/// A chain and its key, in the form that rustls presents.
pub(crate) fn resolver(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let pkcs8 = key.to_der()?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
    let signing = aws_lc_rs::sign::any_supported_type(&der)?;
    Ok(Arc::new(CertifiedKey::new(chain, signing).into()))
}

pub(crate) fn alpn_protocols<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Vec<u8>> {
    names
        .into_iter()
        .map(|name| name.as_bytes().to_vec())
        .collect()
}

/// Setting up TLS failed, before anything was sent.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("setting up TLS failed: {0}")]
    Rustls(#[from] rustls::Error),
    #[error(transparent)]
    Key(#[from] KeyError),
}
