//! What an issuer says about itself, for whoever shows it to people.

use std::time::SystemTime;

pub use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, Phase, UpstreamSigns,
};
use bulkhead_pki::bundle::BundleId;

use crate::rotation::holders::HolderReport;

/// Everything that a person asks about the CA's own certificates. It has no key
/// in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    pub phase: Phase,
    /// What goes on, or what to do, in a sentence.
    pub message: String,
    /// The root that signs.
    pub root_generation: u64,
    /// The root that is to sign.
    pub target_generation: u64,
    pub trust_bundle: TrustBundleStatus,
    /// Roots, intermediates and token keys, the newest of each first.
    pub authorities: Vec<AuthorityStatus>,
    pub upstream: UpstreamStatus,
    /// What the workloads said, when a rotation last asked.
    pub holders: HolderReport,
}

/// The trust bundle that is given out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TrustBundleStatus {
    pub id: BundleId,
    pub sequence: u64,
    /// How many roots it has.
    pub roots: usize,
}

/// One root, intermediate or token key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthorityStatus {
    pub kind: AuthorityKind,
    pub generation: u64,
    pub state: AuthorityState,
    /// Of the certificate; of the public key where there is no certificate.
    pub fingerprint: String,
    /// The serial number; a token key has its key ID here.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub key_type: String,
    /// The generation of the root above it, for an intermediate.
    pub issuer: Option<u64>,
}

/// Whoever signs above this CA.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamStatus {
    /// `self-signed`, `files`, `cert-manager` or `vault`.
    pub kind: &'static str,
    pub signs: UpstreamSigns,
    /// What went wrong at the last attempt.
    pub failure: Option<String>,
    pub last_success: Option<SystemTime>,
}
