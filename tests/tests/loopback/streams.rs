//! Streams that last live through all that changes meanwhile.

use std::net::SocketAddr;

use bulkhead_proxy::app::Proxy;
use bulkhead_tests::apps::{self, App};
use futures::SinkExt as _;
use futures::channel::mpsc;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::controlled::{CLUSTER_IP, Controlled};

const CHANGES: usize = 10;

/// Speaks no HTTP after an upgrade, as WebSocket does, and echoes; calls of gRPC go on to
/// whoever answers them.
async fn upgrades(calls: SocketAddr) -> App {
    apps::serve(move |mut stream, _| async move {
        let mut first = [0];
        stream.peek(&mut first).await.unwrap();
        // PRI, the preface of HTTP/2.
        if first == *b"P" {
            let mut onwards = TcpStream::connect(calls).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut onwards).await;
            return;
        }
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let switched = b"HTTP/1.1 101 Switching Protocols\r\n\
                         connection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(switched).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
    .unwrap()
}

struct WebSocket(TcpStream);

impl WebSocket {
    async fn open(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let asks = b"GET /chat HTTP/1.1\r\nHost: cart\r\n\
                     Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(asks).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(
            head.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&head)
        );
        Self(stream)
    }

    async fn echoes(&mut self) {
        self.0.write_all(b"hello").await.unwrap();
        let mut came = [0; 5];
        self.0.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"hello");
    }
}

/// A call of gRPC that lasts.
pub(crate) struct Call {
    messages: mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>,
    answers: Incoming,
}

impl Call {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (mut sender, connection) = connected.unwrap();
        tokio::spawn(connection);
        let (messages, body) = mpsc::channel(1);
        let request = Request::post("http://cart/shop.Cart/Watch")
            .header("te", "trailers")
            .header("content-type", "application/grpc");
        let sent = sender.send_request(request.body(StreamBody::new(body)).unwrap());
        let answers = sent.await.unwrap().into_body();
        Self { messages, answers }
    }

    async fn echoes(&mut self) {
        let message = Frame::data(Bytes::from_static(b"hello"));
        self.messages.send(Ok(message)).await.unwrap();
        let came = self.answers.frame().await.unwrap().unwrap();
        assert_eq!(came.into_data().unwrap(), "hello");
    }

    /// What the server says in the end, once the client has.
    pub(crate) async fn trailers(self) -> HeaderMap {
        drop(self.messages);
        let rest = self.answers.collect().await.unwrap();
        rest.trailers().unwrap().clone()
    }
}

async fn gets_a_new_certificate(proxy: &Proxy) {
    let mut latest = proxy.latest.clone();
    latest.get_and_mark();
    proxy.renewals.renew();
    latest.changed().await.unwrap();
}

#[tokio::test]
async fn streams_live_through_every_change_of_configuration_and_certificate() {
    let world = Controlled::start().await;
    let calls = apps::echo_stream().await.unwrap();
    let app = upgrades(calls.address).await;
    let one = world.server("cart-0", "127.0.0.11", app.address).await;
    let other = world.server("cart-1", "127.0.0.12", app.address).await;
    let endpoints = [
        ("cart-0", one.addresses.inbound[0], true),
        ("cart-1", other.addresses.inbound[0], true),
    ];
    world.cart(&endpoints);
    let client = world.client(&[CLUSTER_IP.parse().unwrap()]).await;
    let address = client.addresses.redirected[0];
    let mut web_socket = WebSocket::open(address).await;
    let mut call = Call::open(address).await;
    for change in 0..CHANGES {
        world.mode(["STRICT", "PERMISSIVE"][change % 2]);
        // Each of them leaves, and comes back.
        world.cart(&endpoints[change % 2..=change % 2]);
        for proxy in [&client, &one, &other] {
            gets_a_new_certificate(proxy).await;
        }
        web_socket.echoes().await;
        call.echoes().await;
    }
    assert_eq!(call.trailers().await["grpc-status"], "0");
}
