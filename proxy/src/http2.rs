//! HTTP/2, gRPC included: each stream forwarded as it is, trailers too, over
//! connections to servers that belong to the client's connection: one to each
//! place that its streams go to.

mod observed;
mod server_io;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::failure::{Failure, REASON_HEADER, explanation, http_status};
use crate::http1::{MAX_HEAD, Session};
use crate::metrics::{GrpcStatus, HttpMetrics};
use crate::upstream::{Connect, InFlight, Place, Refused, Stream, Upstream};
use observed::Observed;
use server_io::{Break, ServerIo};

/// Streams that a client may have open at once on one connection.
const MAX_STREAMS: u32 = 256;
/// Streams that a client may open and reset at once before its connection is
/// closed (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 64;
/// How often a silent client is asked whether it is still there, and how long it
/// may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client that is refused may ask and be told why. It has proved
/// nothing, and must not hold a connection by being refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);

type Body = Either<Observed, Full<Bytes>>;

/// Where the streams of a client connection may go.
pub(crate) trait Places {
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;
    /// One of several places.
    type Place: Clone + PartialEq;

    /// Where the next stream goes: to none of the places that were tried.
    fn choose(&self, tried: &[Self::Place]) -> Result<Self::Place, Failure>;

    async fn connect(&self, place: &Self::Place) -> Result<Self::Io, Failure>;

    /// Whether anything new may go to a place that was chosen before.
    fn is_current(&self, place: &Self::Place) -> bool;

    /// Counts a stream for as long as it takes, where anybody looks at that.
    fn hold(&self, place: &Self::Place) -> Option<InFlight>;
}

/// There is only one place.
impl<C: Connect> Places for C {
    type Io = C::Io;
    type Place = ();

    fn choose(&self, _tried: &[()]) -> Result<(), Failure> {
        Ok(())
    }

    async fn connect(&self, (): &()) -> Result<C::Io, Failure> {
        C::connect(self).await
    }

    fn is_current(&self, (): &()) -> bool {
        true
    }

    fn hold(&self, (): &()) -> Option<InFlight> {
        None
    }
}

impl Places for Rc<Upstream> {
    type Io = Stream;
    type Place = Place;

    fn choose(&self, tried: &[Place]) -> Result<Place, Failure> {
        Upstream::choose(self, tried)
    }

    async fn connect(&self, place: &Place) -> Result<Stream, Failure> {
        self.connect_to(place, Protocol::Http2).await
    }

    fn is_current(&self, place: &Place) -> bool {
        Upstream::is_current(self, place)
    }

    fn hold(&self, place: &Place) -> Option<InFlight> {
        Some(Upstream::hold(self, place))
    }
}

