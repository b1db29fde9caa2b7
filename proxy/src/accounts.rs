//! The connections of a worker and the memory that each of them holds, so that
//! memory can be had back from those that will miss it least.
//!
//! Whatever is done for a connection is done inside [`Account::meter`], which notes by
//! how much the thread's heap has grown meanwhile. Nobody else needs to know what a
//! library keeps for whom.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bulkhead_core::reason::Reason;
use bulkhead_runtime::drain;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};

use crate::budget::{Budget, Pressure, Reserved, SOCKETS, heap};
use crate::failure::Failure;

/// How long a connection must have been idle to be closed for its memory: a client
/// in the midst of its work has its next request ready sooner.
const IDLE: Duration = Duration::from_secs(1);
/// How long a connection may hold on to memory that others wait for without finishing
/// anything, and for how long requests are refused before it is ended for them even if
/// it just did. It may be about to give it back; else it would keep everybody out for
/// ever.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is added to the time for which somebody has finished nothing: among those who
/// all just did, the one that holds the most is the first to be ended.
const JUST_NOW: Duration = Duration::from_millis(20);
/// The same for those who never finished anything: they may be about to, but others are
/// known to, also where the machine is so busy that they are slow.
const NEVER: Duration = Duration::from_secs(5);
/// What a connection holds that does what nearly all do: buffers both ways, TLS and its
/// sockets. Among those that hold no more, only time counts: a handshake would else be
/// ended for many who hold on to little.
const ORDINARY: u64 = 96 * 1024;
/// What is set aside for a request until its response begins: a connection to the server
/// and what is kept of both messages. A client can begin hundreds in one moment, each of
/// which finds that there is memory, before the first of them has taken its own.
const REQUEST: i64 = 16 * 1024;
/// The part of the idle connections that is closed at once, before the kernel is asked
/// again what that gave back.
const CLOSED_AT_ONCE: usize = 8;

/// The open connections of one worker. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Accounts(Rc<Shared>);

struct Shared {
    budget: Budget,
    next: Cell<u64>,
    open: RefCell<HashMap<u64, Account>>,
}

/// What one client's connection holds, and what is asked of it. Cheap to clone; all
/// clones are one.
#[derive(Clone)]
pub(crate) struct Account(Rc<Entry>);

struct Entry {
    budget: Budget,
    held: Cell<i64>,
    /// Requests in hand, or one for whatever else it is busy with.
    busy: Cell<usize>,
    idle_since: Cell<Option<Instant>>,
    /// Requests of whose answer the client has seen nothing.
    unanswered: Cell<usize>,
    began: Instant,
    /// When the last request was finished.
    finished: Cell<Option<Instant>>,
    notice: Cell<Option<Notice>>,
    waker: RefCell<Option<Waker>>,
}

/// On what terms a connection is served.
#[derive(Clone)]
pub(crate) struct Terms {
    /// Until this has started.
    pub(crate) drain: drain::Watch,
    /// Until then, where there is an age that no connection is to exceed.
    pub(crate) until: Option<Instant>,
    pub(crate) account: Account,
}

impl Terms {
    /// Whether the client is to send what comes next on another connection.
    pub(crate) fn have_ended(&self) -> bool {
        self.drain.is_started() || self.until.is_some_and(|until| until <= Instant::now())
    }

    /// Waits until it is to.
    pub(crate) async fn end(&mut self) {
        let age = async {
            match self.until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.drain.started() => {}
            () = age => {}
        }
    }
}

/// What a connection is asked to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
enum Notice {
    /// To close if it has nothing in hand.
    Close,
    /// The same, and to say why to a client that waits for its answer to begin.
    Answer,
    /// To end, whatever it has in hand.
    End,
}

impl Accounts {
    pub(crate) fn new(budget: Budget) -> Self {
        Self(Rc::new(Shared {
            budget,
            next: Cell::new(0),
            open: RefCell::default(),
        }))
    }

