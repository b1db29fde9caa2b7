//! What the proxy's memory comes to, and how near the limit it is.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::budget::Pressure;

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct PressureLabel {
    pressure: &'static str,
}

/// The budget, as the outside sees it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryMetrics {
    limit: Gauge,
    used: Gauge,
    pressure: Family<PressureLabel, Gauge>,
}

impl MemoryMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "bulkhead_memory_limit_bytes",
            "Memory that the proxy may use; 0 where nothing limits it",
            self.limit.clone(),
        );
        registry.register(
            "bulkhead_memory_used_bytes",
            "Memory that counts against the limit",
            self.used.clone(),
        );
        registry.register(
            "bulkhead_memory_pressure",
            "1 for how near the limit is",
            self.pressure.clone(),
        );
    }

    pub(crate) fn set(&self, limit: Option<u64>, used: u64, current: Pressure) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.limit.set(gauge(limit.unwrap_or(0)));
        self.used.set(gauge(used));
        for pressure in Pressure::ALL {
            let label = PressureLabel {
                pressure: pressure.as_str(),
            };
            let is_current = i64::from(pressure == current);
            self.pressure.get_or_create(&label).set(is_current);
        }
    }
}
