//! Requests at a steady rate, whether or not earlier ones were answered, until
//! somebody says stop. What became of them can be read at any time.
//!
//! - [`http`]: one HTTP request.
//! - [`conversation`]: one TCP connection that is kept, a line at a time.
//! - [`control`]: `GET /counts` and `POST /stop`.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};

use crate::counts::{Counts, Outcome};
use crate::output;

mod control;
mod conversation;
pub mod http;

/// The header by which `serve` says which pod answered.
pub const POD_HEADER: &str = "workload-pod";

/// What to send, how often and for how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// `http://HOST:PORT/PATH`, or `tcp://HOST:PORT` for lines on one connection
    /// that is kept.
    pub url: String,
    /// Requests a second; said twice, the last time counts.
    #[arg(long, default_value_t = 20.0, overrides_with = "rate")]
    pub rate: f64,
    /// For how long; without it until SIGTERM or `POST /stop`.
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<f64>,
    /// Where `GET /counts` says what became of the requests so far.
    #[arg(long, value_name = "PORT", default_value_t = 8090)]
    pub listen: u16,
    /// How a request is made.
    #[command(flatten)]
    pub request: http::RequestOptions,
}

/// What the sending side, the control port and the printer share.
#[derive(Debug)]
struct Tally {
    began: Instant,
    counts: Mutex<Counts>,
    stop: Notify,
}

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("nothing panics while counting")
    }

    /// Counts one request from its beginning to its end.
    async fn count(&self, request: impl Future<Output = Outcome>) {
        let began = Instant::now();
        self.counts().begun();
        let outcome = request.await;
        self.counts()
            .ended(outcome, self.began.elapsed(), began.elapsed());
    }
}

/// Sends until the time is over, SIGTERM, or `POST /stop`; then waits for what
/// is in flight, and prints the last counts.
///
/// # Errors
/// The URL is none, or the control port cannot be listened on. Requests that
/// fail are counted.
pub async fn load(options: Options) -> Result<()> {
    ensure!(
        options.rate > 0.0 && options.rate <= 100_000.0,
        "a rate of {} requests a second cannot be kept",
        options.rate
    );
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let tally = Arc::new(Tally {
        began: Instant::now(),
        counts: Mutex::default(),
        stop: Notify::new(),
    });
    let control = control::listen(options.listen, Arc::clone(&tally)).await?;
    output::line(&serde_json::json!({ "listening": control.address }))?;
    let mut ticks = interval(Duration::from_secs_f64(1.0 / options.rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let time_is_over = async {
        match options.seconds {
            Some(seconds) => sleep(Duration::from_secs_f64(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let mut in_flight = JoinSet::new();
    tokio::select! {
        sent = send(&options, &mut ticks, &tally, &mut in_flight) => sent?,
        printed = print_every_second(&tally) => printed?,
        () = time_is_over => {}
        () = tally.stop.notified() => {}
        _ = terminate.recv() => {}
    }
    while in_flight.join_next().await.is_some() {}
    output::line(&*tally.counts())?;
    control.finish().await;
    Ok(())
}

/// Never ends of itself, but with an error.
async fn send(
    options: &Options,
    ticks: &mut Interval,
    tally: &Arc<Tally>,
    in_flight: &mut JoinSet<()>,
) -> Result<()> {
    if let Some(address) = options.url.strip_prefix("tcp://") {
        let within = options.request.timeout();
        let mut conversation = conversation::Conversation::with(address.to_owned());
        loop {
            ticks.tick().await;
            tally.count(conversation.line(within)).await;
        }
    }
    let client = Arc::new(http::Client::new(&options.url, &options.request)?);
    loop {
        ticks.tick().await;
        while in_flight.try_join_next().is_some() {}
        let (client, tally) = (Arc::clone(&client), Arc::clone(tally));
        in_flight.spawn(async move { tally.count(client.request()).await });
    }
}

/// So that a pod's log tells the story, also where nobody asked meanwhile.
async fn print_every_second(tally: &Tally) -> Result<()> {
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        output::line(&*tally.counts())?;
    }
}
