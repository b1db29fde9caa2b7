//! One client's connection, from its first byte to its last.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_runtime::drain;
use futures::FutureExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{BufWriter, Interest};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codegen::Service;
use tonic::{Extensions, Status};

use super::calls::Calls;
use super::guests::{Guest, Guests};
use crate::metrics::Metrics;
use crate::queue::{FairQueue, Turn, Urgency};
use crate::serving::ServingTls;

/// How long a client may take to agree on TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may then take until a call of its had a good token.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a call may take, from its headers to its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Calls at once on one connection: a workload needs one, a node's proxy some.
const MAX_CALLS: u32 = 32;
/// A token, and the headers that gRPC adds.
const MAX_HEADERS: u32 = 16 * 1024;
/// How much of its requests a client may send before they are read.
const WINDOW: u32 = 64 * 1024;
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

/// What a connection is served with.
pub(super) struct Connection {
    pub(super) client: SocketAddr,
    pub(super) calls: Calls,
    pub(super) tls: Arc<ServingTls>,
    pub(super) strangers: FairQueue<IpAddr>,
    pub(super) guests: Guests,
    pub(super) metrics: Metrics,
    pub(super) drain: drain::Watch,
}

/// What a call knows of whoever sent it. The server puts it beside each request.
#[derive(Clone, Debug)]
pub struct Peer {
    address: SocketAddr,
    standing: Arc<Mutex<Standing>>,
    guests: Guests,
    leave: Arc<Notify>,
}

/// What a connection's client has proved.
#[derive(Debug)]
enum Standing {
    Stranger { _turn: Turn<IpAddr> },
    Guest(Guest),
}

impl Peer {
    fn stranger(address: SocketAddr, turn: Turn<IpAddr>, guests: Guests) -> Self {
        Self {
            address,
            standing: Arc::new(Mutex::new(Standing::Stranger { _turn: turn })),
            guests,
            leave: Arc::default(),
        }
    }

    /// Whoever sent a call; the server puts it beside each.
    pub fn of_call(extensions: &Extensions) -> Result<&Self, Status> {
        let peer = extensions.get();
        peer.ok_or_else(|| Status::internal("the call came by no connection"))
    }

    /// Where the connection comes from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A call of this connection had a good token.
    pub fn is_authenticated(&self) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        match &*standing {
            Standing::Stranger { .. } => {
                let guest = self.guests.enter(Arc::clone(&self.leave));
                *standing = Standing::Guest(guest);
            }
            Standing::Guest(guest) => guest.is_back(),
        }
    }

    fn is_guest(&self) -> bool {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*standing, Standing::Guest(_))
    }
}

impl Connection {
    pub(super) async fn serve(mut self, stream: TcpStream) {
        let address = self.client.ip();
        let turn = tokio::select! {
            turn = self.strangers.turn(address, Urgency::NoCertificate) => turn,
            () = self.drain.started() => return,
        };
        let Ok(turn) = turn else {
            // Before TLS there is no way to say when to come again.
            self.metrics.connections_refused.inc();
            return;
        };
        if has_gone(&stream) {
            return;
        }
        // What follows is large, and most who wait have not come so far.
        Box::pin(self.serve_until_closed(stream, turn)).await;
    }

    async fn serve_until_closed(mut self, stream: TcpStream, turn: Turn<IpAddr>) {
        let _open = self.metrics.connection();
        // A message is one small write; waiting to fill a packet only delays it.
        let _ = stream.set_nodelay(true);
        // An answer and its trailers are two writes; they leave as one packet.
        let stream = BufWriter::with_capacity(WRITE_BUFFER, stream);
        let handshake = TlsAcceptor::from(self.tls.config()).accept(stream);
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => handshake,
            () = self.drain.started() => return,
        };
        let Ok(Ok(stream)) = handshake else {
            self.metrics.handshake_failures.inc();
            tracing::debug!(client = %self.client, "a client did not agree on TLS");
            return;
        };
        let peer = Peer::stranger(self.client, turn, self.guests.clone());
        self.serve_calls(stream, peer).await;
    }

    async fn serve_calls(&mut self, stream: TlsStream<BufWriter<TcpStream>>, peer: Peer) {
        let calls = &self.calls;
        let service = {
            let peer = peer.clone();
            service_fn(move |request| answer(calls.clone(), request, peer.clone()))
        };
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_CALLS)
            .max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = self.drain.started() => None,
            () = stay(&peer) => None,
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
            tracing::debug!(client = %self.client, %error, "a client's connection ended with an error");
        }
    }
}

/// Whether the client hung up while it waited.
fn has_gone(stream: &TcpStream) -> bool {
    match stream.ready(Interest::READABLE).now_or_never() {
        Some(Ok(ready)) => ready.is_read_closed(),
        Some(Err(_)) => true,
        None => false,
    }
}

/// How long a client may stay: a stranger not for long, a guest until somebody
/// else needs the place, and nobody for ever.
async fn stay(peer: &Peer) {
    let too_long_a_stranger = async {
        tokio::time::sleep(STRANGER_TIMEOUT).await;
        if peer.is_guest() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = peer.leave.notified() => {}
        () = too_long_a_stranger => {}
        () = tokio::time::sleep(MAX_AGE) => {}
    }
}

/// One call, within its time.
async fn answer(
    mut calls: Calls,
    mut request: hyper::Request<Incoming>,
    peer: Peer,
) -> Result<hyper::Response<tonic::body::Body>, Infallible> {
    request.extensions_mut().insert(peer);
    match tokio::time::timeout(CALL_TIMEOUT, calls.call(request)).await {
        Ok(answered) => answered,
        Err(_) => Ok(Status::deadline_exceeded("the call took too long").into_http()),
    }
}