    /// Opens an account for a connection, for as long as the guard lives.
    pub(crate) fn open(&self) -> Open {
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        let account = Account(Rc::new(Entry {
            budget: self.0.budget.clone(),
            held: Cell::new(SOCKETS),
            busy: Cell::new(0),
            idle_since: Cell::new(None),
            unanswered: Cell::new(0),
            began: Instant::now(),
            finished: Cell::new(None),
            notice: Cell::new(None),
            waker: RefCell::default(),
        }));
        self.0.open.borrow_mut().insert(number, account.clone());
        Open {
            number,
            account,
            accounts: self.clone(),
            _sockets: self.0.budget.reserve(SOCKETS),
        }
    }

    /// Serves a connection in a task of its own.
    pub(crate) fn serve<F>(&self, drain: drain::Watch, serve: impl FnOnce(Terms) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let open = self.open();
        let account = open.account.clone();
        let served = serve(Terms {
            drain,
            until: None,
            account: account.clone(),
        });
        let served = account.meter(served);
        spawn_local(async move {
            served.await;
            drop(open);
        });
    }

    /// Sees to it that memory is given back while there is too little, for ever.
    /// `give_back` gives back what belongs to no client's connection.
    pub(crate) async fn follow(&self, give_back: impl Fn()) {
        let mut refusing_since = None;
        loop {
            self.0.budget.looked().await;
            let (pressure, now) = (self.0.budget.pressure(), Instant::now());
            if pressure >= Pressure::Reclaim {
                give_back();
                self.close_idle(now);
            }
            if pressure < Pressure::Refuse {
                refusing_since = None;
            }
            let patience = match pressure {
                Pressure::Normal | Pressure::Reclaim => continue,
                Pressure::Hold => PATIENCE,
                Pressure::Refuse => {
                    let since = *refusing_since.get_or_insert(now);
                    PATIENCE.saturating_sub(now.duration_since(since))
                }
                Pressure::Shed | Pressure::Full => Duration::ZERO,
            };
            let budget = &self.0.budget;
            self.end_costliest(budget.excess(), budget.in_kernel(), patience, now);
        }
    }

    /// Asks those to close that have been idle for longest.
    fn close_idle(&self, now: Instant) {
        let open = self.0.open.borrow();
        let mut idle: Vec<_> = open
            .values()
            .filter_map(|account| Some((account.idle_since(now)?, account)))
            .collect();
        idle.sort_unstable_by_key(|(since, _)| *since);
        let count = idle.len().div_ceil(CLOSED_AT_ONCE);
        for (_, account) in &idle[..count] {
            account.ask(Notice::Close);
        }
    }

    /// Ends the connections that cost the most, of those that have finished nothing for so
    /// long, until that many bytes are had back; none where all connections together do not
    /// hold as much, and something else is what is too large. What the kernel holds for
    /// them, each is taken to have a like part in.
    ///
    /// What a connection costs is what it holds, where that is more than ordinary, by the
    /// time for which it has been of no use to anybody: one that reads nothing pays for
    /// what waits to be read, not one that holds more for a moment, and has its answer and
    /// gives it back.
    fn end_costliest(&self, mut bytes: u64, in_kernel: u64, patience: Duration, now: Instant) {
        let open = self.0.open.borrow();
        let part = in_kernel / (open.len() as u64).max(1);
        let held = |account: &Account| account.held() + part;
        if open.values().map(held).sum::<u64>() < bytes {
            return;
        }
        let has_had_its_time = |account: &&Account| account.fruitless(now) >= patience;
        let mut costliest: Vec<_> = open.values().filter(has_had_its_time).collect();
        let cost =
            |account: &&Account| u128::from(held(account).max(ORDINARY)) * account.weight(now);
        costliest.sort_by_cached_key(|account| std::cmp::Reverse(cost(account)));
        for account in costliest {
            if bytes == 0 {
                return;
            }
            account.end();
            bytes = bytes.saturating_sub(held(account));
        }
    }
}

