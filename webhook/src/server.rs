//! The HTTPS server: connections in, reviews out, and limits that hold against
//! anybody in the cluster who can reach the port.
//!
//! ```text
//!  accept ─▶ place ─▶ TLS handshake ─▶ HTTP/1.1 or h2 ─▶ routes ─▶ injector
//!           (512)     (5 s)            (idle: see below)  body: 3 MiB, 5 s
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode, Version};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use bulkhead_runtime::drain;
use futures::FutureExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::activity::Activity;
use self::body::{BodyError, Budget};
use crate::admission::Injector;
use crate::metrics::Metrics;
use crate::registration::INJECT_PATH;

mod activity;
pub(crate) mod body;

/// Connections at once. An API server opens one for each review in flight and
/// keeps 25 of them.
const MAX_CONNECTIONS: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to send the head of its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// The same, once the drain has started.
const FIRST_REQUEST_IN_DRAIN: Duration = Duration::from_secs(1);
/// How long a connection may be without a request after that, which includes the wait for
/// the head of one. The API server closes its idle connections after 90 s; if
/// we were the first to, a review that it sends at that moment would be lost.
const IDLE: Duration = Duration::from_secs(180);
/// The same, while few places are left.
const IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(5);
const FEW_PLACES: usize = MAX_CONNECTIONS / 4;
/// How long a client has for the last bytes after it was told to go.
const CLOSING: Duration = Duration::from_secs(5);
/// After a failed accept, which is nearly always a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// An API server's own limit for headers is 1 MiB; its reviews have 300 bytes
/// of them.
const MAX_HEAD: usize = 32 * 1024;
/// What an h2 connection may have in flight to us, in bytes, unread.
const H2_WINDOW: u32 = 128 * 1024;
const H2_STREAMS: u32 = 64;

/// Everything that a connection needs. Cheap to clone.
#[derive(Clone)]
struct Shared {
    injector: Arc<Injector>,
    budget: Budget,
    metrics: Metrics,
    leaving: watch::Receiver<bool>,
    places: Arc<Semaphore>,
}

/// What a server serves by.
pub(crate) struct Serving {
    /// The certificate of new connections; nothing before there is one.
    pub(crate) tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    pub(crate) injector: Arc<Injector>,
    /// Holds when this server is about to go: its clients should come back to
    /// another one, so each connection serves one more request.
    pub(crate) leaving: watch::Receiver<bool>,
    pub(crate) metrics: Metrics,
}

/// Serves reviews until the drain starts, then finishes those in hand.
pub(crate) async fn serve(listener: TcpListener, serving: Serving, mut drain: drain::Watch) {
    let Serving {
        mut tls,
        injector,
        leaving,
        metrics,
    } = serving;
    let shared = Shared {
        injector,
        budget: Budget::default(),
        metrics,
        leaving,
        places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
    };
    let routes = routes(shared.clone());
    // Until there is a certificate, callers wait in the backlog.
    tokio::select! {
        ready = tls.wait_for(Option::is_some) => if ready.is_err() { return },
        () = drain.started() => return,
    }
    let accept = Accept {
        listener,
        shared,
        routes,
        tls,
        drain: drain.clone(),
    };
    tokio::select! {
        () = accept.forever() => {}
        () = drain.started() => {}
    }
    // Whoever has connected already gets an answer; one that finds nobody
    // listening goes to another replica.
    while let Some(()) = accept.one().now_or_never() {}
}

/// Takes connections.
struct Accept {
    listener: TcpListener,
    shared: Shared,
    routes: Router,
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    drain: drain::Watch,
}

impl Accept {
    async fn forever(&self) {
        loop {
            self.one().await;
        }
    }

    async fn one(&self) {
        let Ok(place) = Arc::clone(&self.shared.places).acquire_owned().await else {
            return; // Never closed.
        };
        let (stream, peer) = match self.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
                return;
            }
        };
        // The newest certificate, for every connection anew.
        let Some(config) = self.tls.borrow().clone() else {
            return;
        };
        let connection = Connection {
            shared: self.shared.clone(),
            routes: self.routes.clone(),
            peer,
        };
        let drain = self.drain.clone();
        tokio::spawn(async move {
            connection.serve(stream, config, drain).await;
            drop(place);
        });
    }
}

/// One connection, from its first byte to its last.
struct Connection {
    shared: Shared,
    routes: Router,
    peer: SocketAddr,
}

