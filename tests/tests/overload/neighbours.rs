//! Clients that behave: a request, its answer, a pause, on a connection that they keep.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_tests::apps::{Answer, Client};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// How many there are.
const NEIGHBOURS: usize = 8;
/// What each does between two requests.
const PAUSE: Duration = Duration::from_millis(5);
/// How long each waits for an answer before it gives the connection up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Clients that go on until this is dropped.
pub(crate) struct Neighbours {
    outcomes: watch::Receiver<Vec<Outcomes>>,
    _tasks: JoinSet<()>,
}

/// What became of one neighbour's requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes {
    served: u32,
    /// Answered with 503 and the reason `overloaded`.
    pub(crate) refused: u32,
    /// What else happened.
    pub(crate) broken: Vec<String>,
    longest: Duration,
    took: Duration,
}

impl Neighbours {
    /// Starts them.
    pub(crate) fn start(proxy: SocketAddr) -> Self {
        let (tell, outcomes) = watch::channel(vec![Outcomes::default(); NEIGHBOURS]);
        let tell = Arc::new(tell);
        let mut tasks = JoinSet::new();
        for number in 0..NEIGHBOURS {
            let tell = Arc::clone(&tell);
            tasks.spawn(async move {
                let mut connection = None;
                loop {
                    let (outcome, took) = ask(proxy, &mut connection).await;
                    tell.send_modify(|all| all[number].count(outcome, took));
                    sleep(PAUSE).await;
                }
            });
        }
        Self {
            outcomes,
            _tasks: tasks,
        }
    }

    /// Waits until each has been served so often more, and says what happened to them
    /// meanwhile; after `within`, what has happened by then.
    pub(crate) async fn served(
        &mut self,
        times: u32,
        within: Duration,
    ) -> Result<Outcomes, Outcomes> {
        let began = Instant::now();
        let before = self.outcomes.borrow().clone();
        let since = |all: &Vec<Outcomes>| -> Vec<Outcomes> {
            all.iter()
                .zip(&before)
                .map(|(now, then)| now.since(then))
                .collect()
        };
        let enough = self
            .outcomes
            .wait_for(|all| since(all).iter().all(|one| one.served >= times));
        let is_enough = timeout(within, enough).await.is_ok();
        let all = since(&self.outcomes.borrow());
        let mut sum = all.into_iter().reduce(Outcomes::and).unwrap_or_default();
        sum.took = began.elapsed();
        if is_enough { Ok(sum) } else { Err(sum) }
    }
}

enum Outcome {
    Served,
    Refused,
    Broken(String),
}

/// One request, on a connection that is made where there is none.
async fn ask(proxy: SocketAddr, connection: &mut Option<Client>) -> (Outcome, Duration) {
    let began = Instant::now();
    let asked = timeout(PATIENCE, async {
        let mut client = match connection.take() {
            Some(client) => client,
            None => Client::connect(proxy).await?,
        };
        let answer = client.send("GET", "/", Bytes::new()).await?;
        if !answer.headers.contains_key("connection") {
            *connection = Some(client);
        }
        anyhow::Ok(answer)
    });
    let outcome = match asked.await {
        Ok(Ok(answer)) => judge(&answer),
        Ok(Err(error)) => Outcome::Broken(format!("{error:#}")),
        Err(_) => Outcome::Broken("no answer".to_owned()),
    };
    (outcome, began.elapsed())
}

fn judge(answer: &Answer) -> Outcome {
    match (answer.status, answer.reason()) {
        (200, _) => Outcome::Served,
        (503, Some("overloaded")) => Outcome::Refused,
        (status, reason) => Outcome::Broken(format!("{status} {reason:?}")),
    }
}

impl Outcomes {
    fn count(&mut self, outcome: Outcome, took: Duration) {
        self.longest = self.longest.max(took);
        match outcome {
            Outcome::Served => self.served += 1,
            Outcome::Refused => self.refused += 1,
            Outcome::Broken(why) => self.broken.push(why),
        }
    }

    /// What was added; the longest is of all the time.
    fn since(&self, before: &Self) -> Self {
        Self {
            served: self.served - before.served,
            refused: self.refused - before.refused,
            broken: self.broken[before.broken.len()..].to_vec(),
            longest: self.longest,
            took: Duration::ZERO,
        }
    }

    fn and(mut self, other: Self) -> Self {
        self.served += other.served;
        self.refused += other.refused;
        self.broken.extend(other.broken);
        self.longest = self.longest.max(other.longest);
        self
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} served in {} ms, the longest {} ms; {} refused, {} broken",
            self.served,
            self.took.as_millis(),
            self.longest.as_millis(),
            self.refused,
            self.broken.len()
        )
    }
}
