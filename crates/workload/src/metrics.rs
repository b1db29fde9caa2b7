//! What is counted about a workload's certificate, under one name in every
//! program.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct RenewalLabels {
    outcome: &'static str,
}

/// The metrics of one workload's certificate. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    renewals: Family<RenewalLabels, Counter>,
    expiry: Gauge<f64, AtomicU64>,
    root_expiry: Gauge<f64, AtomicU64>,
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
            "bulkhead_trust_root_expiry_timestamp",
            "When the first of the trust roots expires, in seconds since the epoch",
            Unit::Seconds,
            self.root_expiry.clone(),
        );
    }

    /// Counts an attempt to get a certificate.
    pub(crate) fn renewal(&self, outcome: &'static str) {
        self.renewals
            .get_or_create(&RenewalLabels { outcome })
            .inc();
    }

    /// Notes when the certificate in use, and the first of its roots, expire.
    pub(crate) fn expiry(&self, certificate: f64, root: f64) {
        self.expiry.set(certificate);
        self.root_expiry.set(root);
    }
}
