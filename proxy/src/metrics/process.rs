//! What the proxy counts of itself, rather than of connections and requests.

use bulkhead_core::discovery::{BypassPhase, ResourceKind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct PushLabels {
    kind: &'static str,
    outcome: &'static str,
}

/// Control, and standing aside. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessMetrics {
    connected: Gauge,
    destinations: Gauge,
    pushes: Family<PushLabels, Counter>,
    passthrough: Counter,
    bypass: Family<PhaseLabel, Gauge>,
}

impl ProcessMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "bulkhead_discovery_connected",
            "1 while control is connected to",
            self.connected.clone(),
        );
        registry.register(
            "bulkhead_discovery_destinations",
            "Addresses that control was asked about and keeps the proxy told of",
            self.destinations.clone(),
        );
        registry.register(
            "bulkhead_discovery_pushes",
            "Answers and changes that came from control",
            self.pushes.clone(),
        );
        registry.register(
            "bulkhead_passthrough_connections",
            "Outbound connections that went where they were going, as they were",
            self.passthrough.clone(),
        );
        registry.register(
            "bulkhead_bypass",
            "1 for how far the proxy stands aside",
            self.bypass.clone(),
        );
    }

    pub(crate) fn connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
    }

    pub(crate) fn destinations(&self, count: usize) {
        self.destinations
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn push(&self, kind: ResourceKind, taken: bool) {
        let labels = PushLabels {
            kind: kind.as_str(),
            outcome: if taken { "taken" } else { "refused" },
        };
        self.pushes.get_or_create(&labels).inc();
    }

    pub(crate) fn passthrough(&self) {
        self.passthrough.inc();
    }

    pub(crate) fn bypass(&self, current: BypassPhase) {
        for phase in BypassPhase::ALL {
            let label = PhaseLabel {
                phase: phase.as_str(),
            };
            let gauge = self.bypass.get_or_create(&label);
            gauge.set(i64::from(phase == current));
        }
    }
}
