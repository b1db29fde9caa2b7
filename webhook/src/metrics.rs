//! The webhook's own metrics, in one table.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_crds::emergency::Level;
use bulkhead_runtime::monitoring::Monitoring;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

/// Seconds. A decision takes well under a millisecond; a namespace that has to
/// be read from the API server takes some more; the API server gives up after
/// [`crate::registration::TIMEOUT_SECONDS`].
const DURATION_BUCKETS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 2.0, 5.0,
];

/// Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    decisions: Family<Decided, Counter>,
    pub(crate) request_duration: Histogram,
    pub(crate) connections: Gauge,
    pub(crate) handshakes_failed: Counter,
    pub(crate) panics: Counter,
    pub(crate) namespace_reads_failed: Counter,
    pub(crate) namespace_watch_errors: Counter,
    pub(crate) registered: Gauge,
    pub(crate) registrations: Counter,
    pub(crate) registration_errors: Counter,
    certificate_expiry: Family<CertificateUse, Gauge>,
    pub(crate) certificate_errors: Counter,
    pub(crate) self_test_failing: Gauge,
    pub(crate) stop_watch_errors: Counter,
    stops: Family<StoppedNamespace, Gauge>,
    events: Family<EventOutcome, Counter>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct Decided {
    decision: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct CertificateUse {
    certificate: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct StoppedNamespace {
    level: &'static str,
    namespace: String,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct EventOutcome {
    outcome: &'static str,
}

impl Metrics {
    pub(crate) fn register(monitoring: &Monitoring) -> Self {
        let metrics = Self {
            decisions: Family::default(),
            request_duration: Histogram::new(DURATION_BUCKETS),
            connections: Gauge::default(),
            handshakes_failed: Counter::default(),
            panics: Counter::default(),
            namespace_reads_failed: Counter::default(),
            namespace_watch_errors: Counter::default(),
            registered: Gauge::default(),
            registrations: Counter::default(),
            registration_errors: Counter::default(),
            certificate_expiry: Family::default(),
            certificate_errors: Counter::default(),
            self_test_failing: Gauge::default(),
            stop_watch_errors: Counter::default(),
            stops: Family::default(),
            events: Family::default(),
        };
        monitoring.register(|registry| {
            registry.register(
                "bulkhead_emergency_active",
                "Switches that are on, by level and by the namespace they are in",
                metrics.stops.clone(),
            );
            let registry = registry.sub_registry_with_prefix("bulkhead_webhook");
            registry.register(
                "decisions",
                "Answers to admission reviews, by decision and reason",
                metrics.decisions.clone(),
            );
            registry.register_with_unit(
                "request_duration",
                "From the whole body of a review to its answer",
                Unit::Seconds,
                metrics.request_duration.clone(),
            );
            registry.register(
                "connections",
                "TLS connections that are open",
                metrics.connections.clone(),
            );
            registry.register(
                "handshakes_failed",
                "TLS handshakes that failed or took too long",
                metrics.handshakes_failed.clone(),
            );
            registry.register(
                "panics",
                "Reviews that ended in a defect of the webhook",
                metrics.panics.clone(),
            );
            registry.register(
                "namespace_reads_failed",
                "Namespaces that could not be read when a pod needed them",
                metrics.namespace_reads_failed.clone(),
            );
            registry.register(
                "self_test_failing",
                "1 where a pod created as a dry run would not get its sidecar",
                metrics.self_test_failing.clone(),
            );
            registry.register(
                "stop_watch_errors",
                "Interruptions of the watch of InjectionStops",
                metrics.stop_watch_errors.clone(),
            );
            registry.register(
                "namespace_watch_errors",
                "Interruptions of the watch of namespaces",
                metrics.namespace_watch_errors.clone(),
            );
            registry.register(
                "registered",
                "1 where the API server's configuration is what it should be",
                metrics.registered.clone(),
            );
            registry.register(
                "registrations",
                "Times that the API server's configuration was written",
                metrics.registrations.clone(),
            );
            registry.register(
                "registration_errors",
                "Failures to read or write the API server's configuration",
                metrics.registration_errors.clone(),
            );
            registry.register_with_unit(
                "certificate_expiry_timestamp",
                "When the certificate in use expires, in Unix time",
                Unit::Seconds,
                metrics.certificate_expiry.clone(),
            );
            registry.register(
                "certificate_errors",
                "Failures to read, make or store the serving certificate",
                metrics.certificate_errors.clone(),
            );
            registry.register(
                "events",
                "Events for people, by what became of them",
                metrics.events.clone(),
            );
        });
        metrics
    }

    pub(crate) fn decided(&self, decision: &'static str, reason: &'static str) {
        self.decisions
            .get_or_create(&Decided { decision, reason })
            .inc();
    }

    /// Notes the namespaces of the switches that are on, one for each switch.
    pub(crate) fn stopped(&self, namespaces: impl Iterator<Item = String>) {
        self.stops.clear();
        for namespace in namespaces {
            let level = Level::Injection.as_str();
            self.stops
                .get_or_create(&StoppedNamespace { level, namespace })
                .inc();
        }
    }

    pub(crate) fn took(&self, duration: Duration) {
        self.request_duration.observe(duration.as_secs_f64());
    }

    pub(crate) fn certificate_expires(&self, certificate: &'static str, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        });
        self.certificate_expiry
            .get_or_create(&CertificateUse { certificate })
            .set(seconds);
    }

    pub(crate) fn event(&self, outcome: &'static str) {
        self.events.get_or_create(&EventOutcome { outcome }).inc();
    }
}
