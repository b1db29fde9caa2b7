//! What the allocator counts. It counts for each thread, without anything that
//! threads share; a thread says what it has grown by when it asks.
//!
//! In a process whose allocator is another one (the tests', the demo's) nothing
//! is counted here, and all that is known is what the kernel says.

use std::cell::Cell;

thread_local! {
    static TOLD: Cell<i64> = const { Cell::new(0) };
}

/// How many bytes this thread holds more, or fewer, than when it asked last.
pub(super) fn growth() -> i64 {
    let held = held();
    held - TOLD.replace(held)
}

pub(crate) use counters::held;

#[cfg(feature = "jemalloc")]
mod counters {
    use tikv_jemalloc_ctl::thread::{ThreadLocal, allocatedp, deallocatedp};

    struct Counters {
        given_out: ThreadLocal<u64>,
        given_back: ThreadLocal<u64>,
    }

    impl Counters {
        fn of_this_thread() -> Option<Self> {
            Some(Self {
                given_out: allocatedp::read().ok()?,
                given_back: deallocatedp::read().ok()?,
            })
        }
    }

    thread_local! {
        static COUNTERS: Option<Counters> = Counters::of_this_thread();
    }

    /// How many bytes this thread was given and has not given back. Less than none
    /// where it gave back what others were given.
    pub(crate) fn held() -> i64 {
        COUNTERS.with(|counters| match counters {
            Some(it) => it
                .given_out
                .get()
                .wrapping_sub(it.given_back.get())
                .cast_signed(),
            None => 0,
        })
    }
}

#[cfg(not(feature = "jemalloc"))]
mod counters {
    pub(crate) fn held() -> i64 {
        0
    }
}
