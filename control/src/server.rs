//! Connections: TCP, mutual TLS, HTTP/2, and a bound on everything that a
//! stranger can make us hold.

mod shares;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::identity::SpiffeId;
use bulkhead_core::protocol::Protocol;
use bulkhead_proto::xds::{AggregatedDiscoveryServiceServer, MAX_REQUEST};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_workload::credentials::Latest;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codegen::Service as _;

use crate::audit::Audit;
use crate::metrics::Metrics;
use crate::service::{Caller, Discovery};
use shares::{Share, Shares};

/// Descriptors for all but proxies' connections: monitoring, the API server, files.
const OTHER_DESCRIPTORS: u64 = 256;
/// How long a client may take to agree on TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Streams at once on one connection: a proxy needs one.
const MAX_STREAMS: u32 = 4;
/// The headers that gRPC adds.
const MAX_HEADERS: u32 = 8 * 1024;
/// How much of an answer waits for a client that does not read.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// A client that does not answer a ping in time is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may live: at random between half of it and all, so that
/// proxies that came together do not come back together.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// How long a connection may live on after its streams have been ended.
const GRACE: Duration = Duration::from_secs(5);
/// After a failed accept, which is nearly always a lack of file descriptors:
/// trying again at once would take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many connections wait in the kernel: all proxies come at once when the
/// other replica goes.
const BACKLOG: u32 = 4096;

/// How much of what there is for all anybody may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections held at once; more wait in the kernel's backlog.
    pub connections: usize,
    /// Connections of one identity. All pods of a ServiceAccount have one, and
    /// each pod one connection: more pods than that need more replicas.
    pub of_identity: usize,
    /// Connections from one address that have proved no identity yet: as many as
    /// a node has pods, which may all come from the node's address.
    pub unproven: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            of_identity: 5_000,
            unproven: 256,
        }
    }
}

impl Limits {
    /// No more connections than this process may have descriptors for.
    #[must_use]
    pub fn within(self, descriptors: u64) -> Self {
        let room = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(1);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        if room < self.connections {
            tracing::warn!(
                descriptors,
                connections = room,
                "the hard limit of open descriptors leaves room for few proxies; the container runtime sets it (LimitNOFILE of its service)"
            );
        }
        Self {
            connections: self.connections.min(room),
            ..self
        }
    }
}

type Calls = AggregatedDiscoveryServiceServer<Discovery>;

/// Binds the port.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What the server is made of.
pub(crate) struct Server {
    pub(crate) discovery: Discovery,
    pub(crate) credentials: Latest,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
}

impl Server {
    /// Serves until the drain starts.
    pub(crate) async fn serve(self, listener: TcpListener, mut drain: drain::Watch) {
        let discovery = self.discovery.clone();
        let calls = Calls::new(discovery)
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(usize::MAX);
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let unproven = Shares::new(self.limits.unproven);
        let identities = Shares::new(self.limits.of_identity);
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return; // Never closed.
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.started() => return,
            };
            match accepted {
                Ok((stream, client)) => {
                    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                    let Some(unproven) = unproven.take(client.ip()) else {
                        self.metrics.refused("too_many_connections");
                        continue;
                    };
                    let connection = Connection {
                        client,
                        identities: identities.clone(),
                        audit: self.discovery.hub.audit().clone(),
                        calls: calls.clone(),
                        credentials: self.credentials.clone(),
                        clock: self.clock.clone(),
                        metrics: self.metrics.clone(),
                        drain: drain.clone(),
                        _place: place,
                    };
                    tokio::spawn(connection.run(stream, unproven));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One proxy's connection.
struct Connection {
    client: SocketAddr,
    identities: Shares<SpiffeId>,
    audit: Audit,
    calls: Calls,
    credentials: Latest,
    clock: Clock,
    metrics: Metrics,
    drain: drain::Watch,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(mut self, stream: TcpStream, unproven: Share<IpAddr>) {
        self.metrics.connections.inc();
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream)).await;
        drop(unproven);
        match handshake {
            Ok(Some((stream, caller))) => match self.identities.take(caller.id.clone()) {
                Some(_share) => self.serve(stream, caller).await,
                None => {
                    self.metrics.refused("too_many_connections");
                    self.audit.refused_connection(self.client, &caller.id);
                }
            },
            Ok(None) | Err(_) => {
                self.metrics.handshake_failures.inc();
                tracing::debug!(client = %self.client, "a client proved no identity of the mesh");
            }
        }
        self.metrics.connections.dec();
    }

    async fn handshake(&self, stream: TcpStream) -> Option<(TlsStream<TcpStream>, Caller)> {
        // A message is one small write; waiting to fill a packet only delays it.
        let _ = stream.set_nodelay(true);
        let credentials = self.credentials.get()?;
        let acceptor = TlsAcceptor::from(credentials.server_config(Protocol::Grpc));
        let stream = acceptor.accept(stream).await.ok()?;
        let now = self.clock.now();
        let peer = credentials.peer(stream.get_ref().1, now).ok()?;
        let age = MAX_AGE.mul_f64(0.5 + bulkhead_runtime::backoff::jitter() / 2.0);
        let valid_for = peer.not_after().duration_since(now).unwrap_or_default();
        let caller = Caller {
            id: peer.id().clone(),
            address: self.client,
            until: Instant::now() + age.min(valid_for),
        };
        Some((stream, caller))
    }

    async fn serve(&mut self, stream: TlsStream<TcpStream>, caller: Caller) {
        let until = caller.until;
        let calls = &self.calls;
        let service = service_fn(move |request| answer(calls.clone(), request, caller.clone()));
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = self.drain.started() => None,
            () = tokio::time::sleep_until(until) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // The streams end by themselves, at the same moment.
                let rest = tokio::time::timeout(GRACE, connection);
                rest.await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            // Whatever went wrong on the connection is the client's affair.
            tracing::debug!(client = %self.client, %error, "a proxy's connection ended with an error");
        }
    }
}

/// One stream.
async fn answer(
    mut calls: Calls,
    mut request: hyper::Request<Incoming>,
    caller: Caller,
) -> Result<hyper::Response<tonic::body::Body>, Infallible> {
    request.extensions_mut().insert(caller);
    calls.call(request).await
}
