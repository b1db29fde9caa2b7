//! Visitors: several connections that are kept, a request after the other, each
//! one counted.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::http::Connection;

/// Also the most of their requests that are in hand at once.
pub(super) const VISITORS: u64 = 8;
/// Between two requests of a visitor: load enough to be hurt, and the rest of
/// the machine stays usable.
const PAUSE: Duration = Duration::from_millis(1);

/// What the visitors met.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) served: u64,
    /// Anything but a whole response with status 200.
    pub(super) failed: u64,
    pub(super) first_failure: Option<String>,
}

impl Tally {
    /// For people: what failed first says more than how much did.
    pub(super) fn failures(&self) -> String {
        match &self.first_failure {
            None => "none".to_owned(),
            Some(first) => format!("{} failed, the first so: {first}", self.failed),
        }
    }
}

/// Load that is running; dropping it ends it at once.
pub(super) struct Load {
    tally: watch::Sender<Tally>,
    stop: watch::Sender<bool>,
    visitors: JoinSet<()>,
}

impl Load {
    pub(super) fn start(address: SocketAddr) -> Self {
        let tally = watch::Sender::new(Tally::default());
        let stop = watch::Sender::new(false);
        let mut visitors = JoinSet::new();
        for _ in 0..VISITORS {
            visitors.spawn(visit(address, tally.clone(), stop.subscribe()));
        }
        Self {
            tally,
            stop,
            visitors,
        }
    }

    /// What was met so far.
    pub(super) fn tally(&self) -> Tally {
        self.tally.borrow().clone()
    }

    /// Waits until so many requests more have been answered, well or not.
    pub(super) async fn answered(&self, more: u64) {
        let so_far = self.tally();
        let until = so_far.served + so_far.failed + more;
        let mut tally = self.tally.subscribe();
        // The sender is here, so that the channel is open.
        let _ = tally
            .wait_for(|tally| tally.served + tally.failed >= until)
            .await;
    }

    /// Lets each visitor finish the request in hand.
    pub(super) async fn stop(mut self) -> Tally {
        self.stop.send_replace(true);
        while self.visitors.join_next().await.is_some() {}
        self.tally()
    }
}

async fn visit(address: SocketAddr, tally: watch::Sender<Tally>, stop: watch::Receiver<bool>) {
    let mut kept = None;
    while !*stop.borrow() {
        let result = request(address, &mut kept).await;
        tally.send_modify(|tally| match result {
            Ok(()) => tally.served += 1,
            Err(error) => {
                tally.failed += 1;
                tally.first_failure.get_or_insert(format!("{error:#}"));
            }
        });
        tokio::time::sleep(PAUSE).await;
    }
}

/// One request, over the connection that was kept if it is still open.
async fn request(address: SocketAddr, kept: &mut Option<Connection>) -> anyhow::Result<()> {
    if let Some(connection) = kept
        && !connection.is_open().await
    {
        *kept = None;
    }
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::to(address).await?,
    };
    let answer = connection.get("/cart").await?;
    ensure!(answer.status == 200, "{}", answer.shown());
    *kept = Some(connection);
    Ok(())
}
