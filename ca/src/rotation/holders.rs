//! Which workloads hold the trust bundle that is given out, and whose own
//! certificates are signed by the root that signs now.
//!
//! A new root signs only when everybody holds it, and an old one leaves only
//! when nobody needs it: what workloads say decides how fast a rotation goes.
//! It is what they claim, so that nothing is ever permitted because of it.

use std::time::{Duration, SystemTime};

use bulkhead_pki::bundle::BundleId;
use bulkhead_pki::certificate::Fingerprint;

use crate::issuer::Issued;

/// Knows what workloads hold.
pub trait Holders: Send + Sync + 'static {
    /// Compares what every workload holds with a trust bundle and with the root
    /// that is to have signed its certificate.
    fn report(&self, bundle: &BundleId, signing_root: &Fingerprint) -> HolderReport;

    /// Is told that there was no root before now: nobody has a certificate yet.
    fn begins(&self) {}

    /// Is told for how long certificates from before now may be valid.
    fn resumes(&self, _leaf_life: Duration) {}

    /// Is told which bundle somebody claims to hold.
    fn claimed(&self, _who: &str, _bundle: BundleId) {}

    /// Is told what somebody was given.
    fn issued(&self, _to: &str, _issued: &Issued) {}
}

/// What workloads hold, compared with what they should.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HolderReport {
    /// The workloads that are known.
    pub total: usize,
    /// Those that hold the bundle.
    pub holding: usize,
    /// Those whose certificate chains to the signing root.
    pub renewed: usize,
    /// Some of those that lack the one or the other.
    pub missing: Vec<Missing>,
    /// When this was so; none where it is not known whether these are all the
    /// workloads that there are, or whether they were compared with this bundle
    /// and root.
    pub at: Option<SystemTime>,
    /// How long others, who have certificates and are not among these because
    /// they never say anything, take to adopt a bundle; none where there are no
    /// such others.
    pub silent: Option<Duration>,
}

/// A workload that would be cut off if the rotation went on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Missing {
    /// The pod as `namespace/name`, or the workload and its instance.
    pub who: String,
    /// What it lacks, for people.
    pub reason: String,
}
