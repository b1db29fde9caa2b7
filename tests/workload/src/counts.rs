//! What became of requests, counted. Nothing here waits or sends.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// How many failures are kept in full: the first ones tell the most.
const KEPT: usize = 20;

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer came, to its last byte.
    Answered {
        /// The HTTP status.
        status: u16,
        /// Which pod says that it answered.
        by: Option<String>,
        /// The beginning of the body, for people.
        said: String,
    },
    /// No whole answer came.
    Failed {
        /// A word to count by: `connect`, `broken`, `timeout`.
        how: &'static str,
        /// The error, for people.
        error: String,
    },
}

/// Everything that was counted since the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests that were begun.
    pub sent: u64,
    /// Answers of 200 to 299.
    pub ok: u64,
    /// Everything else that has ended. What is in flight is `sent - ok - failed`.
    pub failed: u64,
    /// Answers by HTTP status, and failures by their word.
    pub outcomes: BTreeMap<String, u64>,
    /// Answers by the pod that gave them.
    pub pods: BTreeMap<String, u64>,
    /// The longest time to a whole answer, in milliseconds.
    pub slowest_ms: u64,
    /// The longest time between two answers that were ok, in milliseconds.
    pub longest_gap_ms: u64,
    /// The first failures in full.
    pub failures: Vec<Failure>,
    #[serde(skip)]
    last_ok: Option<Duration>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// When it ended, in milliseconds since the load began.
    pub at_ms: u64,
    /// The status, or the error.
    pub why: String,
}

impl Counts {
    /// A request is on its way.
    pub fn begun(&mut self) {
        self.sent += 1;
    }

    /// A request has ended `at` this time since the load began, after `took`.
    pub fn ended(&mut self, outcome: Outcome, at: Duration, took: Duration) {
        match outcome {
            Outcome::Answered { status, by, said } => {
                *self.outcomes.entry(status.to_string()).or_default() += 1;
                if let Some(pod) = by {
                    *self.pods.entry(pod).or_default() += 1;
                }
                self.slowest_ms = self.slowest_ms.max(milliseconds(took));
                if (200..300).contains(&status) {
                    self.count_ok(at);
                } else {
                    self.count_failure(format!("HTTP status {status}: {said}"), at);
                }
            }
            Outcome::Failed { how, error } => {
                *self.outcomes.entry(how.to_owned()).or_default() += 1;
                self.count_failure(format!("{how}: {error}"), at);
            }
        }
    }

    fn count_ok(&mut self, at: Duration) {
        self.ok += 1;
        if let Some(last) = self.last_ok {
            let gap = at.saturating_sub(last);
            self.longest_gap_ms = self.longest_gap_ms.max(milliseconds(gap));
        }
        // Answers may overtake one another.
        self.last_ok = self.last_ok.max(Some(at));
    }

    fn count_failure(&mut self, why: String, at: Duration) {
        self.failed += 1;
        if self.failures.len() < KEPT {
            let at_ms = milliseconds(at);
            self.failures.push(Failure { at_ms, why });
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn answer(status: u16, by: &str) -> Outcome {
        Outcome::Answered {
            status,
            by: Some(by.to_owned()),
            said: "not now".to_owned(),
        }
    }

    fn timeout() -> Outcome {
        Outcome::Failed {
            how: "timeout",
            error: "no answer within 10s".to_owned(),
        }
    }

    #[test]
    fn only_2xx_is_ok_and_everything_else_failed() {
        let mut counts = Counts::default();
        for status in [200, 204, 301, 404, 503] {
            counts.begun();
            counts.ended(answer(status, "web-1"), at(10), at(1));
        }
        counts.begun();
        counts.ended(timeout(), at(20), at(10));
        assert_eq!((counts.sent, counts.ok, counts.failed), (6, 2, 4));
        let outcomes: Vec<_> = counts.outcomes.iter().map(|(k, n)| (&**k, *n)).collect();
        let expected = ["200", "204", "301", "404", "503", "timeout"].map(|name| (name, 1));
        assert_eq!(outcomes, expected);
        assert_eq!(counts.pods["web-1"], 5);
    }

    #[test]
    fn what_is_in_flight_is_neither_ok_nor_failed() {
        let mut counts = Counts::default();
        counts.begun();
        counts.begun();
        counts.ended(answer(200, "web-1"), at(10), at(1));
        assert_eq!((counts.sent, counts.ok, counts.failed), (2, 1, 0));
    }

    #[test]
    fn a_failure_says_when_and_why() {
        let mut counts = Counts::default();
        counts.ended(answer(503, "web-1"), at(1_500), at(1));
        counts.ended(timeout(), at(12_000), at(10_000));
        let failures = [
            (1_500, "HTTP status 503: not now"),
            (12_000, "timeout: no answer within 10s"),
        ];
        let expected = failures.map(|(at_ms, why)| Failure {
            at_ms,
            why: why.to_owned(),
        });
        assert_eq!(counts.failures, expected);
    }

    #[test]
    fn an_outage_is_the_longest_gap_between_two_good_answers() {
        let mut counts = Counts::default();
        for (status, when) in [
            (200, 100),
            (200, 200),
            (503, 900),
            (200, 1_700),
            (200, 1_750),
        ] {
            counts.ended(answer(status, "web-1"), at(when), at(1));
        }
        assert_eq!(counts.longest_gap_ms, 1_500);
    }

    #[test]
    fn answers_that_overtake_each_other_make_no_gap() {
        let mut counts = Counts::default();
        for when in [100, 300, 200, 310] {
            counts.ended(answer(200, "web-1"), at(when), at(1));
        }
        assert_eq!(counts.longest_gap_ms, 200);
    }

    #[test]
    fn a_million_failures_are_counted_and_the_first_are_kept() {
        let mut counts = Counts::default();
        for when in 0..1_000_000 {
            counts.ended(timeout(), at(when), at(1));
        }
        assert_eq!(counts.failed, 1_000_000);
        assert_eq!(counts.failures.len(), KEPT);
        assert_eq!(counts.failures[0].at_ms, 0);
    }
}
