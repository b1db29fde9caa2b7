//! A server that is rolled out again and again, under load: its pod is replaced, and
//! nobody who calls it notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_proxy::app::Proxy;
use bulkhead_runtime::drain::Outcome;
use bulkhead_tests::apps::{self, App, Client};
use futures::SinkExt as _;
use futures::channel::mpsc;
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::controlled::{CLUSTER_IP, Controlled, on};

const ROLLOUTS: usize = 100;
/// How many requests of all kinds are sent while nothing changes.
const MEANWHILE: u64 = 40;
/// The messages of a stream.
const MESSAGES: usize = 5;

/// A server's pod.
struct Pod {
    name: String,
    app: App,
    proxy: Proxy,
}

impl Pod {
    async fn start(world: &Controlled, number: usize) -> Self {
        let name = format!("cart-{number}");
        let app = apps::echo_stream().await.unwrap();
        let ip = format!("127.1.{}.{}", number / 250, number % 250 + 1);
        let mut config = world.pod("shop", &name, &ip);
        config.inbound = vec![on(&ip, app.address)];
        // On a machine that is busy, clients may take their time.
        config.drain_quiet = Duration::from_secs(5);
        let proxy = world.connected(config).await;
        Self { name, app, proxy }
    }

    fn endpoint(&self) -> (&str, SocketAddr, bool) {
        (&self.name, self.proxy.addresses.inbound[0], true)
    }
}

/// Clients of all kinds, which never stop and never fail.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(server: SocketAddr) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut load = Self {
            stop,
            done,
            clients: Vec::new(),
        };
        for _ in 0..2 {
            load.client(move |running| keeps_a_connection(server, running));
            load.client(move |running| makes_connections(server, running));
        }
        load.client(move |running| calls_over_http2(server, running));
        load.client(move |running| streams(server, running));
        load
    }

    fn client<F>(&mut self, client: impl FnOnce(Running) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running {
            stop: Arc::clone(&self.stop),
            done: Arc::clone(&self.done),
        };
        self.clients.push(tokio::spawn(client(running)));
    }

    /// Waits until so many more requests have been answered.
    async fn goes_on(&self, count: u64) {
        let goal = self.done.load(Ordering::Relaxed) + count;
        self.until(|| self.done.load(Ordering::Relaxed) >= goal)
            .await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        while !is_so() {
            let all_run = self.clients.iter().all(|client| !client.is_finished());
            assert!(all_run, "a request failed");
            tokio::task::yield_now().await;
        }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// What a client asks and tells after each request.
struct Running {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Running {
    fn goes_on(&self) -> bool {
        self.done.fetch_add(1, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }
}

async fn asks(client: &mut Client, method: &str) {
    let body = Bytes::from_static(b"hello");
    let answer = client.send(method, "/", body).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "hello"), "{answer:?}");
}

async fn keeps_a_connection(server: SocketAddr, running: Running) {
    let mut client = Client::connect(server).await.unwrap();
    while running.goes_on() {
        asks(&mut client, "PUT").await;
        asks(&mut client, "POST").await;
    }
}

async fn makes_connections(server: SocketAddr, running: Running) {
    while running.goes_on() {
        let mut client = Client::connect(server).await.unwrap();
        asks(&mut client, "POST").await;
    }
}

type Stream = StreamBody<mpsc::Receiver<Result<Frame<Bytes>, std::convert::Infallible>>>;

async fn http2<B>(server: SocketAddr) -> SendRequest<B>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(server).await.unwrap();
    let io = TokioIo::new(stream);
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (sender, connection) = connected.unwrap();
    tokio::spawn(connection);
    sender
}

fn call<B>(server: SocketAddr, body: B) -> Request<B> {
    let request = Request::post(format!("http://{server}/shop.Cart/Echo"));
    let request = request.header("te", "trailers");
    let request = request.header("content-type", "application/grpc");
    request.body(body).unwrap()
}

fn assert_went_well(trailers: Option<&http::HeaderMap>) {
    let status = trailers.and_then(|trailers| trailers.get("grpc-status"));
    assert_eq!(status.unwrap(), "0");
}

