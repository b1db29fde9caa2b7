//! When to ask for the next certificate, and how long to leave the CA alone.
//! Times and random numbers are arguments.

use std::time::{Duration, SystemTime};

use bulkhead_pki::renewal;

/// The shortest time between two renewals, for lifetimes of a few seconds.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// The wait after a first failure, and the longest one. The longest is short
/// beside any lifetime, so that a CA that comes back is noticed.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How many tries there are at least in one lifetime, with a CA that is away.
const TRIES: u32 = 20;
/// The longest that a CA is left alone because it asks for it. It may ask for
/// more by mistake, and the certificate would expire over it.
const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// The longest time in which workloads leave a root that no longer signs.
const LONGEST_EARLY: Duration = Duration::from_secs(600);

/// When a certificate was valid from and until, and what the clocks said when it
/// was issued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Issuance {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// This machine's time.
    pub(crate) now: SystemTime,
    /// The CA's.
    pub(crate) authority_now: SystemTime,
}

impl Issuance {
    fn lifetime(&self) -> Duration {
        let lifetime = self.not_after.duration_since(self.not_before);
        lifetime.unwrap_or_default()
    }

    /// When to ask for the next certificate, by this machine's clock.
    ///
    /// It is a random point between 50 % and 80 % of the lifetime as the CA
    /// counts it, because its clock wrote the dates: one's own may be wrong. It
    /// is never later than that part of what is left by one's own clock, which
    /// is what one's own verifier goes by; and at least half of that away, so
    /// that no clock, however wrong, has a workload ask all the time.
    pub(crate) fn due(&self, random: f64) -> SystemTime {
        let point = renewal::point(self.not_before, self.not_after, random);
        let wait = point.duration_since(self.authority_now);
        let latest = renewal::point(self.now, self.not_after, random);
        let latest = latest.duration_since(self.now).unwrap_or_default();
        let wait = wait.unwrap_or_default().clamp(latest / 2, latest);
        self.now + wait.max(SHORTEST_WAIT)
    }

    /// When to ask, where another root signs by now: workloads spread over a
    /// tenth of a lifetime.
    pub(crate) fn early(&self, now: SystemTime, random: f64) -> SystemTime {
        let window = (self.lifetime() / 10).min(LONGEST_EARLY);
        now + window.mul_f64(random).max(SHORTEST_WAIT)
    }

    /// The longest wait between two tries to get the next one.
    pub(crate) fn longest_retry(&self) -> Duration {
        (self.lifetime() / TRIES).clamp(2 * FIRST_RETRY, LONGEST_RETRY)
    }
}

/// The longest wait between two tries to get the first certificate.
pub(crate) const LONGEST_FIRST_RETRY: Duration = LONGEST_RETRY;

