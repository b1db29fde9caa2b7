//! Who is served next, and who is told to come again: work for which callers
//! wait in lines of their own ([`schedule`]), and moments to come back at
//! ([`comeback`]).
//!
//! ```text
//!  turn(caller, urgency) ─▶ waits ─▶ Turn ── dropped ─▶ the next one's
//!            │                └─ dropped: leaves the line
//!            └─▶ Busy { retry_after }
//! ```
//!
//! A [`Turn`] that ends is given on by a task of the queue's own. It runs after
//! all tasks that were ready before it, so that on a core where signing takes
//! all the time those who arrived meanwhile are in line before the next turn is
//! given: without that, turns would go in the order in which sockets are read.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bulkhead_runtime::tasks::Tasks;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use comeback::Comeback;
use schedule::{Entered, Schedule, Ticket};

pub mod comeback;
pub mod schedule;

pub use schedule::{Limits, Urgency};

/// What tells callers apart.
pub trait Key: Clone + Ord + fmt::Debug + Send + 'static {}

impl<T: Clone + Ord + fmt::Debug + Send + 'static> Key for T {}

/// A queue. Clones are the same one.
pub struct FairQueue<K: Key>(Arc<Shared<K>>);

struct Shared<K: Key> {
    /// How long anybody waits.
    patience: Duration,
    state: Mutex<State<K>>,
    /// Turns ended, or the queue is gone.
    ended: Arc<Notify>,
}

struct State<K> {
    schedule: Schedule<K>,
    comeback: Comeback,
    waiting: HashMap<u64, oneshot::Sender<Granted>>,
    /// Whose turns have ended since turns were last given.
    ended: Vec<K>,
}

/// What somebody who waits is told.
enum Granted {
    Turn,
    /// Somebody else took the place to wait.
    Displaced,
}

/// How full a queue is.
#[derive(Clone, Debug, PartialEq)]
pub struct Load<K> {
    pub waiting: usize,
    pub in_service: usize,
    /// Turns a second, as far as is known.
    pub pace: f64,
    /// The longest lines.
    pub longest: Vec<(K, usize)>,
}

impl<K: Key> FairQueue<K> {
    /// A queue in which nobody waits for longer than `patience`. What gives the
    /// turns is one of `tasks`, by this name.
    pub fn start(name: &'static str, limits: Limits, patience: Duration, tasks: &Tasks) -> Self {
        let ended = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            patience,
            state: Mutex::new(State {
                schedule: Schedule::new(limits),
                comeback: Comeback::new(Instant::now()),
                waiting: HashMap::new(),
                ended: Vec::new(),
            }),
            ended: Arc::clone(&ended),
        });
        tasks.spawn(name, give_turns(Arc::downgrade(&shared), ended));
        Self(shared)
    }

    /// Waits for a turn. Whoever stops waiting leaves the line.
    pub async fn turn(&self, caller: K, urgency: Urgency) -> Result<Turn<K>, Busy> {
        let mut place = match self.0.enter(caller, urgency)? {
            Place::Turn(turn) => return Ok(turn),
            Place::Waits(place) => place,
        };
        match tokio::time::timeout(self.0.patience, &mut place.granted).await {
            Ok(Ok(Granted::Turn)) => Ok(place.into_turn()),
            Ok(Ok(Granted::Displaced) | Err(_)) => Err(self.0.busy(Why::Displaced)),
            Err(_) => Err(self.0.busy(Why::Patience)),
        }
    }

    /// How full it is, with so many of the longest lines.
    pub fn load(&self, longest: usize) -> Load<K> {
        let state = self.0.state();
        Load {
            waiting: state.schedule.waiting(),
            in_service: state.schedule.in_service(),
            pace: state.comeback.pace(),
            longest: state.schedule.longest(longest),
        }
    }
}

impl<K: Key> Clone for FairQueue<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Key> fmt::Debug for FairQueue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FairQueue({:?})", self.load(0))
    }
}

/// What becomes of somebody who comes.
enum Place<K: Key> {
    Turn(Turn<K>),
    Waits(Waiting<K>),
}

