//! How fast the webhook is on one core: `cargo bench -p bulkhead-webhook`.
//!
//! The server has a thread of its own with a single-threaded runtime, so it
//! uses one core at most; callers keep their TLS connections, as API servers
//! do. The first line is how many reviews it answers when asked for all it can,
//! by the wall clock and by the processor time that its thread took, which
//! other work on the machine does not change. The second is how long a review
//! takes at half the rate that is the goal, from when it was due and not from
//! when it was sent, so that waiting in line counts.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "this is a benchmark, and its figures are its output"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bulkhead_inject::Namespace;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving;
use bulkhead_webhook::app::{App, Deps};
use bulkhead_webhook::config::Config;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use tokio_rustls::TlsConnector;

const CONNECTIONS: u32 = 8;
const WARM_UP: Duration = Duration::from_secs(1);
const RUN: Duration = Duration::from_secs(5);
/// Reviews a second.
const GOAL: u32 = 6_000;

/// A review of a pod with three containers and probes, as an API server
/// writes it.
const REVIEW: &str = include_str!("review.json");

fn main() {
    let used = Arc::new(AtomicU64::new(0));
    let (started, server) = mpsc::channel();
    let measured = Arc::clone(&used);
    std::thread::spawn(move || runtime().block_on(serve(started, measured)));
    let (address, roots) = server.recv().unwrap();
    runtime().block_on(measure(address, roots, used));
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs the webhook on this thread for ever, and keeps `used` at the processor
/// time that the thread has taken, in nanoseconds.
async fn serve(started: mpsc::Sender<(SocketAddr, String)>, used: Arc<AtomicU64>) {
    let config = Config::from_lookup(&|name| {
        let value = match name {
            "BULKHEAD_WEBHOOK_PROXY_IMAGE" => "registry.example/bulkhead-proxy:1",
            "BULKHEAD_WEBHOOK_ADDRESS" | "BULKHEAD_WEBHOOK_MONITORING_ADDRESS" => "127.0.0.1:0",
            "BULKHEAD_WEBHOOK_URL" => "https://127.0.0.1",
            _ => return None,
        };
        Some(value.to_owned())
    });
    let namespace = Namespace {
        name: "shop".to_owned(),
        labels: [("bulkhead.io/inject".to_owned(), "enabled".to_owned())].into(),
        annotations: [].into(),
    };
    let app = App::start(config.unwrap(), Deps::fixed(vec![namespace]))
        .await
        .unwrap();
    started
        .send((app.address(), app.ca_bundle().await))
        .unwrap();
    let mut ticks = interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let on_processor = times.split(' ').next().unwrap().parse().unwrap();
        used.store(on_processor, Ordering::Relaxed);
    }
}

async fn measure(address: SocketAddr, roots: String, used: Arc<AtomicU64>) {
    all_it_can(address, &roots, WARM_UP).await;
    let before = used.load(Ordering::Relaxed);
    let answered = all_it_can(address, &roots, RUN).await;
    let processor = Duration::from_nanos(used.load(Ordering::Relaxed) - before);
    let per_second = |time: Duration| f64::from(answered) / time.as_secs_f64();
    println!(
        "{{\"bench\":\"webhook\",\"review_bytes\":{},\"connections\":{CONNECTIONS},\
         \"reviews_per_second\":{:.0},\"reviews_per_processor_second\":{:.0}}}",
        REVIEW.len(),
        per_second(RUN),
        per_second(processor),
    );
    let rate = GOAL / 2;
    let mut took = at_rate(address, &roots, rate).await;
    took.sort_unstable();
    let micros = |percent: usize| took[(took.len() - 1) * percent / 100].as_micros();
    println!(
        "{{\"bench\":\"webhook\",\"rate\":{rate},\"p50_us\":{},\"p99_us\":{},\"max_us\":{}}}",
        micros(50),
        micros(99),
        micros(100)
    );
}

/// Reviews on all connections, one after the other on each, and how many.
async fn all_it_can(address: SocketAddr, roots: &str, time: Duration) -> u32 {
    let end = Instant::now() + time;
    let mut callers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut sender = connect(address, roots).await;
        callers.spawn(async move {
            let mut answered = 0;
            while Instant::now() < end {
                review(&mut sender).await;
                answered += 1;
            }
            answered
        });
    }
    callers.join_all().await.into_iter().sum()
}

/// Reviews at a rate, and how long each took from the moment at which it was
/// due, whether or not a connection was free for it.
async fn at_rate(address: SocketAddr, roots: &str, rate: u32) -> Vec<Duration> {
    let (due, reviews) = unbounded_channel::<Instant>();
    let reviews = Arc::new(Mutex::new(reviews));
    let mut callers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut sender = connect(address, roots).await;
        let reviews = Arc::clone(&reviews);
        callers.spawn(async move {
            let mut took = Vec::new();
            while let Some(due) = next(&reviews).await {
                review(&mut sender).await;
                took.push(due.elapsed());
            }
            took
        });
    }
    // Timers count whole milliseconds.
    let mut ticks = interval(Duration::from_millis(1));
    let end = Instant::now() + RUN;
    while ticks.tick().await < end {
        let now = Instant::now();
        for _ in 0..rate / 1000 {
            due.send(now).unwrap();
        }
    }
    drop(due);
    callers.join_all().await.concat()
}

async fn next(reviews: &Mutex<UnboundedReceiver<Instant>>) -> Option<Instant> {
    reviews.lock().await.recv().await
}

async fn connect(address: SocketAddr, roots: &str) -> SendRequest<Full<Bytes>> {
    let roots = Roots::from_pem(roots).unwrap();
    let config = serving::client_config(&roots, ["http/1.1"]).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::from(address.ip());
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn review(sender: &mut SendRequest<Full<Bytes>>) {
    sender.ready().await.unwrap();
    let request = Request::post("/inject?timeout=5s")
        .header("host", "127.0.0.1")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(REVIEW.as_bytes())))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert!(answer.status().is_success());
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.len() > 1000, "the pod gets its sidecar");
}
