//! The inbound connections of a worker, so that those which a new policy no
//! longer permits can be ended, and no others.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::{self, Connection, InboundPolicy};
use bulkhead_core::reason::Reason;

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
    revoked: Cell<Option<Reason>>,
    waker: RefCell<Option<Waker>>,
}

impl OpenConnections {
    /// Notes a connection for as long as the guard lives.
    pub(crate) fn add(&self, port: u16, peer: Option<SpiffeId>) -> Guard {
        let id = self.0.next.get();
        self.0.next.set(id + 1);
        let entry = Rc::new(Entry {
            port,
            peer,
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

    /// Decides again on every connection.
    pub(crate) fn reconsider(&self, policy: &InboundPolicy) {
        for entry in self.0.open.borrow().values() {
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

    #[tokio::test]
    async fn a_new_policy_ends_what_it_does_not_permit_and_nothing_else() {
        let open = OpenConnections::default();
        let peer = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
        let plain = open.add(80, None);
        let mutual = open.add(80, Some(peer));
        let elsewhere = open.add(81, None);
        let policy = InboundPolicy {
            mode: MtlsMode::Strict,
            port_modes: [(81, MtlsMode::Permissive)].into(),
            ..InboundPolicy::default()
        };
        let ended = async { plain.revoked().await };
        let reconsidered = async { open.reconsider(&policy) };
        let (reason, ()) = tokio::join!(ended, reconsidered);
        assert_eq!(reason, Reason::PlaintextRefused);
        assert_eq!(mutual.revoked().now_or_never(), None);
        assert_eq!(elsewhere.revoked().now_or_never(), None);
        drop((plain, mutual, elsewhere));
        assert!(open.0.open.borrow().is_empty());
    }
}
