//! When a connection last had a request.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The requests in flight on one connection, and since when there were none.
/// Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug)]
struct State {
    has_begun: bool,
    in_flight: usize,
    idle_since: Instant,
}

impl Default for Activity {
    fn default() -> Self {
        let (state, _) = watch::channel(State {
            has_begun: false,
            in_flight: 0,
            idle_since: Instant::now(),
        });
        Self(Arc::new(state))
    }
}

impl Activity {
    /// Notes a request, which is in flight until the value returned is dropped.
    pub(super) fn start(&self) -> InFlight {
        self.0.send_modify(|state| {
            state.has_begun = true;
            state.in_flight += 1;
        });
        InFlight(self.clone())
    }

    /// Whether there ever was a request.
    pub(super) fn has_begun(&self) -> bool {
        self.0.borrow().has_begun
    }

    /// Returns when there was a first request.
    pub(super) async fn begun(&self) {
        // It ends with an error only after its sender, which this is.
        let _ = self.0.subscribe().wait_for(|state| state.has_begun).await;
    }

    /// Returns when there has been no request for this long.
    pub(super) async fn idle_for(&self, time: Duration) {
        loop {
            let State {
                in_flight,
                idle_since,
                ..
            } = *self.0.borrow();
            let end = idle_since + time;
            match in_flight {
                0 if Instant::now() >= end => return,
                0 => sleep_until(end).await,
                _ => {
                    let mut changes = self.0.subscribe();
                    let _ = changes.wait_for(|state| state.in_flight == 0).await;
                }
            }
        }
    }
}

/// A request in flight.
pub(super) struct InFlight(Activity);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| {
            state.in_flight = state.in_flight.saturating_sub(1);
            state.idle_since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_start_and_from_its_last_requests_end() {
        let activity = Activity::default();
        let start = Instant::now();
        activity.idle_for(MINUTE).await;
        assert_eq!(start.elapsed(), MINUTE);

        let (first, second) = (activity.start(), activity.start());
        let waiting = activity.clone();
        let idle = tokio::spawn(async move { waiting.idle_for(MINUTE).await });
        tokio::time::sleep(10 * MINUTE).await;
        drop(first);
        tokio::time::sleep(10 * MINUTE).await;
        assert!(!idle.is_finished(), "a request is in flight");
        drop(second);
        let ended = Instant::now();
        idle.await.unwrap();
        assert_eq!(ended.elapsed(), MINUTE);
    }

    #[tokio::test]
    async fn a_first_request_is_noticed_by_whoever_waits_for_it() {
        let activity = Activity::default();
        let waiting = activity.clone();
        let begun = tokio::spawn(async move { waiting.begun().await });
        assert!(!activity.has_begun());
        drop(activity.start());
        begun.await.unwrap();
        assert!(activity.has_begun());
    }
}