impl Connection {
    async fn serve(self, stream: TcpStream, config: Arc<ServerConfig>, mut drain: drain::Watch) {
        let Some(stream) = self.handshake(stream, config).await else {
            return;
        };
        let Self { shared, routes, .. } = self;
        shared.metrics.connections.inc();
        let activity = Activity::default();
        let (requests, leaving) = (activity.clone(), shared.leaving.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let in_flight = requests.start();
            let mut routes = routes.clone();
            let leaving = leaving.clone();
            async move {
                let version = request.version();
                let answer = call(&mut routes, request.map(Body::new)).await;
                drop(in_flight);
                Ok::<_, Infallible>(told_to_go(answer, version, *leaving.borrow()))
            }
        });
        let builder = builder();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            // Whatever goes wrong on this connection is the client's affair.
            _ = connection.as_mut() => {}
            () = shared.patience(&activity, &mut drain) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    _ = connection => {}
                    () = activity.idle_for(CLOSING) => {}
                }
            }
        }
        shared.metrics.connections.dec();
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
    ) -> Option<TlsStream<TcpStream>> {
        // Answers are one small write each; waiting to fill a packet only adds
        // delay. Where it fails, it does only that.
        let _ = stream.set_nodelay(true);
        let accepting = TlsAcceptor::from(config).accept(stream);
        let problem = match timeout(HANDSHAKE_TIMEOUT, accepting).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it took longer than {HANDSHAKE_TIMEOUT:?}"),
        };
        self.shared.metrics.handshakes_failed.inc();
        tracing::debug!(peer = %self.peer, error = problem, "a TLS handshake failed");
        None
    }
}

impl Shared {
    /// Returns when a connection should be closed: it has been idle for too
    /// long, or the drain has started. A client that has only just connected
    /// is about to send its first request, so a drain waits for that one.
    async fn patience(&self, activity: &Activity, drain: &mut drain::Watch) {
        let mut is_draining = false;
        loop {
            let patience = if is_draining {
                match activity.has_begun() {
                    true => return,
                    false => FIRST_REQUEST_IN_DRAIN,
                }
            } else if self.places.available_permits() < FEW_PLACES {
                IDLE_UNDER_PRESSURE
            } else if activity.has_begun() {
                IDLE
            } else {
                FIRST_REQUEST
            };
            tokio::select! {
                () = activity.idle_for(patience) => return,
                () = activity.begun(), if !activity.has_begun() => {}
                () = drain.started(), if !is_draining => is_draining = true,
                // Often enough to notice that places have become few.
                () = sleep(IDLE_UNDER_PRESSURE) => {}
            }
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper counts idle time as time for the head; ours is above.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(H2_WINDOW)
        .initial_connection_window_size(H2_WINDOW)
        .max_concurrent_streams(H2_STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

async fn call(routes: &mut Router, request: Request) -> Response {
    use tower::Service as _;
    match routes.call(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}

/// An HTTP/1.1 client closes the connection after an answer that says so; an h2
/// one is told by the drain itself.
fn told_to_go(mut answer: Response, version: Version, leaving: bool) -> Response {
    if leaving && version < Version::HTTP_2 {
        answer
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn routes(shared: Shared) -> Router {
    Router::new()
        .route(INJECT_PATH, post(inject))
        .fallback(|| async {
            let problem = format!("there is nothing here; reviews are posted to {INJECT_PATH}\n");
            (StatusCode::NOT_FOUND, problem)
        })
        .method_not_allowed_fallback(|| async {
            let problem = format!("{INJECT_PATH} takes an AdmissionReview by POST\n");
            (StatusCode::METHOD_NOT_ALLOWED, problem)
        })
        .with_state(shared)
}

async fn inject(State(shared): State<Shared>, request: Request) -> Response {
    if !is_json(request.headers().get(CONTENT_TYPE)) {
        let problem = "an AdmissionReview comes as content-type application/json\n";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, problem).into_response();
    }
    let body = match shared.budget.read(request.into_body()).await {
        Ok(body) => body,
        Err(error) => return refused(&error),
    };
    let started = Instant::now();
    let answer = shared.injector.answer(body.bytes()).await;
    drop(body);
    shared.metrics.took(started.elapsed());
    match answer {
        Ok(review) => {
            let json = HeaderValue::from_static("application/json");
            ([(CONTENT_TYPE, json)], review).into_response()
        }
        Err(error) => {
            tracing::info!(
                status = error.status.as_u16(),
                "a review was not answered: {}",
                error.message
            );
            (error.status, format!("{}\n", error.message)).into_response()
        }
    }
}

fn is_json(content_type: Option<&HeaderValue>) -> bool {
    content_type
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}

fn refused(error: &BodyError) -> Response {
    let status = match error {
        BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
        BodyError::Cut(_) => StatusCode::BAD_REQUEST,
    };
    (status, format!("{error}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        let is = |text: &str| is_json(Some(&HeaderValue::from_str(text).unwrap()));
        assert!(is("application/json"));
        assert!(is("Application/JSON; charset=utf-8"));
        assert!(!is("application/jsonp"));
        assert!(!is("text/json"));
        assert!(!is(""));
        assert!(!is_json(None));
    }
}
