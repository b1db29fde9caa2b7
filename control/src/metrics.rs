//! What control counts. Labels have few values, all of them ours.

use std::time::Duration;

use bulkhead_core::discovery::ResourceKind;
use bulkhead_crds::certificate_authority::Proxies;
use bulkhead_crds::emergency::Level;
use bulkhead_runtime::monitoring::Monitoring;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

use crate::object::Kind;

/// Seconds from hearing of a change to telling a proxy.
const PUSH_BUCKETS: [f64; 11] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
];

/// Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub proxies: Gauge,
    pub connections: Gauge,
    pub handshake_failures: Counter,
    responses: Family<TypeLabel, Counter>,
    replies: Family<ReplyLabels, Counter>,
    refused: Family<ReasonLabel, Counter>,
    push_seconds: Histogram,
    objects: Family<KindLabel, Gauge>,
    source_errors: Family<KindLabel, Counter>,
    faulty: Family<KindLabel, Gauge>,
    pub missing: Family<NamespaceLabel, Gauge>,
    pub evictions: Family<OutcomeLabel, Counter>,
    switches: Family<SwitchLabels, Gauge>,
    holders: Family<StateLabel, Gauge>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct TypeLabel {
    resource: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ReplyLabels {
    resource: &'static str,
    reply: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// A namespace of the cluster.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct NamespaceLabel {
    pub namespace: String,
}

/// What became of a try.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct OutcomeLabel {
    pub outcome: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct SwitchLabels {
    level: &'static str,
    namespace: String,
}

impl Metrics {
    /// Adds everything to the registry; the docs' table has the same order.
    pub fn register(monitoring: &Monitoring) -> Self {
        let metrics = Self {
            proxies: Gauge::default(),
            connections: Gauge::default(),
            handshake_failures: Counter::default(),
            responses: Family::default(),
            replies: Family::default(),
            refused: Family::default(),
            push_seconds: Histogram::new(PUSH_BUCKETS),
            objects: Family::default(),
            source_errors: Family::default(),
            faulty: Family::default(),
            missing: Family::default(),
            evictions: Family::default(),
            switches: Family::default(),
            holders: Family::default(),
        };
        let all = metrics.clone();
        monitoring.register(|registry| {
            registry.register(
                "bulkhead_control_proxies",
                "Streams of proxies",
                all.proxies,
            );
            registry.register(
                "bulkhead_control_connections",
                "Connections, those without a stream included",
                all.connections,
            );
            registry.register(
                "bulkhead_control_handshake_failures",
                "Clients that did not agree on TLS, or proved no identity of the mesh",
                all.handshake_failures,
            );
            registry.register(
                "bulkhead_control_responses",
                "Answers sent, by type of resource",
                all.responses,
            );
            registry.register(
                "bulkhead_control_replies",
                "Answers that proxies took (ack) or refused (nack)",
                all.replies,
            );
            registry.register(
                "bulkhead_control_refusals",
                "Names and streams that were refused to a proxy, by reason",
                all.refused,
            );
            registry.register_with_unit(
                "bulkhead_control_push",
                "From hearing of a change to telling a proxy",
                Unit::Seconds,
                all.push_seconds,
            );
            registry.register(
                "bulkhead_control_objects",
                "Objects that are known, by kind",
                all.objects,
            );
            registry.register(
                "bulkhead_control_source_errors",
                "Interrupted watches, and objects that could not be read, by kind",
                all.source_errors,
            );
            registry.register(
                "bulkhead_control_faulty_objects",
                "Objects that cannot be read, or mean nothing in part, by kind",
                all.faulty,
            );
            registry.register(
                "bulkhead_pods_missing_sidecar",
                "Pods that should have a sidecar and have none",
                all.missing,
            );
            registry.register(
                "bulkhead_control_evictions",
                "Evictions of pods that miss their sidecar",
                all.evictions,
            );
            registry.register(
                "bulkhead_emergency_active",
                "Switches that are on, by level and by the namespace they are in",
                all.switches,
            );
            registry.register(
                "bulkhead_control_trust_proxies",
                "Proxies of the mesh by what they hold of its trust; of the replica that holds the lease",
                all.holders,
            );
        });
        metrics
    }

    pub fn responded(&self, kind: ResourceKind) {
        let resource = kind.as_str();
        self.responses.get_or_create(&TypeLabel { resource }).inc();
    }

    pub fn replied(&self, kind: ResourceKind, taken: bool) {
        let labels = ReplyLabels {
            resource: kind.as_str(),
            reply: if taken { "ack" } else { "nack" },
        };
        self.replies.get_or_create(&labels).inc();
    }

    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub fn pushed(&self, after: Duration) {
        self.push_seconds.observe(after.as_secs_f64());
    }

    pub fn objects(&self, kind: Kind, count: usize) {
        let kind = kind.as_str();
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.objects.get_or_create(&KindLabel { kind }).set(count);
    }

    pub fn faulty_objects(&self, kind: Kind, count: usize) {
        let kind = kind.as_str();
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.faulty.get_or_create(&KindLabel { kind }).set(count);
    }

    pub fn source_error(&self, kind: &'static str) {
        self.source_errors.get_or_create(&KindLabel { kind }).inc();
    }

    /// What the proxies of the mesh hold.
    pub(crate) fn holders(&self, proxies: &Proxies) {
        for (state, count) in [
            ("total", proxies.total),
            ("holding", proxies.holding),
            ("renewed", proxies.renewed),
        ] {
            let gauge = self.holders.get_or_create(&StateLabel { state });
            gauge.set(count.into());
        }
    }

    /// Another replica says what the proxies hold, or nobody knows.
    pub(crate) fn no_holders(&self) {
        self.holders.clear();
    }

    /// So many switches of a level are on in a namespace; where it is none, the
    /// namespace is not named any more.
    pub(crate) fn switches(&self, level: Level, namespace: &str, count: usize) {
        let labels = SwitchLabels {
            level: level.as_str(),
            namespace: namespace.to_owned(),
        };
        if count == 0 {
            self.switches.remove(&labels);
            return;
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.switches.get_or_create(&labels).set(count);
    }
}
