//! HTTP/2, gRPC included: each stream forwarded as it is, trailers too, over
//! connections to servers that belong to the client's connection: one to each
//! place that its streams go to.

mod limits;
mod observed;
mod replay;
mod request;
mod server_io;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::accounts::{self, Account, Busy};
use crate::failure::{Failure, REASON_HEADER, explanation, http_status};
use crate::http1::{MAX_HEAD, Session};
use crate::metrics::{GrpcStatus, HttpMetrics, HttpRequest};
use crate::trace::{Beginner, TRACEPARENT};
use crate::upstream::{Connect, InFlight, Place, Refused, Stream, Upstream};
use limits::Limits;
use observed::Observed;
use replay::{Replay, Sending};
use server_io::{Break, ServerIo};

/// Streams that a client may open and reset at once before its connection is
/// closed (CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 64;
/// How often a silent client is asked whether it is still there, and how long it
/// may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a request is sent that nobody has looked at.
const MAX_SENDINGS: usize = 4;
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

    /// Where the stream goes after this failure of the place that was tried last, or
    /// the failure where there is no other place.
    async fn next(
        &self,
        tried: &mut Vec<Self::Place>,
        failure: Failure,
    ) -> Result<Self::Place, Failure>;

    /// Whether anything new may go to a place that was chosen before.
    fn is_current(&self, place: &Self::Place) -> bool;

    /// Whether the server there has proved who it is, so that what it says of a
    /// request's delivery is its own word.
    fn vouches(&self, place: &Self::Place) -> bool;

    /// Leaves a place alone for a while: it is about to go, or there is nobody behind
    /// its proxy.
    fn avoid(&self, place: &Self::Place);

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

    async fn next(&self, _tried: &mut Vec<()>, failure: Failure) -> Result<(), Failure> {
        Err(failure)
    }

    async fn connect(&self, (): &()) -> Result<C::Io, Failure> {
        C::connect(self).await
    }

    fn is_current(&self, (): &()) -> bool {
        true
    }

    fn vouches(&self, (): &()) -> bool {
        false
    }

    fn avoid(&self, (): &()) {}

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

    async fn next(&self, tried: &mut Vec<Place>, failure: Failure) -> Result<Place, Failure> {
        Upstream::next(self, tried, failure).await
    }

    async fn connect(&self, place: &Place) -> Result<Stream, Failure> {
        self.connect_to(place, Protocol::Http2).await
    }

    fn is_current(&self, place: &Place) -> bool {
        Upstream::is_current(self, place)
    }

    fn vouches(&self, place: &Place) -> bool {
        place.identity().is_some()
    }

    fn avoid(&self, place: &Place) {
        place.avoid();
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
        trace: session.trace,
        account: session.terms.account.clone(),
        given_up: watch::Sender::new(false),
    });
    let give_up = Rc::clone(&forward);
    let executor = OnThisThread(session.terms.account.clone());
    let limits = Limits::within(session.terms.account.limit());
    drop(session.terms.account.busy());
    let service = service_fn(move |request| {
        let forward = Rc::clone(&forward);
        async move { Ok::<_, Infallible>(forward.serve(request).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_send_buf_size(limits.send_buffer)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_RESET_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = std::pin::pin!(connection);
    let account = session.terms.account.clone();
    let to_end = async {
        tokio::select! {
            () = session.terms.end() => {}
            () = account.asked_to_close() => {}
        }
    };
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(io::Error::other),
        () = to_end => {}
    }
    // GOAWAY: streams in hand are finished, new ones go elsewhere.
    connection.as_mut().graceful_shutdown();
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = account.asked_to_answer() => {
            give_up.given_up.send_replace(true);
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
    trace: Option<Beginner>,
    account: Account,
    /// Whether streams that wait for their response are told that memory is short.
    given_up: watch::Sender<bool>,
}

/// What a stream holds on to until its end.
type InHand = (Busy, Option<InFlight>);

/// The connection to one place, made when the first stream needs it. Whoever
/// makes it holds the lock, so that others wait for it and make none.
type Slot = Rc<tokio::sync::Mutex<Option<Server>>>;

/// A connection to the server.
#[derive(Clone)]
struct Server {
    sender: SendRequest<Sending>,
    broke: Break,
}

impl Server {
    /// Whether it would refuse the next connection too.
    fn refused_us(&self) -> bool {
        let broke = self.broke.failure();
        broke.is_some_and(|failure| failure.reason == Reason::TlsHandshakeFailed)
    }

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
        let busy = self.account.busy();
        let seen = self.metrics.begin_http2(&request);
        let waiting = self.account.waiting();
        let mut given_up = self.given_up.subscribe();
        let sent = tokio::select! {
            biased;
            sent = self.send_checked(request, &seen) => sent,
            _ = given_up.wait_for(|given_up| *given_up) => Err(accounts::held_the_most()),
        };
        waiting.ends();
        match sent {
            Ok((response, held)) => {
                let metrics = Rc::clone(&self.metrics);
                let in_hand = (busy, held);
                Observed::new(response, metrics, seen, started, in_hand).map(Either::Left)
            }
            Err(failure) => self.refuse(&seen, &failure, started.elapsed()),
        }
    }

    /// Sends a request that may be sent.
    async fn send_checked(
        &self,
        request: Request<Incoming>,
        seen: &HttpRequest,
    ) -> Result<(Response<Incoming>, Option<InFlight>), Failure> {
        self.account.check()?;
        let checked = request::checked(request);
        let request = checked.map_err(|error| Failure::new(Reason::RequestMalformed, error))?;
        self.send(request, seen).await
    }

    /// Sends a request: once more, to another server or on another connection, for as
    /// long as nobody has looked at it.
    async fn send(
        &self,
        mut request: Request<Incoming>,
        seen: &HttpRequest,
    ) -> Result<(Response<Incoming>, Option<InFlight>), Failure> {
        let begun = self
            .trace
            .and_then(|trace| trace.for_headers(request.headers()));
        if let Some(begun) = begun.and_then(|begun| HeaderValue::try_from(begun).ok()) {
            request.headers_mut().insert(TRACEPARENT, begun);
        }
        let replay = Replay::new(request, seen.received());
        let mut tried = Vec::new();
        let mut sendings = 0;
        loop {
            let (place, mut server, held) = self.server(&mut tried).await?;
            let Some(request) = replay.request() else {
                let detail = "it ended the connection while the request was sent";
                return Err(Failure::new(Reason::UpstreamClosed, detail));
            };
            sendings += 1;
            match server.sender.try_send_request(request).await {
                Ok(response) if !is_undelivered(response.headers()) => {
                    return Ok((response, held));
                }
                Ok(response) if self.places.vouches(&place) => {
                    // In our own words, because the server's proxy is not the last.
                    drop(response);
                    self.places.avoid(&place);
                    tried.push(place);
                }
                Ok(mut response) => {
                    // An application that passes on what its own upstream's proxy
                    // said has had the request; in our mouth it would say the contrary.
                    response.headers_mut().remove(REASON_HEADER);
                    return Ok((response, held));
                }
                Err(error) => {
                    let is_unseen = error.message().is_some() || is_unprocessed(error.error());
                    if !is_unseen || sendings == MAX_SENDINGS || server.refused_us() {
                        return Err(server.failure(error.error()));
                    }
                }
            }
        }
    }

    /// A connection to the place whose turn it is, or to another one where that
    /// does not answer; none of those where the application was not reached.
    async fn server(
        &self,
        tried: &mut Vec<P::Place>,
    ) -> Result<(P::Place, Server, Option<InFlight>), Failure> {
        let undelivered = !tried.is_empty();
        let mut place = self.places.choose(tried).map_err(|failure| {
            // There is no other; so what the first one said is the answer.
            if undelivered {
                Failure::undelivered()
            } else {
                failure
            }
        })?;
        if self.has_left(&place) {
            self.places.avoid(&place);
            place = self.places.choose(tried)?;
        }
        loop {
            let held = self.places.hold(&place);
            let failure = match self.server_at(&place).await {
                Ok(server) => return Ok((place, server, held)),
                Err(failure) => failure,
            };
            tried.push(place);
            place = self.places.next(tried, failure).await?;
        }
    }

    /// Whether the server there has closed its connection, or is about to: it is
    /// likely to be about to go itself.
    fn has_left(&self, place: &P::Place) -> bool {
        let servers = self.servers.borrow();
        let slot = servers.iter().find(|(known, _)| known == place);
        let kept = slot.and_then(|(_, slot)| slot.try_lock().ok());
        kept.is_some_and(|mut kept| kept.take_if(|server| server.sender.is_closed()).is_some())
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
        let limits = Limits::within(self.account.limit());
        let handshake =
            hyper::client::conn::http2::Builder::new(OnThisThread(self.account.clone()))
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEAD as u32)
                .initial_stream_window_size(limits.stream_window)
                .initial_connection_window_size(limits.connection_window)
                .max_send_buf_size(limits.send_buffer)
                .handshake(TokioIo::new(io))
                .await;
        let (sender, connection) =
            handshake.map_err(|error| Failure::new(Reason::UpstreamConnectFailed, error))?;
        tokio::task::spawn_local(self.account.meter(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 connection to a server ended");
            }
        }));
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
    fn refuse(&self, seen: &HttpRequest, failure: &Failure, took: Duration) -> Response<Body> {
        let text = explanation(failure, self.policy.as_deref());
        let mut response;
        let grpc_status = seen.is_grpc().then(|| grpc_status(failure.reason));
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
            // A body waits for the client's window, and its stream with it: to refuse
            // would take memory where there is none.
            let is_for_memory = failure.reason == Reason::Overloaded;
            let body = if is_for_memory {
                Full::default()
            } else {
                Full::from(text)
            };
            response = Response::new(Either::Right(body));
            *response.status_mut() = StatusCode::from_u16(http_status(failure.reason))
                .unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        }
        let status = response.status().as_u16();
        let grpc_status = GrpcStatus(grpc_status);
        self.metrics
            .refused(Some(seen), failure, status, grpc_status, took);
        let code = HeaderValue::from_static(failure.reason.code());
        response.headers_mut().insert(REASON_HEADER, code);
        response
    }
}

