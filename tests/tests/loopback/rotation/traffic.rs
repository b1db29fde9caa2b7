//! Requests without a pause, some over connections that are kept and some over
//! new ones.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bulkhead_tests::apps::{self, App, Client};
use hyper::body::Bytes;
use tokio::task::JoinHandle;

/// How many ask at once in each way.
const CALLERS: usize = 2;

pub(super) struct Traffic {
    tally: Arc<Tally>,
    callers: Vec<JoinHandle<()>>,
    _app: App,
}

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.callers.iter().for_each(JoinHandle::abort);
    }
}

impl Traffic {
    pub(super) fn start(address: SocketAddr, app: App) -> Self {
        let tally = Arc::<Tally>::default();
        let mut callers = Vec::new();
        for _ in 0..CALLERS {
            callers.push(tokio::spawn(keep_asking(address, Arc::clone(&tally))));
            callers.push(tokio::spawn(ask_anew(address, Arc::clone(&tally))));
        }
        Self {
            tally,
            callers,
            _app: app,
        }
    }

    /// How many requests were answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.tally.answered.load(Ordering::Relaxed)
    }

    /// Waits until more requests have been answered than that, or one failed.
    pub(super) async fn goes_on_after(&self, answered: u64) {
        let is_so = || self.answered() > answered || self.has_failed();
        super::until("traffic goes on", is_so).await;
    }

    fn has_failed(&self) -> bool {
        !self.tally.failures.lock().unwrap().is_empty()
    }

    pub(super) fn had_no_failure(&self) {
        let failures = self.tally.failures.lock().unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        assert!(self.answered() > 0);
    }
}

impl Tally {
    fn note(&self, answer: anyhow::Result<apps::Answer>) {
        match answer {
            Ok(answer) if answer.status == 200 => {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => self.fail(format!("{} {:?}", answer.status, answer.reason())),
            Err(error) => self.fail(format!("{error:#}")),
        }
    }

    fn fail(&self, failure: String) {
        self.failures.lock().unwrap().push(failure);
    }
}

/// Over one connection, for as long as it is asked.
async fn keep_asking(address: SocketAddr, tally: Arc<Tally>) {
    let mut client = Client::connect(address).await.unwrap();
    loop {
        let answer = client.send("GET", "/", Bytes::new()).await;
        let is_over = answer.is_err();
        tally.note(answer);
        if is_over {
            return;
        }
    }
}

/// Over a new connection each time.
async fn ask_anew(address: SocketAddr, tally: Arc<Tally>) {
    loop {
        tally.note(apps::get(address, "/").await);
    }
}
