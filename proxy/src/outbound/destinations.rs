//! The destinations that a worker's connections go to, by address.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::discovery::Directory;
use crate::upstream::{Upstream, Worker};

/// How long a destination is kept that nothing goes to.
const IDLE: Duration = Duration::from_secs(600);
/// The same where there are too many.
const IDLE_WHEN_CROWDED: Duration = Duration::from_secs(10);

/// A worker's own view of the directory, with its connections.
pub(crate) struct Destinations {
    worker: Rc<Worker>,
    directory: Directory,
    known: RefCell<HashMap<SocketAddr, Entry>>,
}

struct Entry {
    upstream: Rc<Upstream>,
    used: Instant,
}

impl Destinations {
    pub(crate) fn new(worker: Rc<Worker>, directory: Directory) -> Self {
        Self {
            worker,
            directory,
            known: RefCell::default(),
        }
    }

    /// Where connections to an address go. One that is dialled for the first
    /// time is asked about.
    pub(crate) async fn get(&self, address: SocketAddr) -> Rc<Upstream> {
        if self.worker.bypass.forwards() {
            return self.as_it_is(address);
        }
        let upstream = match self.find(address) {
            Some(upstream) => upstream,
            None => match self.ask(address) {
                Some(upstream) => upstream,
                None => return self.as_it_is(address),
            },
        };
        if !upstream.is_known() {
            self.directory.first_answer(&upstream).await;
        }
        upstream
    }

    fn find(&self, address: SocketAddr) -> Option<Rc<Upstream>> {
        let mut known = self.known.borrow_mut();
        let entry = known.get_mut(&address)?;
        entry.used = Instant::now();
        Some(Rc::clone(&entry.upstream))
    }

    fn ask(&self, address: SocketAddr) -> Option<Rc<Upstream>> {
        let source = self.directory.watch(address).or_else(|| {
            self.forget(IDLE_WHEN_CROWDED);
            self.directory.watch(address)
        })?;
        let upstream = Rc::new(Upstream::new(
            Rc::clone(&self.worker),
            Some(address),
            source,
        ));
        let entry = Entry {
            upstream: Rc::clone(&upstream),
            used: Instant::now(),
        };
        self.known.borrow_mut().insert(address, entry);
        Some(upstream)
    }

    /// A destination that nobody is asked about.
    fn as_it_is(&self, address: SocketAddr) -> Rc<Upstream> {
        let (_, nothing) = watch::channel(None);
        Rc::new(Upstream::new(
            Rc::clone(&self.worker),
            Some(address),
            nothing,
        ))
    }

    /// Closes what is idle, and forgets what has not been used for long.
    pub(crate) fn tidy(&self) {
        self.known
            .borrow()
            .values()
            .for_each(|entry| entry.upstream.tidy());
        self.forget(IDLE);
    }

    /// Closes all that is idle.
    pub(crate) fn close_idle(&self) {
        let known = self.known.borrow();
        known.values().for_each(|entry| entry.upstream.close_idle());
    }

    fn forget(&self, after: Duration) {
        self.known.borrow_mut().retain(|_, entry| {
            let in_use = Rc::strong_count(&entry.upstream) > 1;
            in_use || entry.used.elapsed() < after
        });
    }
}
