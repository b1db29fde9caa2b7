//! When a connection last had a request.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// The requests in flight on one connection, and since when there were none.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    has_begun: bool,
    in_flight: usize,
    idle_since: Instant,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            has_begun: false,
            in_flight: 0,
            idle_since: Instant::now(),
        })))
    }
}

impl Activity {
    /// Notes a request, which is in flight until the value returned is dropped.
    pub(super) fn start(&self) -> InFlight {
        self.with(|state| {
            state.has_begun = true;
            state.in_flight += 1;
        });
        InFlight(self.clone())
    }

    /// Whether there ever was a request.
    pub(super) fn has_begun(&self) -> bool {
        self.with(|state| state.has_begun)
    }

    /// Since when there was no request; nothing while there is one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.with(|state| (state.in_flight == 0).then_some(state.idle_since))
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request in flight.
pub(super) struct InFlight(Activity);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.in_flight = state.in_flight.saturating_sub(1);
            state.idle_since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_start_and_from_its_last_requests_end() {
        let activity = Activity::default();
        let start = Instant::now();
        assert_eq!(activity.idle_since(), Some(start));
        let (first, second) = (activity.start(), activity.start());
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(first);
        assert_eq!(activity.idle_since(), None);
        drop(second);
        assert_eq!(activity.idle_since(), Some(start + Duration::from_secs(1)));
    }
}
