//! The inbound connections of a worker, so that those which a new policy no
//! longer permits can be ended, and no others.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bulkhead_core::discovery::BypassPhase;
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::{self, Connection, InboundPolicy};
use bulkhead_core::reason::Reason;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How long a connection that a bypass let in may live on after its end, where
/// policy does not permit it: long enough that no client notices whose requests
/// are short and whose connections come and go.
pub(crate) const BYPASS_GRACE: Duration = Duration::from_secs(60);

/// The connections that were permitted and are still there.
#[derive(Clone, Default)]
pub(crate) struct OpenConnections(Rc<Shared>);

#[derive(Default)]
struct Shared {
    next: Cell<u64>,
    open: RefCell<HashMap<u64, Rc<Entry>>>,
}

struct Entry {
    port: u16,
    peer: Option<SpiffeId>,
    admitted: Admitted,
    revoked: Cell<Option<Reason>>,
    waker: RefCell<Option<Waker>>,
}

/// What let a connection in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Admitted {
    ByPolicy,
    /// Policy was off, and nobody knows what it would have said.
    ByBypass,
}

impl OpenConnections {
    /// Notes a connection for as long as the guard lives.
    pub(crate) fn add(&self, port: u16, peer: Option<SpiffeId>, admitted: Admitted) -> Guard {
        let id = self.0.next.get();
        self.0.next.set(id + 1);
        let entry = Rc::new(Entry {
            port,
            peer,
            admitted,
            revoked: Cell::new(None),
            waker: RefCell::default(),
        });
        self.0.open.borrow_mut().insert(id, Rc::clone(&entry));
        Guard {
            id,
            entry,
            open: self.clone(),
        }
    }

    /// Ends what policy no longer permits, for ever. During a bypass policy is
    /// off, and what came in then has [`BYPASS_GRACE`] after it.
    pub(crate) async fn follow(
        &self,
        mut policies: watch::Receiver<Arc<InboundPolicy>>,
        mut phases: watch::Receiver<BypassPhase>,
    ) {
        let mut is_aside = *phases.borrow_and_update() > BypassPhase::Off;
        let mut grace_ends: Option<Instant> = None;
        let mut may_change = true;
        loop {
            tokio::select! {
                changed = policies.changed(), if may_change => may_change = changed.is_ok(),
                changed = phases.changed() => if changed.is_err() { return },
                () = sleep_until(grace_ends.unwrap_or_else(Instant::now)), if grace_ends.is_some() => {}
            }
            let policy = Arc::clone(&policies.borrow_and_update());
            let was_aside = is_aside;
            is_aside = *phases.borrow_and_update() > BypassPhase::Off;
            if is_aside {
                grace_ends = None;
                continue;
            }
            if was_aside {
                grace_ends = Some(Instant::now() + BYPASS_GRACE);
            }
            grace_ends = grace_ends.filter(|end| *end > Instant::now());
            self.reconsider(&policy, grace_ends.is_some());
        }
    }

