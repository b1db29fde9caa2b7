//! What is counted about a workload's certificate, under one name in every
//! program.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_pki::identity::WorkloadIdentity;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::trust::Source;

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct RenewalLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct TrustLabels {
    source: &'static str,
    outcome: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// The metrics of one workload's certificate. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    renewals: Family<RenewalLabels, Counter>,
    expiry: Seconds,
    due: Seconds,
    root_expiry: Seconds,
    sequence: Gauge,
    trust: Family<TrustLabels, Counter>,
    skew: Seconds,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "bulkhead_certificate_renewals",
            "Attempts to get a certificate",
            self.renewals.clone(),
        );
        registry.register_with_unit(
            "bulkhead_certificate_expiry_timestamp",
            "When the workload's certificate expires, in seconds since the epoch",
            Unit::Seconds,
            self.expiry.clone(),
        );
        registry.register_with_unit(
            "bulkhead_certificate_renewal_due_timestamp",
            "When the next certificate will be asked for, in seconds since the epoch",
            Unit::Seconds,
            self.due.clone(),
        );
        registry.register_with_unit(
            "bulkhead_trust_root_expiry_timestamp",
            "When the first of the trust roots expires, in seconds since the epoch",
            Unit::Seconds,
            self.root_expiry.clone(),
        );
        registry.register(
            "bulkhead_trust_bundle_sequence",
            "Which version of the trust bundle is held; 0 where nobody said",
            self.sequence.clone(),
        );
        registry.register(
            "bulkhead_trust_bundle_changes",
            "Trust bundles that were taken, or not and why",
            self.trust.clone(),
        );
        registry.register_with_unit(
            "bulkhead_clock_skew",
            "How far this machine's clock was ahead of the CA's when the CA answered last",
            Unit::Seconds,
            self.skew.clone(),
        );
        // Not a number until the CA has said what time it is: 0 would say that
        // all is well.
        self.skew.set(f64::NAN);
    }

    /// Counts an attempt to get a certificate.
    pub(crate) fn renewal(&self, outcome: &'static str) {
        self.renewals
            .get_or_create(&RenewalLabels { outcome })
            .inc();
    }

    /// Notes what is in use.
    pub(crate) fn holds(&self, identity: &WorkloadIdentity) {
        let bundle = identity.bundle();
        let roots = bundle.roots().certificates().iter();
        let first = roots.map(|root| seconds(root.not_after()));
        self.expiry.set(seconds(identity.not_after()));
        self.root_expiry.set(first.fold(f64::INFINITY, f64::min));
        self.sequence
            .set(i64::try_from(bundle.sequence()).unwrap_or(i64::MAX));
    }

    /// Notes when the next certificate will be asked for.
    pub(crate) fn due(&self, due: SystemTime) {
        self.due.set(seconds(due));
    }

    /// Counts a trust bundle that was taken, or not.
    pub(crate) fn trust(&self, source: Source, outcome: &'static str) {
        let source = source.as_str();
        self.trust
            .get_or_create(&TrustLabels { source, outcome })
            .inc();
    }

    /// Notes how far this machine's clock is ahead of the CA's, in seconds.
    pub(crate) fn skew(&self, seconds: f64) {
        self.skew.set(seconds);
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