/// Serves one client connection to its end.
///
/// # Errors
/// The connection broke, or the client broke the protocol.
pub(crate) async fn serve<D, P>(client: D, places: P, session: &mut Session) -> io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin + 'static,
    P: Places + 'static,
{
    let forward = Rc::new(Forward {
        places,
        servers: RefCell::default(),
        metrics: Rc::clone(&session.metrics),
        policy: session.policy.clone(),
    });
    let service = service_fn(move |request| {
        let forward = Rc::clone(&forward);
        async move { Ok::<_, Infallible>(forward.serve(request).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(OnThisThread)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_RESET_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = session.drain.started() => {
            // GOAWAY: streams in hand are finished, new ones go elsewhere.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(io::Error::other)
}

/// Answers each stream with the reason, for a while.
pub(crate) async fn refuse<D>(client: D, failure: Failure, session: &mut Session) -> io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let served = serve(client, Refused(failure), session);
    timeout(REFUSAL_TIMEOUT, served).await.unwrap_or(Ok(()))
}

/// The streams of one client connection on their way to servers.
struct Forward<P: Places> {
    places: P,
    servers: RefCell<Vec<(P::Place, Slot)>>,
    metrics: Rc<HttpMetrics>,
    policy: Option<String>,
}

/// The connection to one place, made when the first stream needs it. Whoever
/// makes it holds the lock, so that others wait for it and make none.
type Slot = Rc<tokio::sync::Mutex<Option<Server>>>;

/// A connection to the server.
#[derive(Clone)]
struct Server {
    sender: SendRequest<Incoming>,
    broke: Break,
}

impl Server {
    /// What a stream that got no response means.
    fn failure(&self, error: &hyper::Error) -> Failure {
        self.broke.failure().unwrap_or_else(|| {
            let source = std::error::Error::source(error);
            let source = source.map_or(String::new(), |source| format!(": {source}"));
            Failure::new(Reason::UpstreamClosed, format!("{error}{source}"))
        })
    }
}

impl<P: Places> Forward<P> {
    async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let seen = self.metrics.begin_http2(&request);
        let sent = if names_one_host(&request) {
            self.send(request).await
        } else {
            let detail = "Host and :authority differ (RFC 9113, 8.3.1)";
            Err(Failure::new(Reason::RequestMalformed, detail))
        };
        match sent {
            Ok((response, held)) => {
                let metrics = Rc::clone(&self.metrics);
                Observed::new(response, metrics, seen, started, held).map(Either::Left)
            }
            Err(failure) => self.refuse(seen.is_grpc(), &failure),
        }
    }

    /// Sends a request; once more, on another connection, where the server went
    /// away before the request left.
    async fn send(
        &self,
        request: Request<Incoming>,
    ) -> Result<(Response<Incoming>, Option<InFlight>), Failure> {
        let (mut server, held) = self.server().await?;
        let unsent = match server.sender.try_send_request(request).await {
            Ok(response) => return Ok((response, held)),
            Err(mut error) => match error.take_message() {
                Some(unsent) if server.broke.failure().is_none() => unsent,
                _ => return Err(server.failure(error.error())),
            },
        };
        drop(held);
        let (mut server, held) = self.server().await?;
        let sent = server.sender.send_request(unsent).await;
        let response = sent.map_err(|error| server.failure(&error))?;
        Ok((response, held))
    }

    /// A connection to the place whose turn it is, or to another one where that
    /// does not answer.
    async fn server(&self) -> Result<(Server, Option<InFlight>), Failure> {
        let mut tried = Vec::new();
        let mut place = self.places.choose(&tried)?;
        loop {
            let held = self.places.hold(&place);
            let failure = match self.server_at(&place).await {
                Ok(server) => return Ok((server, held)),
                Err(failure) => failure,
            };
            tried.push(place);
            place = match self.places.choose(&tried) {
                Ok(next) if !tried.contains(&next) => next,
                _ => return Err(failure),
            };
        }
    }

    /// A connection that takes another stream: the one that there is, or a new
    /// one where the server has closed it or is about to.
    async fn server_at(&self, place: &P::Place) -> Result<Server, Failure> {
        let slot = self.slot(place);
        let mut kept = slot.lock().await;
        if let Some(server) = &mut *kept
            && server.sender.ready().await.is_ok()
        {
            return Ok(server.clone());
        }
        let (io, broke) = ServerIo::new(self.places.connect(place).await?);
        let handshake = hyper::client::conn::http2::Builder::new(OnThisThread)
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD as u32)
            .handshake(TokioIo::new(io))
            .await;
        let (sender, connection) =
            handshake.map_err(|error| Failure::new(Reason::UpstreamConnectFailed, error))?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 connection to a server ended");
            }
        });
        let server = Server { sender, broke };
        *kept = Some(server.clone());
        Ok(server)
    }

    /// The slot of a place. Those of places that have left are given up, and
    /// their connections end with their last streams.
    fn slot(&self, place: &P::Place) -> Slot {
        let mut servers = self.servers.borrow_mut();
        if let Some((_, slot)) = servers.iter().find(|(known, _)| known == place) {
            return Rc::clone(slot);
        }
        servers.retain(|(known, _)| self.places.is_current(known));
        let slot = Slot::default();
        servers.push((place.clone(), Rc::clone(&slot)));
        slot
    }

    /// Answers in the way that the client's protocol has for it: gRPC clients
    /// look at `grpc-status` and at nothing else.
    fn refuse(&self, is_grpc: bool, failure: &Failure) -> Response<Body> {
        let text = explanation(failure, self.policy.as_deref());
        let mut response;
        let grpc_status = is_grpc.then(|| grpc_status(failure.reason));
        if let Some(status) = grpc_status {
            response = Response::new(Either::Right(Full::default()));
            let headers = response.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(u16::from(status)));
            // Percent-encoding is asked for only outside printable ASCII.
            let message = text.replace('\n', " ");
            if let Ok(message) = HeaderValue::from_str(message.trim_end()) {
                headers.insert("grpc-message", message);
            }
        } else {
            response = Response::new(Either::Right(Full::from(text)));
            *response.status_mut() = StatusCode::from_u16(http_status(failure.reason))
                .unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        }
        let status = response.status().as_u16();
        self.metrics
            .refused(failure, status, GrpcStatus(grpc_status));
        let code = HeaderValue::from_static(failure.reason.code());
        response.headers_mut().insert(REASON_HEADER, code);
        response
    }
}