    /// Decides again on every connection, or on all but those that a bypass let
    /// in.
    fn reconsider(&self, policy: &InboundPolicy, spares_bypassed: bool) {
        let open = self.0.open.borrow();
        let concerned = open
            .values()
            .filter(|entry| !(spares_bypassed && entry.admitted == Admitted::ByBypass));
        for entry in concerned {
            let connection = Connection {
                port: entry.port,
                peer: entry.peer.as_ref(),
            };
            if let Err(reason) = policy::decide(policy, connection) {
                entry.revoked.set(Some(reason));
                if let Some(waker) = entry.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// A connection that was permitted.
pub(crate) struct Guard {
    id: u64,
    entry: Rc<Entry>,
    open: OpenConnections,
}

impl Guard {
    /// Waits until the connection is no longer permitted, and says why. To be
    /// waited for beside the connection's work, at the price of a glance.
    pub(crate) async fn revoked(&self) -> Reason {
        poll_fn(|cx| {
            if let Some(reason) = self.entry.revoked.get() {
                return Poll::Ready(reason);
            }
            let mut waker = self.entry.waker.borrow_mut();
            if !waker
                .as_ref()
                .is_some_and(|known| known.will_wake(cx.waker()))
            {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.open.0.open.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::policy::MtlsMode;
    use futures::FutureExt as _;
    use tokio::time::sleep;

    const SHORTLY: Duration = Duration::from_millis(1);

    fn policy(mode: MtlsMode) -> Arc<InboundPolicy> {
        Arc::new(InboundPolicy {
            mode,
            port_modes: [(81, MtlsMode::Permissive)].into(),
            ..InboundPolicy::default()
        })
    }

    fn ended(connection: &Guard) -> Option<Reason> {
        connection.revoked().now_or_never()
    }

    /// Does something while policy and bypass are followed.
    async fn followed<T>(
        open: &OpenConnections,
        policies: &watch::Sender<Arc<InboundPolicy>>,
        phases: &watch::Sender<BypassPhase>,
        scenario: impl Future<Output = T>,
    ) -> T {
        tokio::select! {
            () = open.follow(policies.subscribe(), phases.subscribe()) => panic!("for ever"),
            done = scenario => done,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_policy_ends_what_it_does_not_permit_and_nothing_else() {
        let open = OpenConnections::default();
        let peer = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
        let plain = open.add(80, None, Admitted::ByPolicy);
        let mutual = open.add(80, Some(peer), Admitted::ByPolicy);
        let elsewhere = open.add(81, None, Admitted::ByPolicy);
        let policies = watch::Sender::new(policy(MtlsMode::Permissive));
        let phases = watch::Sender::default();
        followed(&open, &policies, &phases, async {
            sleep(SHORTLY).await;
            policies.send_replace(policy(MtlsMode::Strict));
            assert_eq!(plain.revoked().await, Reason::PlaintextRefused);
            assert_eq!(ended(&mutual), None);
            assert_eq!(ended(&elsewhere), None);
        })
        .await;
        drop((plain, mutual, elsewhere));
        assert!(open.0.open.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_bypass_let_in_ends_a_while_after_it_where_policy_does_not_permit_it() {
        let open = OpenConnections::default();
        let policies = watch::Sender::new(policy(MtlsMode::Strict));
        let phases = watch::Sender::new(BypassPhase::Forward);
        let plain = open.add(80, None, Admitted::ByBypass);
        let permitted = open.add(81, None, Admitted::ByBypass);
        followed(&open, &policies, &phases, async {
            policies.send_replace(policy(MtlsMode::Strict));
            sleep(2 * BYPASS_GRACE).await;
            assert_eq!(ended(&plain), None, "policy is off");

            phases.send_replace(BypassPhase::Accept);
            sleep(2 * BYPASS_GRACE).await;
            assert_eq!(ended(&plain), None, "policy is off still");

            phases.send_replace(BypassPhase::Off);
            sleep(BYPASS_GRACE - SHORTLY).await;
            policies.send_replace(policy(MtlsMode::Strict));
            assert_eq!(ended(&plain), None, "it has its grace");
            sleep(2 * SHORTLY).await;
            assert_eq!(ended(&plain), Some(Reason::PlaintextRefused));
            assert_eq!(ended(&permitted), None);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_changed_during_a_bypass_counts_at_its_end_for_older_connections() {
        let open = OpenConnections::default();
        let policies = watch::Sender::new(policy(MtlsMode::Permissive));
        let phases = watch::Sender::new(BypassPhase::Forward);
        let older = open.add(80, None, Admitted::ByPolicy);
        let newer = open.add(80, None, Admitted::ByBypass);
        followed(&open, &policies, &phases, async {
            policies.send_replace(policy(MtlsMode::Strict));
            sleep(SHORTLY).await;
            assert_eq!(ended(&older), None, "policy is off");
            phases.send_replace(BypassPhase::Off);
            sleep(SHORTLY).await;
            assert_eq!(ended(&older), Some(Reason::PlaintextRefused));
            assert_eq!(ended(&newer), None, "it has its grace");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_bypass_that_begins_again_takes_the_end_back_also_where_policy_never_changes() {
        let open = OpenConnections::default();
        let (policies, _) = watch::channel(policy(MtlsMode::Strict));
        let followed_policies = policies.subscribe();
        drop(policies);
        let phases = watch::Sender::new(BypassPhase::Forward);
        let plain = open.add(80, None, Admitted::ByBypass);
        let scenario = async {
            sleep(SHORTLY).await;
            phases.send_replace(BypassPhase::Off);
            sleep(BYPASS_GRACE / 2).await;
            phases.send_replace(BypassPhase::Accept);
            sleep(2 * BYPASS_GRACE).await;
            assert_eq!(ended(&plain), None);
            phases.send_replace(BypassPhase::Off);
            sleep(BYPASS_GRACE + SHORTLY).await;
            assert_eq!(ended(&plain), Some(Reason::PlaintextRefused));
        };
        tokio::select! {
            () = open.follow(followed_policies, phases.subscribe()) => panic!("for ever"),
            () = scenario => {}
        }
    }
}
