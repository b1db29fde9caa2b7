//! What an issuer says about itself, for whoever shows it to people.

use std::time::SystemTime;

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

/// How far a rotation of the root has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// There is none under way.
    Settled,
    /// The new root is on its way to the workloads.
    Publishing,
    /// Everybody holds it: it begins to sign.
    Switching,
    /// It signs, and workloads renew their certificates.
    Renewing,
    /// Nobody needs the old root any more: it leaves.
    Retiring,
    /// It does not go on by itself; the message says why.
    Blocked,
}

impl Phase {
    pub const ALL: [Self; 6] = [
        Self::Settled,
        Self::Publishing,
        Self::Switching,
        Self::Renewing,
        Self::Retiring,
        Self::Blocked,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "Settled",
            Self::Publishing => "Publishing",
            Self::Switching => "Switching",
            Self::Renewing => "Renewing",
            Self::Retiring => "Retiring",
            Self::Blocked => "Blocked",
        }
    }
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

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum AuthorityKind {
    Root,
    Intermediate,
    Jwt,
}

impl AuthorityKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
            Self::Jwt => "jwt",
        }
    }
}

/// Where in its life an authority is.
#[derive(
    Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum AuthorityState {
    /// Made, and known to nobody but the CA.
    Prepared,
    /// Known to whoever verifies what it will sign or has signed, and signing
    /// nothing now.
    Published,
    /// Signing.
    Active,
    /// Gone; its private key is destroyed.
    Retired,
}

impl AuthorityState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }
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

/// What the upstream is asked to sign.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UpstreamSigns {
    /// This CA's intermediates, which sign for workloads.
    #[default]
    Intermediate,
    /// Each certificate of a workload.
    Leaf,
}

impl UpstreamSigns {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intermediate => "intermediate",
            Self::Leaf => "leaf",
        }
    }
}