async fn calls_over_http2(server: SocketAddr, running: Running) {
    let mut sender = http2(server).await;
    while running.goes_on() {
        let body = Full::new(Bytes::from_static(b"hello"));
        let response = sender.send_request(call(server, body)).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        assert_eq!(head.headers.get("grpc-status"), None, "{head:?}");
        assert_went_well(body.trailers());
        assert_eq!(body.to_bytes(), "hello");
    }
}

/// Each message waits for the one before to come back.
async fn streams(server: SocketAddr, running: Running) {
    let mut sender = http2::<Stream>(server).await;
    while running.goes_on() {
        let (mut messages, body) = mpsc::channel(1);
        let sent = sender.send_request(call(server, StreamBody::new(body)));
        let first = Frame::data(Bytes::from_static(b"hello"));
        let (response, _) = tokio::join!(sent, messages.send(Ok(first)));
        let mut body = response.unwrap().into_body();
        for number in 0..MESSAGES {
            let came = body.frame().await.unwrap().unwrap();
            assert_eq!(came.into_data().unwrap(), "hello");
            if number + 1 < MESSAGES {
                let next = Frame::data(Bytes::from_static(b"hello"));
                messages.send(Ok(next)).await.unwrap();
            }
        }
        drop(messages);
        assert_went_well(body.collect().await.unwrap().trailers());
    }
}

/// In which order those concerned hear of a rollout.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// Clients know of both pods, then no longer of the old one, then it is told to go.
    OneAfterTheOther,
    /// The old pod is told to go; clients hear late of that, and of the new one.
    ClientsHearLate,
    /// The application has gone when its proxy is told to go, as with native sidecars,
    /// and clients hear late of it.
    ApplicationFirst,
    /// Clients hear of it at the moment when the old pod is told to go.
    AllAtOnce,
}

const ORDERS: [Order; 4] = [
    Order::OneAfterTheOther,
    Order::ClientsHearLate,
    Order::ApplicationFirst,
    Order::AllAtOnce,
];

/// Replaces a pod by another one; the old one is still finishing what it has in hand.
async fn roll_out(
    world: &Controlled,
    load: &Load,
    order: Order,
    old: Pod,
    new: &Pod,
) -> JoinHandle<Outcome> {
    let ends = |proxy: Proxy, app: Option<App>| {
        tokio::spawn(async move {
            let outcome = proxy.drain().await;
            drop(app);
            outcome
        })
    };
    let only_new = || world.cart(&[new.endpoint()]);
    if !matches!(order, Order::ClientsHearLate) {
        world.cart(&[old.endpoint(), new.endpoint()]);
        load.until(|| new.app.seen() > 0).await;
    }
    let Pod { name, app, proxy } = old;
    let drain = match order {
        Order::OneAfterTheOther => {
            only_new();
            load.goes_on(MEANWHILE).await;
            ends(proxy, Some(app))
        }
        Order::ClientsHearLate => {
            let drain = ends(proxy, Some(app));
            load.goes_on(MEANWHILE).await;
            only_new();
            drain
        }
        Order::ApplicationFirst => {
            drop(app);
            load.goes_on(MEANWHILE).await;
            let drain = ends(proxy, None);
            load.goes_on(MEANWHILE).await;
            only_new();
            drain
        }
        Order::AllAtOnce => {
            only_new();
            ends(proxy, Some(app))
        }
    };
    world.delete(&name);
    drain
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_a_server_is_rolled_out_a_hundred_times() {
    let world = Controlled::start().await;
    let mut pod = Pod::start(&world, 0).await;
    world.cart(&[pod.endpoint()]);
    let client = world.client(&[CLUSTER_IP.parse().unwrap()]).await;
    let load = Load::start(client.addresses.redirected[0]);
    load.goes_on(MEANWHILE).await;
    let mut drains = Vec::new();
    for (number, order) in (1..=ROLLOUTS).zip(ORDERS.into_iter().cycle()) {
        let new = Pod::start(&world, number).await;
        drains.push(roll_out(&world, &load, order, pod, &new).await);
        pod = new;
    }
    load.until(|| pod.app.seen() > 0).await;
    load.stop().await;
    for drain in drains {
        assert_eq!(drain.await.unwrap(), Outcome::Finished);
    }
}