/// How long to leave a CA alone that asked for `delay`: that long and up to as
/// much again, because it asked many others at the same moment.
pub(crate) fn obey(delay: Duration, random: f64) -> Duration {
    let delay = delay.min(LONGEST_DELAY);
    delay + delay.max(FIRST_RETRY).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_pki::authority::BACKDATE;
    use std::time::UNIX_EPOCH;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn issued(at: SystemTime, lifetime: Duration) -> Issuance {
        Issuance {
            not_before: at - BACKDATE,
            not_after: at + lifetime,
            now: at,
            authority_now: at,
        }
    }

    fn noon() -> SystemTime {
        UNIX_EPOCH + 20_000 * DAY
    }

    /// How much of its lifetime a certificate has had when the next one is due,
    /// in percent, by a clock that is right.
    fn used(issuance: Issuance, random: f64) -> f64 {
        let wait = issuance.due(random).duration_since(issuance.now).unwrap();
        let used = issuance.authority_now + wait;
        let used = used.duration_since(issuance.not_before).unwrap();
        100.0 * used.as_secs_f64() / issuance.lifetime().as_secs_f64()
    }

    #[test]
    fn a_certificate_is_due_between_half_and_four_fifths_of_its_lifetime() {
        for lifetime in [10 * MINUTE, 60 * MINUTE, DAY, 90 * DAY] {
            for percent in 0..=100 {
                let used = used(issued(noon(), lifetime), f64::from(percent) / 100.0);
                assert!((49.9..80.1).contains(&used), "{lifetime:?}: {used} %");
            }
        }
    }

    #[test]
    fn a_clock_that_is_half_a_minute_off_changes_nothing_about_when() {
        for random in [0.0, 0.5, 1.0] {
            let right = issued(noon(), 10 * MINUTE);
            let behind = Issuance {
                now: noon() - MINUTE / 2,
                ..right
            };
            let ahead = Issuance {
                now: noon() + MINUTE / 2,
                ..right
            };
            for wrong in [behind, ahead] {
                let difference = used(wrong, random) - used(right, random);
                assert!(difference.abs() < 0.1, "{difference} %");
            }
        }
    }

    #[test]
    fn a_clock_that_is_far_ahead_does_not_have_the_ca_asked_all_the_time() {
        let ahead = Issuance {
            now: noon() + 55 * MINUTE,
            ..issued(noon(), 60 * MINUTE)
        };
        for random in [0.0, 0.5, 1.0] {
            let wait = ahead.due(random).duration_since(ahead.now).unwrap();
            assert!((MINUTE..5 * MINUTE).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn a_ca_whose_clock_makes_no_sense_does_not_get_asked_all_the_time_nor_too_late() {
        for authority_now in [UNIX_EPOCH, noon() + 9_999 * DAY] {
            let odd = Issuance {
                authority_now,
                ..issued(noon(), DAY)
            };
            for random in [0.0, 0.5, 1.0] {
                let wait = odd.due(random).duration_since(odd.now).unwrap();
                assert!((DAY / 5..DAY / 100 * 81).contains(&wait), "{wait:?}");
            }
        }
    }

    #[test]
    fn lifetimes_of_seconds_leave_some_time_between_renewals() {
        let short = issued(noon(), Duration::from_secs(30));
        for random in [0.0, 0.5, 1.0] {
            let wait = short.due(random).duration_since(short.now).unwrap();
            assert!((7.0..25.0).contains(&wait.as_secs_f64()), "{wait:?}");
        }
        let expired = issued(noon(), Duration::ZERO);
        assert_eq!(expired.due(0.5), expired.now + SHORTEST_WAIT);
    }

    #[test]
    fn workloads_leave_a_root_within_a_tenth_of_a_lifetime_or_ten_minutes() {
        let wait = |lifetime, random| {
            let early = issued(noon(), lifetime).early(noon(), random);
            early.duration_since(noon()).unwrap()
        };
        assert_eq!(wait(90 * DAY, 1.0), 10 * MINUTE);
        assert_eq!(wait(18 * MINUTE, 1.0), 2 * MINUTE);
        assert_eq!(wait(18 * MINUTE, 0.5), MINUTE);
        assert_eq!(wait(18 * MINUTE, 0.0), SHORTEST_WAIT);
    }

    #[test]
    fn a_ca_that_is_away_is_tried_many_times_in_a_lifetime_and_not_more_often_than_that() {
        assert_eq!(issued(noon(), DAY).longest_retry(), MINUTE);
        let short = issued(noon(), Duration::from_secs(80));
        assert_eq!(short.longest_retry(), Duration::from_secs(10));
        let zero = issued(noon() + BACKDATE, Duration::ZERO);
        assert!(zero.longest_retry() >= FIRST_RETRY);
    }

    #[test]
    fn a_delay_that_a_ca_asks_for_is_kept_and_spread_but_not_without_end() {
        let second = Duration::from_secs(1);
        assert_eq!(obey(10 * second, 0.0), 10 * second);
        assert_eq!(obey(10 * second, 1.0), 20 * second);
        assert_eq!(obey(Duration::ZERO, 1.0), FIRST_RETRY);
        assert_eq!(obey(Duration::MAX, 1.0), 10 * MINUTE);
    }
}
