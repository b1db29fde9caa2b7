//! The wall clock.
//!
//! Certificates expire by the wall clock, so their renewal must follow it too: a
//! machine that slept has a monotonic clock that knows nothing of the hours in
//! between. Waiting in between is done with tokio's timers, and whoever wakes up
//! asks this clock again.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Tells the time. Cheap to clone.
#[derive(Clone, Default)]
pub struct Clock {
    /// The time that a test set; the machine's own where there is none.
    set: Option<Arc<Mutex<SystemTime>>>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still at `time` until it is moved. All clones move
    /// together.
    pub fn stopped_at(time: SystemTime) -> Self {
        Self {
            set: Some(Arc::new(Mutex::new(time))),
        }
    }

    /// Moves a stopped clock forward; the machine's own cannot be moved, and
    /// stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Some(set) = &self.set {
            *set.lock().unwrap_or_else(PoisonError::into_inner) += by;
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that asks the machine"
    )]
    pub fn now(&self) -> SystemTime {
        match &self.set {
            Some(set) => *set.lock().unwrap_or_else(PoisonError::into_inner),
            None => SystemTime::now(),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}
