//! Until when a replica signs without having seen the store.
//!
//! A replica that cannot read the store cannot know whether its root has left the
//! trust bundle meanwhile: nobody would accept what it signs then. Who leads takes
//! every step itself, so that nothing happens without its knowledge, and it signs
//! on. For the others this is counted from the last look that succeeded, by what
//! it showed:
//!
//! - one root: another is published after that look at the earliest, signs
//!   [`SETTLE`] after that, and the old one leaves as much
//!   later: twice that time is safe;
//! - more than one: a step may have been due at that very moment, and the next one
//!   is that time later: once is safe.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_runtime::clock::Clock;
use tokio::time::Instant;

use crate::rotation::SETTLE;
use crate::rotation::slots::Slots;

/// When the store was last seen.
pub(super) struct Freshness(Mutex<Moment>);

/// A moment by both clocks: the monotonic one does not go on in a machine that is
/// suspended, and the other one may be set.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) monotonic: Instant,
    pub(super) wall: SystemTime,
}

impl Moment {
    pub(super) fn now(clock: &Clock) -> Self {
        Self {
            monotonic: Instant::now(),
            wall: clock.now(),
        }
    }
}

impl Freshness {
    pub(super) fn new(seen: Moment) -> Self {
        Self(Mutex::new(seen))
    }

    /// Notes a look that succeeded, and when it began: what it showed was so then,
    /// or later.
    pub(super) fn saw(&self, began: Moment) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    pub(super) fn age(&self, clock: &Clock) -> Duration {
        let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let by_wall_clock = clock.now().duration_since(seen.wall).unwrap_or_default();
        seen.monotonic.elapsed().max(by_wall_clock)
    }
}

/// For how long what was seen is good, where another replica leads. A pause that
/// is shorter than settings permit would leave no time to look again.
pub(super) fn good_for(seen: &Slots, settle: Duration) -> Duration {
    let settle = settle.max(SETTLE);
    match seen.trusted_roots().count() {
        0 | 1 => 2 * settle,
        _ => settle,
    }
}