/// A connection's entry among the others.
pub(crate) struct Open {
    number: u64,
    pub(crate) account: Account,
    accounts: Accounts,
    _sockets: Reserved,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.accounts.0.open.borrow_mut().remove(&self.number);
    }
}

impl Account {
    /// Does something on behalf of the connection.
    pub(crate) fn meter<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        let mut work = Box::pin(work);
        let account = self.clone();
        poll_fn(move |cx| {
            let before = heap::held();
            let polled = work.as_mut().poll(cx);
            let held = &account.0.held;
            held.set(held.get() + heap::held() - before);
            polled
        })
    }

    /// Whether nothing new is to be begun, as an answer to who asks for it.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.0.budget.refuses() {
            return Err(overloaded("a request came while memory was used up"));
        }
        Ok(())
    }

    /// The process's limit, where there is one.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.0.budget.limit()
    }

    /// Says that the connection is not idle while the guard lives.
    pub(crate) fn busy(&self) -> Busy {
        self.0.busy.set(self.0.busy.get() + 1);
        self.0.idle_since.set(None);
        Busy(self.clone())
    }

    /// Waits until the connection is to close because it is idle and memory is short.
    pub(crate) async fn asked_to_close(&self) {
        self.noticed(Notice::Close).await;
    }

    /// Waits until the connection is to end because it holds too much.
    pub(crate) async fn ended(&self) -> Failure {
        self.noticed(Notice::End).await;
        held_the_most()
    }

    /// Notes that the client waits for an answer, until it sees something of it.
    pub(crate) fn waiting(&self) -> Waiting {
        self.0.unanswered.set(self.0.unanswered.get() + 1);
        Waiting {
            account: self.clone(),
            reserved: RefCell::new(Some(self.0.budget.reserve(REQUEST))),
        }
    }

    /// Waits until the client is to be told that memory is short instead of the answer
    /// that it waits for.
    pub(crate) async fn asked_to_answer(&self) -> Failure {
        poll_fn(|cx| self.poll_noticed(cx, Notice::Answer, self.is_unanswered())).await;
        held_the_most()
    }

    /// Whether the client waits for all that is in hand: an answer to it then gives back
    /// nearly all that the connection holds, and where one has begun, that holds the most.
    fn is_unanswered(&self) -> bool {
        let unanswered = self.0.unanswered.get();
        unanswered > 0 && unanswered == self.0.busy.get()
    }

    /// To be waited for by the one task that serves the connection.
    async fn noticed(&self, notice: Notice) {
        poll_fn(|cx| self.poll_noticed(cx, notice, true)).await;
    }

    fn poll_noticed(&self, cx: &Context<'_>, notice: Notice, may_heed: bool) -> Poll<()> {
        if may_heed && self.0.notice.get() >= Some(notice) {
            return Poll::Ready(());
        }
        let mut waker = self.0.waker.borrow_mut();
        let known = waker.as_ref();
        if !known.is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn ask(&self, notice: Notice) {
        if self.0.notice.get() >= Some(notice) {
            return;
        }
        self.0.notice.set(Some(notice));
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }

    fn held(&self) -> u64 {
        u64::try_from(self.0.held.get()).unwrap_or(0)
    }

    /// Notes that the connection has been of use.
    pub(crate) fn finished_request(&self) {
        self.0.finished.set(Some(Instant::now()));
    }

    /// For how long it has finished nothing.
    fn fruitless(&self, now: Instant) -> Duration {
        let last = self.0.finished.get().unwrap_or(self.0.began);
        now.duration_since(last)
    }

    /// The same for the comparison with others, in milliseconds.
    fn weight(&self, now: Instant) -> u128 {
        let grace = match self.0.finished.get() {
            Some(_) => JUST_NOW,
            None => NEVER,
        };
        (self.fruitless(now) + grace).as_millis()
    }

    /// Ends it: in good order where it has nothing in hand, with an answer where that has
    /// not begun; and as it is where it was asked before.
    fn end(&self) {
        let is_idle = self.0.idle_since.get().is_some();
        let notice = match self.0.notice.get() {
            None if is_idle => Notice::Close,
            None | Some(Notice::Close) if self.is_unanswered() => Notice::Answer,
            _ => Notice::End,
        };
        self.ask(notice);
    }

    /// Since when, where that is long enough.
    fn idle_since(&self, now: Instant) -> Option<Instant> {
        let since = self.0.idle_since.get()?;
        (now.duration_since(since) >= IDLE && self.0.notice.get().is_none()).then_some(since)
    }
}

