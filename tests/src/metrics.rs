//! What a program has counted, read as Prometheus would.

use std::time::Duration;

use bulkhead_runtime::monitoring::Monitoring;
use tokio::time::{Instant, interval};

/// How often the metrics are read.
const POLL: Duration = Duration::from_millis(2);
/// How long a number may take to become what is expected.
const COUNTED_WITHIN: Duration = Duration::from_secs(60);

/// The sum of the metrics that have this name and these labels.
pub fn sum(monitoring: &Monitoring, name: &str, labels: &[&str]) -> f64 {
    sum_of(&monitoring.metrics(), name, labels)
}

/// The same, of metrics that were read already.
pub fn sum_of(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Waits until that sum is `expected`: a client has its answer a moment before
/// the program has counted it.
///
/// # Panics
/// Where it does not come, with all metrics.
pub async fn become_sum(monitoring: &Monitoring, name: &str, labels: &[&str], expected: f64) {
    let deadline = Instant::now() + COUNTED_WITHIN;
    let mut polls = interval(POLL);
    while sum(monitoring, name, labels) != expected {
        assert!(
            Instant::now() < deadline,
            "{name} {labels:?} did not become {expected}:\n{}",
            monitoring.metrics()
        );
        polls.tick().await;
    }
}
