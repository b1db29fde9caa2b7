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
    /// Of each caller.
    answered: [AtomicU64; 2 * CALLERS],
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
        for caller in 0..CALLERS {
            let (keeps, anew) = (2 * caller, 2 * caller + 1);
            callers.push(tokio::spawn(keep_asking(
                address,
                Arc::clone(&tally),
                keeps,
            )));
            callers.push(tokio::spawn(ask_anew(address, Arc::clone(&tally), anew)));
        }
        Self {
            tally,
            callers,
            _app: app,
        }
    }

    /// Waits until whatever was under way has ended, and what began after it has
    /// been answered, by every caller. Whoever rotates leaves far more time than a
    /// handshake takes between two steps.
    pub(super) async fn settles(&self) {
        let answered = || self.tally.answered.each_ref().map(count);
        let before = answered();
        let is_so = || {
            let mut pairs = answered().into_iter().zip(before);
            self.has_failed() || pairs.all(|(now, before)| now >= before + 2)
        };
        super::until("traffic goes on", is_so).await;
    }

    /// How many requests were answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.tally.answered.iter().map(count).sum()
    }

    fn has_failed(&self) -> bool {
        !self.tally.failures.lock().unwrap().is_empty()
    }

    pub(super) fn had_no_failure(&self) {
        let failures = self.tally.failures.lock().unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        assert!(
            self.tally
                .answered
                .iter()
                .all(|answered| count(answered) > 0)
        );
    }
}

fn count(answered: &AtomicU64) -> u64 {
    answered.load(Ordering::Relaxed)
}

impl Tally {
    fn note(&self, caller: usize, answer: anyhow::Result<apps::Answer>) {
        match answer {
            Ok(answer) if answer.status == 200 => {
                self.answered[caller].fetch_add(1, Ordering::Relaxed);
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
async fn keep_asking(address: SocketAddr, tally: Arc<Tally>, caller: usize) {
    let mut client = Client::connect(address).await.unwrap();
    loop {
        let answer = client.send("GET", "/", Bytes::new()).await;
        let is_over = answer.is_err();
        tally.note(caller, answer);
        if is_over {
            return;
        }
    }
}

/// Over a new connection each time.
async fn ask_anew(address: SocketAddr, tally: Arc<Tally>, caller: usize) {
    loop {
        tally.note(caller, apps::get(address, "/").await);
    }
}
