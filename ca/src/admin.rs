//! The admin port, on loopback: what this replica does now, for
//! `bulkhead ca status`. It answers on a thread of its own, so that it does while
//! the CA signs for a whole cluster, and changes nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_runtime::drain;
use bulkhead_runtime::http_server::{
    Method, Request, Response, StatusCode, is_from_this_host, json as reply, text,
};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::admission::{Admission, Loads};
use crate::metrics::Metrics;

/// Over how long issuance is averaged, and how often it is looked at.
const WINDOW: Duration = Duration::from_secs(60);
const SAMPLE: Duration = Duration::from_secs(5);
/// Callers that are named of each line.
const NAMED: usize = 10;

const HELP: &str = "GET /status   what this replica of the CA does now\n";

/// Answers.
pub struct Admin {
    since: SystemTime,
    metrics: Metrics,
    admission: Admission,
    pace: Mutex<Pace>,
}

impl Admin {
    pub fn new(since: SystemTime, metrics: Metrics, admission: Admission) -> Self {
        let pace = Pace::new(Instant::now(), metrics.issued.get());
        Self {
            since,
            metrics,
            admission,
            pace: Mutex::new(pace),
        }
    }

    /// Looks at how much was issued, until the CA ends.
    pub async fn sample(self: Arc<Self>, mut drain: drain::Watch) {
        let mut ticks = interval(SAMPLE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                now = ticks.tick() => self.pace().note(now, self.metrics.issued.get()),
                () = drain.started() => return,
            }
        }
    }

    pub fn answer(&self, request: &Request) -> Response {
        if !is_from_this_host(request) {
            return text(
                StatusCode::FORBIDDEN,
                "use localhost or a loopback address, and no browser's page\n",
            );
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/status") => reply(StatusCode::OK, format!("{:#}\n", self.status())),
            _ => text(StatusCode::NOT_FOUND, HELP),
        }
    }

    /// Times are in seconds since 1970. The command reads each field if it is
    /// there, so that versions of both may differ.
    fn status(&self) -> Value {
        let issued = self.metrics.issued.get();
        let Loads { addresses, callers } = self.admission.loads(NAMED);
        let of_addresses = addresses.longest.iter().map(|(address, waiting)| {
            json!({"caller": address.to_string(), "class": "authentication", "waiting": waiting})
        });
        let of_callers = callers.longest.iter().map(|(caller, waiting)| {
            json!({"caller": caller.identity, "class": "issuance", "waiting": waiting})
        });
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "since": since.as_secs(),
            "issued_total": issued,
            "tokens_issued_total": self.metrics.tokens_issued.get(),
            "issued_per_second": self.pace().per_second(Instant::now(), issued),
            "refused": self.metrics.refusals(),
            "queue": {
                "length": addresses.waiting + callers.waiting,
                "waiting": of_callers.chain(of_addresses).collect::<Vec<_>>(),
            },
        })
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How fast a counter grew lately.
struct Pace(VecDeque<(Instant, u64)>);

impl Pace {
    fn new(now: Instant, count: u64) -> Self {
        Self(VecDeque::from([(now, count)]))
    }

    fn note(&mut self, now: Instant, count: u64) {
        // One from before the window stays, so that it is always a whole one.
        while let [_, (second, _), ..] = self.0.make_contiguous()
            && now.duration_since(*second) >= WINDOW
        {
            self.0.pop_front();
        }
        self.0.push_back((now, count));
    }

    /// A second, over the window or as much of it as there was.
    fn per_second(&self, now: Instant, count: u64) -> f64 {
        let Some((begin, before)) = self.0.front() else {
            return 0.0;
        };
        let seconds = now.duration_since(*begin).as_secs_f64().max(1.0);
        let grown = u32::try_from(count.saturating_sub(*before)).unwrap_or(u32::MAX);
        f64::from(grown) / seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_minute() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut pace = Pace::new(begin, 0);
        assert_eq!(pace.per_second(at(10), 100), 10.0);
        // An hour of nothing, and then a storm.
        for second in (5..=3600).step_by(5) {
            pace.note(at(second), 100);
        }
        assert_eq!(pace.per_second(at(3600), 100), 0.0);
        pace.note(at(3605), 700);
        assert_eq!(pace.per_second(at(3605), 700), 10.0);
        assert!(pace.0.len() < 20, "it remembers no more than it needs");
    }
}