/// Two hosts would mean one thing to policy and another to the server.
fn names_one_host<B>(request: &Request<B>) -> bool {
    let authority = request.uri().authority();
    let authority = authority.map(|authority| authority.as_str().as_bytes());
    let headers = request.headers().get_all(http::header::HOST).iter();
    let mut names = authority
        .into_iter()
        .chain(headers.map(HeaderValue::as_bytes));
    let first = names.next().unwrap_or_default();
    names.all(|name| name.eq_ignore_ascii_case(first))
}

/// PERMISSION_DENIED where a rule refused, UNAVAILABLE where trying again may
/// help, INTERNAL for the rest.
fn grpc_status(reason: Reason) -> u8 {
    match http_status(reason) {
        403 => 7,
        503 => 14,
        _ => 13,
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
struct OnThisThread;

impl<F> Executor<F> for OnThisThread
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Direction, Metrics};
    use bulkhead_core::sidecar::{SidecarConfig, default_trust_domain};
    use bulkhead_runtime::drain;
    use prometheus_client::registry::Registry;
    use tokio::io::AsyncWriteExt as _;

    fn metrics() -> Metrics {
        let config = SidecarConfig::new(default_trust_domain(), "shop".into(), "cart".into());
        Metrics::new(&config, &config.spiffe_id().unwrap())
    }

    fn of_a_stranger(metrics: &Metrics) -> Rc<HttpMetrics> {
        Rc::new(metrics.http(Direction::Inbound, metrics.inbound(None)))
    }

    fn failure() -> Failure {
        Failure::new(Reason::PlaintextRefused, "in a test")
    }

    #[test]
    fn a_request_names_one_host() {
        for (uri, hosts, is_one) in [
            ("http://cart/", &[][..], true),
            ("http://cart/", &["CART"], true),
            ("http://cart/", &["ledger"], false),
            ("/", &["cart"], true),
            ("/", &["cart", "ledger"], false),
        ] {
            let request = hosts.iter().fold(Request::get(uri), |request, host| {
                request.header("host", *host)
            });
            let request = request.body(()).unwrap();
            assert_eq!(names_one_host(&request), is_one, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_refused_grpc_call_is_counted_as_the_client_sees_it() {
        let metrics = metrics();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let forward = Forward {
            places: Refused(failure()),
            servers: RefCell::default(),
            metrics: of_a_stranger(&metrics),
            policy: None,
        };
        let response = forward.refuse(true, &failure());
        assert_eq!(response.headers()["grpc-status"], "7");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let labels = "request_protocol=\"grpc\",response_code=\"200\",\
                      grpc_response_status=\"7\",response_flags=\"UAEX\"";
        assert!(text.contains(labels), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_client_does_not_keep_its_connection() {
        let (_trigger, drain) = drain::channel();
        let mut session = Session {
            metrics: of_a_stranger(&metrics()),
            drain,
            policy: None,
        };
        let (mut client, server) = tokio::io::duplex(4096);
        let preface_and_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        client.write_all(preface_and_settings).await.unwrap();
        let refused = refuse(server, failure(), &mut session);
        let refused = timeout(REFUSAL_TIMEOUT * 2, refused);
        let ended = tokio::task::LocalSet::new().run_until(refused).await;
        ended.expect("it ends by itself").unwrap();
    }
}
