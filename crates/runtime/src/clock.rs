//! The wall clock.
//!
//! Certificates expire by the wall clock, so their renewal must follow it too: a
//! machine that slept has a monotonic clock that knows nothing of the hours in
//! between. Waiting in between is done with tokio's timers, and whoever wakes up
//! asks this clock again.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Tells the time. Cheap to clone.
#[derive(Clone, Default)]
pub struct Clock(Kind);

#[derive(Clone, Default)]
enum Kind {
    /// The machine's own.
    #[default]
    System,
    /// What a test set.
    Stopped(Arc<Mutex<SystemTime>>),
    /// A time, and when tokio's timers began to count from it.
    Paced(SystemTime, Instant),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still at `time` until it is moved. All clones move
    /// together.
    pub fn stopped_at(time: SystemTime) -> Self {
        Self(Kind::Stopped(Arc::new(Mutex::new(time))))
    }

    /// A clock that shows `time` now, and goes as tokio's timers do: with them it
    /// can be paused, and days pass in no time.
    pub fn paced_from(time: SystemTime) -> Self {
        Self(Kind::Paced(time, Instant::now()))
    }

    /// Moves a stopped clock forward; the others cannot be moved, and stay as
    /// they are.
    pub fn advance(&self, by: Duration) {
        if let Kind::Stopped(set) = &self.0 {
            *set.lock().unwrap_or_else(PoisonError::into_inner) += by;
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that asks the machine"
    )]
    pub fn now(&self) -> SystemTime {
        match &self.0 {
            Kind::System => SystemTime::now(),
            Kind::Stopped(set) => *set.lock().unwrap_or_else(PoisonError::into_inner),
            Kind::Paced(time, since) => *time + since.elapsed(),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}
