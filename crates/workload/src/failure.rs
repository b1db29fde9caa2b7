//! Why there is no new certificate, or no new trust bundle.

use std::time::{Duration, SystemTime};

use bulkhead_pki::bundle::BundleError;
use bulkhead_pki::csr::CreateError;
use bulkhead_pki::identity::IdentityError;
use bulkhead_pki::key::KeyError;
use bulkhead_pki::serving::TlsError;
use bulkhead_pki::svid::SvidError;
use bulkhead_pki::verifier::PeerError;

use crate::authority::AuthorityError;

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewalError {
    #[error("making a key: {0}")]
    Key(#[from] KeyError),
    #[error(transparent)]
    Csr(#[from] CreateError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("what the CA gave is no certificate: {error}")]
    Chain {
        error: SvidError,
        authority_now: Option<SystemTime>,
    },
    #[error("the CA gave no trust roots: {error}")]
    Bundle {
        error: BundleError,
        authority_now: Option<SystemTime>,
    },
    #[error("the certificate that the CA gave would not serve: {error}")]
    Identity {
        error: IdentityError,
        authority_now: Option<SystemTime>,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl RenewalError {
    /// The metric's label, one for each thing that somebody would do about it.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Key(_) | Self::Csr(_) | Self::Tls(_) => "local_failure",
            Self::Authority(error) => error.outcome(),
            Self::Chain { .. } | Self::Bundle { .. } => "malformed_answer",
            Self::Identity { error, .. } => rejection(error),
        }
    }

    /// How long the CA asks to be left alone.
    pub(crate) fn delay(&self) -> Option<Duration> {
        match self {
            Self::Authority(error) => error.delay(),
            _ => None,
        }
    }

    /// The CA's time, where it answered.
    pub(crate) fn authority_now(&self) -> Option<SystemTime> {
        match self {
            Self::Authority(error) => error.authority_now(),
            Self::Chain { authority_now, .. }
            | Self::Bundle { authority_now, .. }
            | Self::Identity { authority_now, .. } => *authority_now,
            Self::Key(_) | Self::Csr(_) | Self::Tls(_) => None,
        }
    }
}

/// What the peers' verifier has against a certificate.
fn rejection(error: &IdentityError) -> &'static str {
    match error {
        IdentityError::KeyMismatch | IdentityError::Key(_) => "wrong_key",
        IdentityError::Tls(_) => "local_failure",
        IdentityError::Peer(error) => match error {
            PeerError::UnexpectedIdentity { .. } | PeerError::ForeignTrustDomain(_) => {
                "wrong_identity"
            }
            PeerError::Profile(_) | PeerError::ChainTooLong | PeerError::Certificate(_) => {
                "not_an_svid"
            }
            error if error.is_expiry() => "expired_chain",
            error if error.is_not_yet_valid() => "not_yet_valid",
            _ => "untrusted_chain",
        },
    }
}