/// A connection has something in hand.
pub(crate) struct Busy(Account);

impl Busy {
    /// Notes that what was in hand has been of use.
    pub(crate) fn finished_request(&self) {
        self.0.finished_request();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let entry = &self.0.0;
        let now = Instant::now();
        entry.busy.set(entry.busy.get() - 1);
        if entry.busy.get() == 0 {
            entry.idle_since.set(Some(now));
        }
    }
}

/// A client waits for an answer of which it has seen nothing, and which can still be
/// another one.
pub(crate) struct Waiting {
    account: Account,
    /// What it takes until there is a response.
    reserved: RefCell<Option<Reserved>>,
}

impl Waiting {
    /// Notes that the client is about to see the beginning.
    pub(crate) fn ends(&self) {
        if self.reserved.take().is_some() {
            let unanswered = &self.account.0.unanswered;
            unanswered.set(unanswered.get() - 1);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.ends();
    }
}

pub(crate) fn held_the_most() -> Failure {
    overloaded("it held the most when memory was used up")
}

pub(crate) fn overloaded(detail: &str) -> Failure {
    Failure::new(Reason::Overloaded, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use tokio::time::advance;

    fn accounts() -> Accounts {
        Accounts::new(Budget::new(None))
    }

    fn is_asked(open: &Open) -> bool {
        open.account.asked_to_close().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_have_been_idle_for_longest_are_closed_first() {
        let accounts = accounts();
        let mut open = Vec::new();
        for _ in 0..2 * CLOSED_AT_ONCE {
            let connection = accounts.open();
            drop(connection.account.busy());
            open.push(connection);
            advance(IDLE).await;
        }
        let busy = open[0].account.busy();
        accounts.close_idle(Instant::now());
        let asked: Vec<_> = open.iter().map(is_asked).collect();
        assert!(!asked[0], "it has something in hand");
        assert_eq!(asked[1..].iter().position(|asked| !asked), Some(2));
        drop(busy);
        assert!(open[0].account.idle_since(Instant::now()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_just_answered_is_not_idle() {
        let accounts = accounts();
        let open = accounts.open();
        drop(open.account.busy());
        advance(IDLE / 2).await;
        accounts.close_idle(Instant::now());
        assert!(!is_asked(&open));
    }

    #[tokio::test]
    async fn among_equals_those_that_hold_the_most_are_ended_and_no_more_than_needed() {
        let accounts = accounts();
        let open: Vec<_> = [5, 40, 30, 20]
            .map(|held| {
                let open = accounts.open();
                open.account.0.held.set(held * ORDINARY.cast_signed());
                open
            })
            .into();
        accounts.end_costliest(50 * ORDINARY, 0, Duration::ZERO, Instant::now());
        let ended = open.iter().map(|open| open.account.ended().now_or_never());
        let ended: Vec<_> = ended.map(|ended| ended.is_some()).collect();
        assert_eq!(ended, [false, true, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn among_those_that_hold_no_more_than_is_ordinary_the_oldest_is_ended() {
        let accounts = accounts();
        let holds_on = accounts.open();
        advance(IDLE).await;
        let shakes_hands = accounts.open();
        shakes_hands.account.0.held.set(ORDINARY.cast_signed());
        accounts.end_costliest(1, 0, Duration::ZERO, Instant::now());
        let is_ended = |open: &Open| open.account.ended().now_or_never().is_some();
        assert_eq!([&holds_on, &shakes_hands].map(is_ended), [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_served_is_not_ended_for_those_who_only_hold_on() {
        let accounts = accounts();
        let [served, holds_on] = [40_000, 5_000].map(|held| {
            let open = accounts.open();
            open.account.0.held.set(held);
            open
        });
        advance(IDLE * 10).await;
        served.account.finished_request();
        accounts.end_costliest(1, 0, PATIENCE, Instant::now());
        let is_ended = |open: &Open| open.account.ended().now_or_never().is_some();
        assert_eq!([&served, &holds_on].map(is_ended), [false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_finishes_something_now_and_then_is_not_ended_while_others_only_wait() {
        let accounts = accounts();
        let open = accounts.open();
        let is_ended = || open.account.ended().now_or_never().is_some();
        for _ in 0..3 {
            advance(PATIENCE / 2).await;
            accounts.end_costliest(1, 0, PATIENCE, Instant::now());
            assert!(!is_ended());
            open.account.finished_request();
        }
        let busy = open.account.busy();
        advance(PATIENCE).await;
        accounts.end_costliest(1, 0, PATIENCE, Instant::now());
        assert!(is_ended());
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_asked_to_close_before_it_is_ended() {
        let accounts = accounts();
        let open = accounts.open();
        drop(open.account.busy());
        let is_ended = || open.account.ended().now_or_never().is_some();
        accounts.end_costliest(1, 0, Duration::ZERO, Instant::now());
        assert!(is_asked(&open) && !is_ended());
        accounts.end_costliest(1, 0, Duration::ZERO, Instant::now());
        assert!(is_ended(), "it has not closed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_its_answer_is_told_before_its_connection_is_ended() {
        let accounts = accounts();
        let open = accounts.open();
        let _busy = open.account.busy();
        let is_told = || open.account.asked_to_answer().now_or_never().is_some();
        let is_ended = || open.account.ended().now_or_never().is_some();
        let waiting = open.account.waiting();
        accounts.end_costliest(1, 0, Duration::ZERO, Instant::now());
        assert!(is_told() && !is_ended());
        waiting.ends();
        assert!(!is_told(), "its answer came first, and can be no other now");
        accounts.end_costliest(1, 0, Duration::ZERO, Instant::now());
        assert!(is_ended(), "it still holds as much");
    }

    #[tokio::test]
    async fn a_connection_one_of_whose_answers_has_begun_is_ended_at_once() {
        let accounts = accounts();
        let open = accounts.open();
        let [_begun, _other] = [(); 2].map(|()| open.account.busy());
        let _waiting = open.account.waiting();
        accounts.end_costliest(1, 0, Duration::ZERO, Instant::now());
        assert!(open.account.ended().now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_the_kernel_holds_is_had_back_from_all_alike() {
        let accounts = accounts();
        let open: Vec<_> = (0..4).map(|_| accounts.open()).collect();
        accounts.end_costliest(150 << 10, 400 << 10, Duration::ZERO, Instant::now());
        let is_ended = |open: &&Open| open.account.ended().now_or_never().is_some();
        assert_eq!(open.iter().filter(is_ended).count(), 2);
    }

    #[tokio::test]
    async fn no_connection_is_ended_for_what_none_of_them_holds() {
        let accounts = accounts();
        let open = accounts.open();
        accounts.end_costliest(1 << 20, 0, Duration::ZERO, Instant::now());
        assert!(open.account.ended().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_closed_connection_leaves_nothing_behind() {
        let accounts = accounts();
        drop(accounts.open());
        assert!(accounts.0.open.borrow().is_empty());
    }
}