impl<K: Key> Shared<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, caller: K, urgency: Urgency) -> Result<Place<K>, Busy> {
        let mut state = self.state();
        let Entered::Waits { ticket, displaced } = state.schedule.enter(caller, urgency) else {
            drop(state);
            return Err(self.busy(Why::Full));
        };
        if let Some(displaced) = displaced
            && let Some(waiting) = state.waiting.remove(&displaced.number)
        {
            // Whoever does not listen any more has left.
            let _ = waiting.send(Granted::Displaced);
        }
        // Whoever waits already does so because none of the free places is for
        // it; one of them may be for the newcomer.
        if let Some(served) = state.schedule.take() {
            if served.number == ticket.number {
                return Ok(Place::Turn(Turn {
                    caller: Some(served.caller),
                    queue: Arc::clone(self),
                }));
            }
            state.grant(&served);
        }
        let (granted, receiver) = oneshot::channel();
        state.waiting.insert(ticket.number, granted);
        Ok(Place::Waits(Waiting {
            ticket: Some(ticket),
            granted: receiver,
            queue: Arc::clone(self),
        }))
    }

    fn busy(&self, why: Why) -> Busy {
        let mut state = self.state();
        let waiting = state.schedule.waiting();
        Busy {
            why,
            retry_after: state.comeback.delay(Instant::now(), waiting),
        }
    }

    /// Takes the turns that ended, and gives them to the next.
    fn give_turns(&self) {
        let mut state = self.state();
        let now = Instant::now();
        for caller in std::mem::take(&mut state.ended) {
            state.schedule.finish(&caller);
            let somebody_waits = state.schedule.waiting() > 0;
            state.comeback.served(now, somebody_waits);
        }
        // Whoever would wait for longer than anybody does is told so at once.
        let most = state.comeback.turns_in(self.patience);
        state.schedule.let_wait(most);
        while let Some(ticket) = state.schedule.take() {
            state.grant(&ticket);
        }
    }
}

impl<K: Key> State<K> {
    /// Gives a turn to whoever waits for it.
    fn grant(&mut self, ticket: &Ticket<K>) {
        let waiting = self.waiting.remove(&ticket.number);
        // Whoever leaves is taken off the schedule before it stops to listen; if
        // it does so at this very moment, the turn ends.
        let listens = waiting.is_some_and(|waiting| waiting.send(Granted::Turn).is_ok());
        if !listens {
            self.schedule.finish(&ticket.caller);
        }
    }
}

impl<K: Key> Drop for Shared<K> {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

async fn give_turns<K: Key>(queue: Weak<Shared<K>>, ended: Arc<Notify>) {
    loop {
        ended.notified().await;
        match queue.upgrade() {
            Some(queue) => queue.give_turns(),
            None => return,
        }
    }
}

/// A place in the line.
struct Waiting<K: Key> {
    ticket: Option<Ticket<K>>,
    granted: oneshot::Receiver<Granted>,
    queue: Arc<Shared<K>>,
}

impl<K: Key> Waiting<K> {
    fn into_turn(mut self) -> Turn<K> {
        Turn {
            caller: self.ticket.take().map(|ticket| ticket.caller),
            queue: Arc::clone(&self.queue),
        }
    }
}

impl<K: Key> Drop for Waiting<K> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let mut state = self.queue.state();
        state.waiting.remove(&ticket.number);
        // A turn that was given and not taken any more is over.
        let is_ours =
            !state.schedule.leave(&ticket) && matches!(self.granted.try_recv(), Ok(Granted::Turn));
        if is_ours {
            state.ended.push(ticket.caller);
            self.queue.ended.notify_one();
        }
    }
}

/// Somebody's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn<K: Key> {
    caller: Option<K>,
    queue: Arc<Shared<K>>,
}

impl<K: Key> Drop for Turn<K> {
    fn drop(&mut self) {
        if let Some(caller) = self.caller.take() {
            self.queue.state().ended.push(caller);
            self.queue.ended.notify_one();
        }
    }
}

impl<K: Key> fmt::Debug for Shared<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state().schedule)
    }
}

/// There is more to do than can be done; the caller should come again.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{why}; the caller was told to come again in {retry_after:?}")]
pub struct Busy {
    pub why: Why,
    pub retry_after: Duration,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Why {
    #[error("too many calls wait, or too many of this caller")]
    Full,
    #[error("too many calls wait, and others have waited for less, or are more urgent")]
    Displaced,
    #[error("the call waited too long for its turn")]
    Patience,
}

impl Why {
    /// A stable word for logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Full => "queue_full",
            Self::Displaced => "queue_displaced",
            Self::Patience => "queue_timeout",
        }
    }
}

#[cfg(test)]
mod tests;
