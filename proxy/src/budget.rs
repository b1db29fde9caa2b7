//! The memory that the proxy may use, and how near to it the proxy is.
//!
//! A container that passes its limit is killed, and all its connections with it.
//! What is used is the sum of two figures:
//!
//! ```text
//!    counted   what the allocator gave out (`heap`), and a flat sum for each
//!              connection's sockets in the kernel and for each request that has
//!              not taken its memory yet: exact at any moment
//!  + the rest  what the kernel counts beyond that: the program, stacks, bytes in
//!              sockets, gaps in the heap; looked at now and then   (`kernel`)
//!  = used      ─▶ Pressure
//! ```
//!
//! Why it cannot pass the limit: memory grows only where a connection is taken or
//! bytes are read, and whoever does that asks for the [`Pressure`] first, on the
//! thread that then grows. From [`Pressure::Hold`] on no connection is taken, so that
//! those that are there have what is left to themselves; from [`Pressure::Refuse`] on no
//! request is begun; from [`Pressure::Shed`] on those are ended that hold the most
//! (`accounts`); at [`Pressure::Full`] nothing is read for which there is no memory
//! yet ([`may_grow`]).

pub(crate) mod heap;
mod kernel;

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::metrics::MemoryMetrics;
use kernel::{Kernel, Look};

/// What a connection's two sockets take in the kernel before they hold a byte.
pub(crate) const SOCKETS: i64 = 8 * 1024;

/// How often the kernel is asked: the nearer the limit, the more often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY_FROM_HALF: Duration = Duration::from_millis(100);
const LOOK_EVERY_UNDER_PRESSURE: Duration = Duration::from_millis(10);

/// The part of the limit by which what is counted may grow without the kernel being asked:
/// what it counts beyond grows along, by gaps in the heap and by code that runs for the
/// first time.
const LOOK_AFTER_PART: u64 = 32;

/// The part of the limit, in hundredths, to which memory is brought back where
/// connections are ended for it: far enough below for others to have their turn.
const BROUGHT_BACK_TO: u64 = 75;

/// The part of the limit that the unread bytes of one socket may take, and the least.
const RECEIVE_BUFFER_PART: u64 = 1024;
const LEAST_RECEIVE_BUFFER: u64 = 16 * 1024;
/// From here on they are left to the kernel.
const AMPLE_RECEIVE_BUFFER: u64 = 128 * 1024;
/// The part of the limit that the unsent bytes of one socket may take, and between what.
const UNSENT_PART: u64 = 1024;
const LEAST_UNSENT: u64 = 16 * 1024;
const MOST_UNSENT: u64 = 128 * 1024;

/// How many bytes may wait in the kernel, for each socket. A sender would else be given
/// megabytes, and so would whoever has a peer that reads slowly, and they count as ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SocketBuffers {
    /// Not yet read; nothing where the kernel decides.
    pub(crate) receive: Option<usize>,
    /// Not yet sent, before writing has to wait.
    pub(crate) unsent: u32,
}

impl SocketBuffers {
    /// What suits a process that may use so much memory.
    fn within(limit: Option<u64>) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        let receive = (limit / RECEIVE_BUFFER_PART).max(LEAST_RECEIVE_BUFFER);
        let unsent = (limit / UNSENT_PART).clamp(LEAST_UNSENT, MOST_UNSENT);
        Self {
            receive: (receive < AMPLE_RECEIVE_BUFFER).then_some(receive as usize),
            unsent: unsent as u32,
        }
    }
}

/// How near the limit is, and so what is done about it. Each includes those before.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) enum Pressure {
    Normal,
    /// From 80 %: what is idle is given back.
    Reclaim,
    /// From 85 %: connections wait in the backlog.
    Hold,
    /// From 90 %: requests are refused.
    Refuse,
    /// From 95 %: the connections that hold the most are ended.
    Shed,
    /// From 98 %: whoever needs more memory to read on is ended.
    Full,
}

impl Pressure {
    pub(crate) const ALL: [Self; 6] = [
        Self::Normal,
        Self::Reclaim,
        Self::Hold,
        Self::Refuse,
        Self::Shed,
        Self::Full,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Reclaim => "reclaim",
            Self::Hold => "hold",
            Self::Refuse => "refuse",
            Self::Shed => "shed",
            Self::Full => "full",
        }
    }

    /// The part of the limit from which it counts, in hundredths.
    const fn from(self) -> u64 {
        match self {
            Self::Normal => 0,
            Self::Reclaim => 80,
            Self::Hold => 85,
            Self::Refuse => 90,
            Self::Shed => 95,
            Self::Full => 98,
        }
    }

    fn of(used: u64, limit: u64) -> Self {
        let reached = |it: &&Self| used >= part(limit, it.from());
        *Self::ALL.iter().rfind(reached).unwrap_or(&Self::Normal)
    }
}

