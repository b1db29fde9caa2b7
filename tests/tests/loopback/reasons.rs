//! Each reason of docs/reasons.md, made to happen: what a client is told in HTTP/1,
//! HTTP/2 and gRPC, what is counted, and what the access log says.

use std::any::Any;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use bulkhead::mesh::{self, Mesh};
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bulkhead_core::sidecar::{InboundListener, SidecarConfig};
use bulkhead_proxy::access_log::Output;
use bulkhead_proxy::app::{Dependencies, Proxy};
use bulkhead_tests::apps::{self, App};
use futures::future::join_all;
use http::{HeaderMap, Request};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::pair::{Pair, metric_becomes};
use crate::seen::Lines;
use crate::streams::Call;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n";
const SERVED_WITHIN: Duration = Duration::from_secs(60);

/// An application that reads a request and says this, then closes.
async fn says(answer: &'static [u8]) -> App {
    let app = apps::serve(move |mut stream, _| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(answer).await;
    });
    app.await.unwrap()
}

/// Asks, in the same moment in which it connects: who is silent at first, while this
/// machine does something else, may be waiting for a server to speak.
async fn ask(address: SocketAddr, request: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut asks = std::net::TcpStream::connect(address)?;
    // Who is refused at once may find so here; what there is to read says it too.
    let _ = asks.write_all(request);
    asks.set_nonblocking(true)?;
    let mut answer = Vec::new();
    match TcpStream::from_std(asks)?.read_to_end(&mut answer).await {
        Ok(_) => Ok(Some(answer)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks over HTTP/2, with these headers.
async fn ask_http2(address: SocketAddr, headers: &[(&str, &str)]) -> (u16, HeaderMap) {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = connected.unwrap();
    tokio::spawn(connection);
    let request = headers.iter().fold(
        Request::post("http://cart/shop.Cart/Get"),
        |request, (name, value)| request.header(*name, *value),
    );
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    (answer.status().as_u16(), answer.headers().clone())
}

async fn counted(proxy: &Proxy, reason: Reason, times: f64) {
    let label = format!("reason=\"{reason}\"");
    metric_becomes(proxy, "bulkhead_refusals_total", &[&label], times).await;
}

/// A proxy whose access log the test reads.
struct Logged {
    proxy: Proxy,
    lines: mpsc::Receiver<Value>,
}

impl Logged {
    async fn start(mesh: &Mesh, config: SidecarConfig) -> Self {
        let (config, dependencies, lines) = Self::set_up(config);
        let proxy = mesh.proxy_with(config, dependencies).await.unwrap();
        Self { proxy, lines }
    }

    fn set_up(mut config: SidecarConfig) -> (SidecarConfig, Dependencies, mpsc::Receiver<Value>) {
        let (lines, written) = mpsc::channel();
        config.access_log = true;
        let dependencies = Dependencies {
            access_log: Output::new(Lines(lines)),
            ..Dependencies::default()
        };
        (config, dependencies, written)
    }

    /// That a request was logged with this reason, and with the status that gRPC has
    /// for it where it was a call.
    fn says(&self, reason: Reason, grpc_status: Option<u8>) {
        let line = self.lines.recv_timeout(SERVED_WITHIN).unwrap();
        assert_eq!(line["reason"], reason.code(), "{line}");
        let status = line.get("grpc_status").and_then(Value::as_u64);
        assert_eq!(status, grpc_status.map(u64::from), "{line}");
    }
}

/// Where a reason happens: to whoever dials these addresses.
struct Place {
    refuses: Logged,
    http1: SocketAddr,
    http2: SocketAddr,
    grpc: SocketAddr,
    /// What must be there meanwhile.
    _behind: Box<dyn Any>,
}

/// The settings of a client: three ports that lead to these endpoints of somebody, and
/// are known to carry HTTP/1, HTTP/2 and gRPC.
fn client(mesh: &Mesh, of: &str, endpoints: &[SocketAddr]) -> SidecarConfig {
    let mut config = mesh.workload("web", "front").unwrap();
    let protocols = [Protocol::Http1, Protocol::Http2, Protocol::Grpc];
    let upstream = |protocol| {
        let mut upstream = mesh::upstream(mesh, "shop", of, endpoints).unwrap();
        upstream.protocol = protocol;
        upstream
    };
    config.outbound = protocols.map(upstream).into();
    config
}

impl Place {
    /// A client's proxy refuses.
    fn before(refuses: Logged, behind: impl Any) -> Self {
        let dial = &refuses.proxy.addresses.outbound;
        Self {
            http1: dial[0],
            http2: dial[1],
            grpc: dial[2],
            refuses,
            _behind: Box::new(behind),
        }
    }

    /// A client's proxy refuses to pass on what is meant for these endpoints.
    async fn towards(mesh: &Mesh, of: &str, endpoints: &[SocketAddr], behind: impl Any) -> Self {
        let config = client(mesh, of, endpoints);
        Self::before(Logged::start(mesh, config).await, behind)
    }

    /// A server's proxy refuses because of its application, and the client's passes on
    /// what it says.
    async fn behind(app: App) -> Self {
        let mesh = Mesh::start().await.unwrap();
        let mut config = mesh.workload("shop", "cart").unwrap();
        config.inbound = vec![mesh::inbound(app.address)];
        let refuses = Logged::start(&mesh, config).await;
        let config = client(&mesh, "cart", &refuses.proxy.addresses.inbound);
        let client = mesh.proxy(config).await.unwrap();
        let dial = &client.addresses.outbound;
        Self {
            http1: dial[0],
            http2: dial[1],
            grpc: dial[2],
            refuses,
            _behind: Box::new((mesh, app, client)),
        }
    }

    /// Whoever asks in HTTP/1 is told.
    async fn tells_http1(&self, reason: Reason, request: &[u8], status: u16) {
        let answer = ask(self.http1, request).await.unwrap();
        let answer = answer.unwrap_or_else(|| panic!("{reason}: the client was told nothing"));
        let answer = String::from_utf8(answer).unwrap();
        let begins = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&begins), "{answer}");
        let header = format!("\r\nbulkhead-reason: {reason}\r\n");
        assert!(answer.contains(&header), "{answer}");
    }

    /// Whoever asks over HTTP/2 is told, and who calls by gRPC.
    async fn tells_http2(&self, reason: Reason, more: &[(&str, &str)], status: u16, grpc: u8) {
        let (answered, headers) = ask_http2(self.http2, more).await;
        assert_eq!(answered, status, "{reason}: {headers:?}");
        assert_eq!(headers["bulkhead-reason"], reason.code());
        self.refuses.says(reason, None);
        let call = [&[("content-type", "application/grpc")], more].concat();
        let (answered, headers) = ask_http2(self.grpc, &call).await;
        assert_eq!(answered, 200, "{reason}: {headers:?}");
        assert_eq!(headers["grpc-status"], grpc.to_string());
        assert_eq!(headers["bulkhead-reason"], reason.code());
        self.refuses.says(reason, Some(grpc));
    }

    /// Whoever asks in any protocol is told.
    async fn tells(&self, reason: Reason, status: u16, grpc: u8) {
        self.tells_http1(reason, GET, status).await;
        self.refuses.says(reason, None);
        self.tells_http2(reason, &[], status, grpc).await;
        counted(&self.refuses.proxy, reason, 3.0).await;
    }
}

/// Makes it happen.
async fn happens(reason: Reason) {
    let app = apps::echo_http().await.unwrap();
    let pair = async |mode| Pair::start(app.address, mode).await;
    match reason {
        Reason::PlaintextRefused => {
            let mesh = Mesh::start().await.unwrap();
            let mut config = mesh.workload("shop", "cart").unwrap();
            config.inbound = vec![mesh::inbound(app.address)];
            config.mode = MtlsMode::Strict;
            let refuses = Logged::start(&mesh, config).await;
            let port = refuses.proxy.addresses.inbound[0];
            let place = Place {
                refuses,
                http1: port,
                http2: port,
                grpc: port,
                _behind: Box::new(mesh),
            };
            // By its first bytes, before there is a request that could be logged.
            place.tells_http1(reason, GET, 403).await;
            place.tells_http2(reason, &[], 403, 7).await;
            counted(&place.refuses.proxy, reason, 3.0).await;
        }
        Reason::MtlsDisabled => {
            // The client hears of it from its own proxy, whose handshake is refused.
            let pair = pair(MtlsMode::Disable).await;
            let answer = ask(pair.dial(), GET).await.unwrap().unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 503 "), "{answer:?}");
            counted(&pair.server, reason, 1.0).await;
        }
        Reason::TlsHandshakeFailed => {
            let pair = pair(MtlsMode::Strict).await;
            let elsewhere = Mesh::start().await.unwrap();
            let endpoints = [pair.server_port()];
            let place = Place::towards(&elsewhere, "cart", &endpoints, pair).await;
            place.tells(reason, 503, 14).await;
        }
        Reason::PeerIdentityMismatch => {
            let pair = pair(MtlsMode::Strict).await;
            let endpoints = [pair.server_port()];
            let place = Place::towards(&pair.mesh, "ledger", &endpoints, ()).await;
            place.tells(reason, 503, 14).await;
        }
        Reason::UpstreamConnectFailed => {
            let gone = says(b"").await.address;
            let pair = Pair::start(gone, MtlsMode::Strict).await;
            let endpoints = [pair.server_port()];
            let place = Place::towards(&pair.mesh, "cart", &endpoints, ()).await;
            place.tells(reason, 503, 14).await;
        }
        Reason::NoReadyEndpoint => {
            let mesh = Mesh::start().await.unwrap();
            let place = Place::towards(&mesh, "cart", &[], ()).await;
            place.tells(reason, 503, 14).await;
        }
        Reason::UpstreamClosed => {
            let place = Place::behind(says(b"").await).await;
            place.tells(reason, 503, 14).await;
        }
        Reason::RequestMalformed => {
            let pair = pair(MtlsMode::Strict).await;
            let endpoints = [pair.server_port()];
            let place = Place::towards(&pair.mesh, "cart", &endpoints, ()).await;
            // Nobody knows what was asked for, so there is nothing to log but that.
            let request = b"GET / HTTP/1.1\r\nHost : cart\r\nConnection: close\r\n\r\n";
            place.tells_http1(reason, request, 400).await;
            let two = [("host", "ledger")];
            place.tells_http2(reason, &two, 400, 13).await;
            counted(&place.refuses.proxy, reason, 3.0).await;
        }
        Reason::RequestHeadTooLarge => {
            let pair = pair(MtlsMode::Strict).await;
            let endpoints = [pair.server_port()];
            let place = Place::towards(&pair.mesh, "cart", &endpoints, ()).await;
            let cookie = "c".repeat(70_000);
            let request = format!(
                "GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\nCookie: {cookie}\r\n\r\n"
            );
            place.tells_http1(reason, request.as_bytes(), 431).await;
            counted(&place.refuses.proxy, reason, 1.0).await;
        }
        Reason::ResponseMalformed => {
            let place = Place::behind(says(b"HTTP/1.1 banana\r\n\r\n").await).await;
            place.tells_http1(reason, GET, 502).await;
            place.refuses.says(reason, None);
            counted(&place.refuses.proxy, reason, 1.0).await;
        }
        Reason::NoCertificate => {
            let mut mesh = Mesh::start().await.unwrap();
            mesh.stop_ca().await;
            let config = client(&mesh, "cart", &[app.address]);
            let (config, dependencies, lines) = Logged::set_up(config);
            let proxy = Proxy::start(config, dependencies).unwrap();
            let place = Place::before(Logged { proxy, lines }, mesh);
            place.tells(reason, 503, 14).await;
        }
        Reason::DestinationIsSelf => {
            let mesh = Mesh::start().await.unwrap();
            let mut config = mesh.workload("shop", "cart").unwrap();
            config.inbound = vec![InboundListener {
                listen: "127.0.0.1:0".parse().unwrap(),
                forward: None,
            }];
            let proxy = mesh.proxy(config).await.unwrap();
            // Whether the reset is met in writing or in reading.
            let answer = ask(proxy.addresses.inbound[0], GET).await.unwrap();
            assert_eq!(answer.unwrap_or_default(), b"", "nobody has read it");
            counted(&proxy, reason, 1.0).await;
        }
        Reason::DetectionTimeout => {
            let pair = pair(MtlsMode::Strict).await;
            let mut silent = TcpStream::connect(pair.server_port()).await.unwrap();
            counted(&pair.server, reason, 1.0).await;
            assert!(silent.read_u8().await.is_err());
        }
        // It takes a proxy whose memory is nearly used up; tests/overload has that.
        Reason::Overloaded => {}
    }
}

#[tokio::test]
async fn each_reason_for_which_a_proxy_refuses_is_told_counted_and_logged_when_it_happens() {
    // Some take seconds: a proxy that is hung up on waits for news of the endpoint.
    join_all(Reason::ALL.map(|reason| Box::pin(happens(reason)))).await;
}

#[tokio::test]
async fn a_grpc_call_whose_server_is_killed_is_worth_another_try() {
    // Answers with the head and a message, then is killed.
    let app = apps::serve(|mut stream, _| async move {
        let mut came = [0; 1024];
        let mut answered = false;
        loop {
            let count = stream.read(&mut came).await.unwrap();
            // HEADERS of the first stream: the call is there.
            let calls = came[..count]
                .windows(6)
                .any(|part| part[0] == 1 && part[2..] == [0, 0, 0, 1]);
            if !answered {
                let settings = b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";
                stream.write_all(settings).await.unwrap();
                answered = true;
            }
            if calls || count == 0 {
                break;
            }
        }
        // :status: 200 and content-type: application/grpc, then a message.
        let head = b"\x88\x5f\x10application/grpc";
        let mut frames = vec![0, 0, u8::try_from(head.len()).unwrap(), 1, 4, 0, 0, 0, 1];
        frames.extend_from_slice(head);
        frames.extend_from_slice(b"\0\0\x05\0\0\0\0\0\x01\0\0\0\0\0");
        stream.write_all(&frames).await.unwrap();
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let client = pair.client_of(Protocol::Grpc).await;
    let trailers = Call::open(client.addresses.outbound[0])
        .await
        .trailers()
        .await;
    assert_eq!(trailers["grpc-status"], "14", "{trailers:?}");
    assert_eq!(trailers["bulkhead-reason"], "upstream_closed");
    counted(&pair.server, Reason::UpstreamClosed, 1.0).await;
}
