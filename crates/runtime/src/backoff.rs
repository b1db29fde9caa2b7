//! How long to wait before the next try.

use std::time::Duration;

/// Exponential backoff with full jitter: before try *n* the wait is random
/// between `first` and `first × 2ⁿ`, and never longer than `longest`.
///
/// Full jitter rather than a few percent, because ten thousand proxies that lost
/// the same CA at the same instant must not come back at the same instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// Notes a failure and says how long to wait, by a random number from 0 to 1.
    pub fn after_failure(&mut self, random: f64) -> Duration {
        let factor = 2_u32.saturating_pow(self.failures.saturating_add(1).min(31));
        let most = self.first.saturating_mul(factor).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        let span = most.saturating_sub(self.first);
        self.first.min(most) + span.mul_f64(random.clamp(0.0, 1.0))
    }

    /// Notes a success: the next failure waits as the first one did.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random number from 0 to 1, for jitter. Not for secrets.
pub fn jitter() -> f64 {
    fastrand::f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_over_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let longest: Vec<_> = (0..5)
            .map(|_| backoff.after_failure(1.0).as_secs())
            .collect();
        assert_eq!(longest, [2, 4, 8, 10, 10]);
        backoff.reset();
        assert_eq!(backoff.after_failure(1.0), Duration::from_secs(2));
    }

    #[test]
    fn the_wait_is_spread_over_the_whole_span() {
        let wait = |random| {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
            backoff.after_failure(random)
        };
        assert_eq!(wait(0.0), Duration::from_secs(1));
        assert_eq!(wait(0.5), Duration::from_millis(1500));
        assert_eq!(wait(1.0), Duration::from_secs(2));
    }

    #[test]
    fn a_million_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        backoff.failures = u32::MAX;
        assert!(backoff.after_failure(1.0) > Duration::from_secs(1));
    }
}
