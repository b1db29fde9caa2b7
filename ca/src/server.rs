//! Connections: TCP, TLS, HTTP/2, and a bound on everything that a stranger can
//! make us hold.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bulkhead_proto::ca::IstioCertificateServiceServer;
use bulkhead_proto::workload_tokens::{self, WorkloadTokensServer};
use bulkhead_runtime::drain;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::BufWriter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::codegen::Service;

use crate::metrics::Metrics;
use crate::service::{CaService, ClientAddress};
use crate::serving::ServingTls;
use crate::workload_tokens::TokenService;

/// The most connections held at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 10_000;
/// How long a client may take to agree on TLS, which is also how long one may
/// wait for its turn when ten thousand come at once.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a call may take, from its headers to its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Calls at once on one connection: a workload needs one, a node's proxy some.
const MAX_CALLS: u32 = 32;
/// A token, and the headers that gRPC adds.
const MAX_HEADERS: u32 = 16 * 1024;
/// A request, and some room for metadata.
const MAX_MESSAGE: usize = 32 * 1024;
/// How much of an answer waits for a client that does not read.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Room for an answer and its trailers under TLS.
const WRITE_BUFFER: usize = 4 * 1024;
/// A client that does not answer a ping in time is gone.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may live. Clients that stay connected spread over the
/// replicas again this way, and nobody keeps a place for ever.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// After a failed accept, which is nearly always a lack of file descriptors:
/// trying again at once would take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many connections wait in the kernel: a cluster that starts all at once
/// must not be turned away.
const BACKLOG: u32 = 4096;

/// Both services of the port.
#[derive(Clone)]
struct Calls {
    certificates: IstioCertificateServiceServer<CaService>,
    tokens: WorkloadTokensServer<TokenService>,
}

impl Calls {
    fn new(certificates: CaService, tokens: TokenService) -> Self {
        Self {
            certificates: IstioCertificateServiceServer::new(certificates)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(usize::MAX),
            tokens: WorkloadTokensServer::new(tokens).max_decoding_message_size(MAX_MESSAGE),
        }
    }
}

impl Service<hyper::Request<Incoming>> for Calls {
    type Response = hyper::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = tonic::codegen::BoxFuture<Self::Response, Infallible>;

    /// Both are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// What is neither's path is answered with Unimplemented, by either.
    fn call(&mut self, request: hyper::Request<Incoming>) -> Self::Future {
        if request.uri().path().starts_with(workload_tokens::PATH) {
            self.tokens.call(request)
        } else {
            self.certificates.call(request)
        }
    }
}

/// Binds the port.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the drain starts, and then the calls in hand.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServingTls>,
    certificates: CaService,
    tokens: TokenService,
    metrics: Metrics,
    mut drain: drain::Watch,
) {
    let calls = Calls::new(certificates, tokens);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // Never closed.
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => {
                // The port is free before anybody hears that the drain is done.
                drop(listener);
                return;
            }
        };
        match accepted {
            Ok((stream, client)) => {
                let connection = Connection {
                    stream,
                    client: canonical(client),
                    calls: calls.clone(),
                    metrics: metrics.clone(),
                    drain: drain.clone(),
                    _place: place,
                };
                tokio::spawn(connection.serve(TlsAcceptor::from(tls.config())));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One client's connection.
struct Connection {
    stream: TcpStream,
    client: SocketAddr,
    calls: Calls,
    metrics: Metrics,
    drain: drain::Watch,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(mut self, acceptor: TlsAcceptor) {
        self.metrics.connections.inc();
        let metrics = self.metrics.clone();
        self.serve_until_closed(acceptor).await;
        metrics.connections.dec();
    }

    async fn serve_until_closed(&mut self, acceptor: TlsAcceptor) {
        // A message is one small write; waiting to fill a packet only delays it.
        let _ = self.stream.set_nodelay(true);
        // An answer and its trailers are two writes; they leave as one packet.
        let stream = BufWriter::with_capacity(WRITE_BUFFER, &mut self.stream);
        let handshake = acceptor.accept(stream);
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => handshake,
            () = self.drain.started() => return,
        };
        let Ok(Ok(stream)) = handshake else {
            self.metrics.handshake_failures.inc();
            tracing::debug!(client = %self.client, "a client did not agree on TLS");
            return;
        };
        let (client, calls) = (self.client, &self.calls);
        let service = service_fn(move |request| answer(calls.clone(), request, client));
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_CALLS)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = self.drain.started() => None,
            () = tokio::time::sleep(MAX_AGE) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // Time for the calls in hand, and for the client to read on.
                let rest = tokio::time::timeout(2 * CALL_TIMEOUT, connection);
                rest.await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            // Whatever went wrong on the connection is the client's affair.
            tracing::debug!(%client, %error, "a client's connection ended with an error");
        }
    }
}

/// One call, within its time.
async fn answer(
    mut calls: Calls,
    mut request: hyper::Request<Incoming>,
    client: SocketAddr,
) -> Result<hyper::Response<tonic::body::Body>, Infallible> {
    request.extensions_mut().insert(ClientAddress(client));
    match tokio::time::timeout(CALL_TIMEOUT, calls.call(request)).await {
        Ok(answered) => answered,
        Err(_) => Ok(Status::deadline_exceeded("the call took too long").into_http()),
    }
}

/// A socket that listens on all addresses shows IPv4 clients as IPv6 ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