/// Whether this is how a proxy of ours says that it could not connect to its
/// application, which happens while a pod is on its way out.
fn is_undelivered(headers: &HeaderMap) -> bool {
    let reason = headers.get(REASON_HEADER);
    reason.is_some_and(|reason| reason == Reason::UpstreamConnectFailed.code())
}

/// Whether the server says that it has not looked at a request and will not: it was
/// refused, or is beyond the last of which GOAWAY says that it is served (RFC 9113, 8.7).
fn is_unprocessed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let error = source.and_then(|error| error.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (is_refused || error.is_go_away())
    })
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

/// Runs hyper's tasks on the worker's own thread, on a connection's account.
#[derive(Clone)]
struct OnThisThread(Account);

impl<F> Executor<F> for OnThisThread
where
    F: Future<Output: 'static> + 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(self.0.meter(task));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::AccessLog;
    use crate::accounts::{Accounts, Terms};
    use crate::budget::Budget;
    use crate::metrics::{Direction, Metrics};
    use bulkhead_core::sidecar::{SidecarConfig, default_trust_domain};
    use bulkhead_runtime::drain;
    use prometheus_client::registry::Registry;
    use tokio::io::AsyncWriteExt as _;

    fn metrics() -> Metrics {
        let config = SidecarConfig::new(default_trust_domain(), "shop".into(), "cart".into());
        Metrics::new(&config, &config.spiffe_id().unwrap(), AccessLog::silent())
    }

    fn of_a_stranger(metrics: &Metrics) -> Rc<HttpMetrics> {
        Rc::new(metrics.http(Direction::Inbound, metrics.inbound(None)))
    }

    fn account() -> Account {
        Accounts::new(Budget::new(None)).open().account.clone()
    }

    fn failure() -> Failure {
        Failure::new(Reason::PlaintextRefused, "in a test")
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
            trace: None,
            account: account(),
            given_up: watch::Sender::new(false),
        };
        let call = Request::post("/").header("content-type", "application/grpc");
        let call = forward.metrics.begin_http2(&call.body(()).unwrap());
        let response = forward.refuse(&call, &failure(), Duration::ZERO);
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
            terms: Terms {
                drain,
                until: None,
                account: account(),
            },
            policy: None,
            trace: None,
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