/// So many hundredths of the limit, in bytes.
fn part(limit: u64, hundredths: u64) -> u64 {
    limit / 100 * hundredths
}

/// The process's memory. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Shared>);

struct Shared {
    figures: Figures,
    kernel: Kernel,
    looked: Notify,
}

/// What is known, in bytes.
#[derive(Debug)]
struct Figures {
    /// `u64::MAX` where there is none.
    limit: AtomicU64,
    counted: AtomicI64,
    /// What was counted when the kernel was asked last.
    counted_then: AtomicI64,
    rest: AtomicI64,
    /// What the rest was when the process had done nothing yet. Memory that was given
    /// out and never written to is counted and yet not there, which must not make the
    /// rest look small: it will be written to.
    least_rest: i64,
}

impl Figures {
    fn new(look: Look, counted: i64) -> Self {
        let rest = look.used - counted;
        Self {
            limit: AtomicU64::new(look.limit.unwrap_or(u64::MAX)),
            counted: AtomicI64::new(counted),
            counted_then: AtomicI64::new(counted),
            rest: AtomicI64::new(rest),
            least_rest: rest,
        }
    }

    /// Takes over what the kernel says.
    fn take(&self, look: Look) {
        let counted = self.counted.load(Ordering::Relaxed);
        self.counted_then.store(counted, Ordering::Relaxed);
        let rest = look.used - counted;
        self.rest
            .store(rest.max(self.least_rest), Ordering::Relaxed);
        self.limit
            .store(look.limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether so much has been counted since that the kernel is to be asked again.
    fn have_outgrown_the_last_look(&self) -> bool {
        let counted = self.counted.load(Ordering::Relaxed);
        let growth = counted - self.counted_then.load(Ordering::Relaxed);
        u64::try_from(growth).is_ok_and(|growth| growth > self.limit() / LOOK_AFTER_PART)
    }

    fn used(&self) -> u64 {
        let sum = self.counted.load(Ordering::Relaxed) + self.rest.load(Ordering::Relaxed);
        u64::try_from(sum).unwrap_or(0)
    }

    fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    fn pressure(&self) -> Pressure {
        Pressure::of(self.used(), self.limit())
    }
}

impl Budget {
    /// The limit is the container's, or the one that is given where it is less.
    pub(crate) fn new(given: Option<u64>) -> Self {
        let kernel = Kernel::of_this_process(given);
        let counted = heap::growth();
        let figures = Figures::new(kernel.look(), counted);
        Self(Arc::new(Shared {
            figures,
            kernel,
            looked: Notify::new(),
        }))
    }

    /// How near the limit is at this moment.
    pub(crate) fn pressure(&self) -> Pressure {
        self.count(heap::growth());
        if self.0.figures.have_outgrown_the_last_look() {
            self.0.figures.take(self.0.kernel.look());
        }
        self.0.figures.pressure()
    }

    /// Whether nothing new is to be begun.
    pub(crate) fn refuses(&self) -> bool {
        self.pressure() >= Pressure::Refuse
    }

    /// The limit in bytes, where there is one.
    pub(crate) fn limit(&self) -> Option<u64> {
        let limit = self.0.figures.limit();
        (limit != u64::MAX).then_some(limit)
    }

    /// What may wait in the kernel for each socket.
    pub(crate) fn socket_buffers(&self) -> SocketBuffers {
        SocketBuffers::within(self.limit())
    }

    /// How many bytes would have to be given back for there to be room for others.
    pub(crate) fn excess(&self) -> u64 {
        let figures = &self.0.figures;
        let room = part(figures.limit(), BROUGHT_BACK_TO);
        figures.used().saturating_sub(room)
    }

    /// How many bytes the kernel counts beyond what the heap knows and what was there
    /// from the start: those in sockets above all.
    pub(crate) fn in_kernel(&self) -> u64 {
        let figures = &self.0.figures;
        let beyond = figures.rest.load(Ordering::Relaxed) - figures.least_rest;
        u64::try_from(beyond).unwrap_or(0)
    }

    /// Waits until a new connection may be taken.
    pub(crate) async fn room(&self) {
        if self.0.figures.used() >= part(self.0.figures.limit(), 50) {
            // The last one takes its memory before the next is let in.
            yield_now().await;
        }
        loop {
            let looked = self.0.looked.notified();
            if self.pressure() < Pressure::Hold {
                return;
            }
            looked.await;
        }
    }

    /// Waits until the kernel has been asked again.
    pub(crate) async fn looked(&self) {
        self.0.looked.notified().await;
    }

    /// Counts bytes that nobody else counts, or not yet, for as long as the guard lives.
    pub(crate) fn reserve(&self, bytes: i64) -> Reserved {
        self.count(bytes);
        Reserved {
            budget: self.clone(),
            bytes,
        }
    }

    fn count(&self, growth: i64) {
        if growth != 0 {
            self.0.figures.counted.fetch_add(growth, Ordering::Relaxed);
        }
    }

    /// Asks the kernel again and again, for ever, and says what changes.
    pub(crate) async fn follow(self, metrics: MemoryMetrics) {
        let mut told = Pressure::Normal;
        loop {
            self.count(heap::growth());
            self.0.figures.take(self.0.kernel.look());
            let pressure = self.0.figures.pressure();
            metrics.set(self.limit(), self.0.figures.used(), pressure);
            self.tell(pressure, &mut told);
            self.0.looked.notify_waiters();
            sleep(self.until_next_look(pressure)).await;
        }
    }

    fn until_next_look(&self, pressure: Pressure) -> Duration {
        let figures = &self.0.figures;
        match pressure {
            Pressure::Normal if figures.used() < part(figures.limit(), 50) => LOOK_EVERY,
            Pressure::Normal => LOOK_EVERY_FROM_HALF,
            _ => LOOK_EVERY_UNDER_PRESSURE,
        }
    }

    /// Says once that work is refused, and once that it no longer is: while it is,
    /// a line for each request would be the next thing that there is too much of.
    fn tell(&self, pressure: Pressure, told: &mut Pressure) {
        let (used, limit) = (self.0.figures.used(), self.0.figures.limit());
        if pressure >= Pressure::Refuse && *told < Pressure::Refuse {
            *told = pressure;
            tracing::warn!(
                used,
                limit,
                "memory is nearly used up: requests are refused and connections wait; \
                 give the proxy more (annotation bulkhead.io/proxy-memory-limit), or look for \
                 clients that send too much or read too slowly"
            );
        } else if pressure < Pressure::Reclaim && *told >= Pressure::Refuse {
            *told = pressure;
            tracing::info!(used, limit, "there is memory again: work is taken again");
        }
    }
}

/// Bytes that are set aside.
pub(crate) struct Reserved {
    budget: Budget,
    bytes: i64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.count(-self.bytes);
    }
}

thread_local! {
    /// The budget of the worker that this thread is.
    static WORKERS: RefCell<Option<Budget>> = const { RefCell::new(None) };
}

/// Makes a budget the one that this thread's reading is bound by.
pub(crate) fn bind_thread(budget: Budget) {
    WORKERS.set(Some(budget));
}

/// What there is to say of a connection that was ended at [`Pressure::Full`].
const USED_UP: &str = "the proxy's memory is used up";

/// Whether this thread may read what it has no memory for yet.
///
/// # Errors
/// `OutOfMemory`: the connection is to be ended.
pub(crate) fn may_grow() -> io::Result<()> {
    WORKERS.with_borrow(|budget| match budget {
        Some(budget) if budget.pressure() == Pressure::Full => {
            Err(io::Error::new(io::ErrorKind::OutOfMemory, USED_UP))
        }
        _ => Ok(()),
    })
}

/// What may wait in the kernel for each of this thread's sockets.
pub(crate) fn socket_buffers() -> SocketBuffers {
    SocketBuffers::within(WORKERS.with_borrow(|budget| budget.as_ref()?.limit()))
}

/// Whether this thread may keep memory that nothing is in.
pub(crate) fn may_keep() -> bool {
    let is_normal = |budget: &Budget| budget.0.figures.pressure() == Pressure::Normal;
    // A thread that is ending has no use for it.
    WORKERS
        .try_with(|budget| budget.borrow().as_ref().is_none_or(is_normal))
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    fn look(used: i64) -> Look {
        Look {
            limit: Some(100 * MIB as u64),
            used,
        }
    }

    #[test]
    fn pressure_rises_with_what_is_used() {
        for (used, pressure) in [
            (0, Pressure::Normal),
            (79, Pressure::Normal),
            (80, Pressure::Reclaim),
            (85, Pressure::Hold),
            (90, Pressure::Refuse),
            (95, Pressure::Shed),
            (98, Pressure::Full),
            (200, Pressure::Full),
        ] {
            assert_eq!(Pressure::of(used, 100), pressure, "{used}");
        }
        assert_eq!(
            Pressure::of(1 << 40, u64::MAX),
            Pressure::Normal,
            "no limit"
        );
    }

    #[test]
    fn what_grows_between_two_looks_counts_at_once() {
        let figures = Figures::new(look(10 * MIB), 2 * MIB);
        assert_eq!(figures.pressure(), Pressure::Normal);
        figures.counted.fetch_add(75 * MIB, Ordering::Relaxed);
        assert_eq!(figures.pressure(), Pressure::Hold);
        figures.counted.fetch_add(10 * MIB, Ordering::Relaxed);
        assert_eq!(figures.pressure(), Pressure::Shed);
        figures.counted.fetch_add(-85 * MIB, Ordering::Relaxed);
        assert_eq!(figures.used(), 10 * MIB as u64);
    }

    #[test]
    fn the_kernel_is_asked_again_when_much_has_grown_since() {
        let figures = Figures::new(look(10 * MIB), 2 * MIB);
        figures.counted.fetch_add(3 * MIB, Ordering::Relaxed);
        assert!(!figures.have_outgrown_the_last_look());
        figures.counted.fetch_add(MIB, Ordering::Relaxed);
        assert!(figures.have_outgrown_the_last_look());
        figures.take(look(16 * MIB));
        assert!(!figures.have_outgrown_the_last_look());
        assert_eq!(figures.used(), 16 * MIB as u64);
        figures.counted.fetch_add(-6 * MIB, Ordering::Relaxed);
        assert!(!figures.have_outgrown_the_last_look());
    }

    #[test]
    fn what_is_set_aside_counts_before_it_is_taken() {
        let budget = Budget::new(Some(1 << 40));
        let used = || budget.0.figures.used();
        let before = used();
        let reserved = budget.reserve(MIB);
        assert_eq!(used(), before + MIB as u64);
        drop(reserved);
        assert_eq!(used(), before);
    }

    #[test]
    fn what_the_heap_does_not_know_of_counts_with_the_next_look() {
        let figures = Figures::new(look(10 * MIB), 2 * MIB);
        figures.take(look(96 * MIB));
        assert_eq!(figures.pressure(), Pressure::Shed);
        figures.take(look(10 * MIB));
        assert_eq!(figures.pressure(), Pressure::Normal);
    }

    #[test]
    fn memory_that_was_given_out_and_not_written_to_is_not_forgotten() {
        let figures = Figures::new(look(10 * MIB), 2 * MIB);
        figures.counted.fetch_add(85 * MIB, Ordering::Relaxed);
        // Of which the kernel has seen nothing.
        figures.take(look(10 * MIB));
        assert_eq!(figures.pressure(), Pressure::Shed);
    }

    #[test]
    fn a_limit_that_is_raised_counts_from_the_next_look() {
        let figures = Figures::new(look(96 * MIB), 0);
        assert_eq!(figures.pressure(), Pressure::Shed);
        figures.take(Look {
            limit: Some(200 * MIB as u64),
            used: 96 * MIB,
        });
        assert_eq!(figures.pressure(), Pressure::Normal);
    }

    #[test]
    fn memory_beyond_the_limit_is_not_read_into() {
        assert!(may_grow().is_ok(), "a thread that is no worker");
        let budget = Budget::new(Some(1));
        bind_thread(budget.clone());
        let refused = may_grow().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
        budget.0.figures.limit.store(u64::MAX, Ordering::Relaxed);
        assert!(may_grow().is_ok());
    }

    #[test]
    fn a_larger_container_has_more_in_its_sockets() {
        let of = |mib: u64| SocketBuffers::within(Some(mib << 20));
        let small = SocketBuffers {
            receive: Some(32 << 10),
            unsent: 32 << 10,
        };
        assert_eq!(of(32), small);
        let usual = SocketBuffers {
            receive: None,
            unsent: 128 << 10,
        };
        assert_eq!(of(128), usual);
        assert_eq!(SocketBuffers::within(None), usual);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_room_goes_on_when_there_is_some() {
        let budget = Budget::new(Some(1));
        let given = budget.clone();
        let freed = async {
            sleep(LOOK_EVERY).await;
            assert!(given.refuses());
            given.0.figures.limit.store(u64::MAX, Ordering::Relaxed);
            given.0.looked.notify_waiters();
        };
        tokio::join!(budget.room(), freed);
    }
}
