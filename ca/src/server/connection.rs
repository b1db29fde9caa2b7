//! One client's connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bulkhead_pki::verifier::ShownChain;
use bulkhead_runtime::drain;
use futures::FutureExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codegen::Service;
use tonic::{Extensions, Status};

use super::allowance::{Allowance, Metered};
use super::calls::Calls;
use super::guests::{Door, Guest, Guests};
use super::outbox::Outbox;
use crate::limits::Limits;
use crate::metrics::{Counted, Metrics};
use crate::queue::{FairQueue, Turn, Urgency};
use crate::serving::ServingTls;

/// Calls at once on one connection: a workload needs one, a node's proxy some.
const MAX_CALLS: u32 = 32;
/// A token, and the headers that gRPC adds.
const MAX_HEADERS: u32 = 16 * 1024;
/// How much of its requests a client may send before they are read.
const WINDOW: u32 = 64 * 1024;
/// How much of an answer waits for a client that does not read.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// A client that does not answer a ping in time is gone.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may live. Clients that stay connected spread over the
/// replicas again this way, and nobody keeps a place for ever.
const MAX_AGE: Duration = Duration::from_secs(3600);

type ClientOutbox = Outbox<Metered<TcpStream>>;

/// What a connection is served with.
pub(super) struct Connection {
    pub(super) client: SocketAddr,
    pub(super) calls: Calls,
    pub(super) tls: Arc<ServingTls>,
    pub(super) strangers: FairQueue<IpAddr>,
    pub(super) guests: Guests,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    pub(super) drain: drain::Watch,
    /// One of all the connections that there may be.
    pub(super) _place: OwnedSemaphorePermit,
}

/// A client with whom TLS was agreed on.
struct Agreed {
    stream: Box<TlsStream<ClientOutbox>>,
    outbox: ClientOutbox,
    peer: Peer,
    _open: Counted,
}

/// What a call knows of whoever sent it. The server puts it beside each request.
#[derive(Clone, Debug)]
pub struct Peer {
    address: SocketAddr,
    shown: Option<Arc<ShownChain>>,
    standing: Arc<Mutex<Standing>>,
    guests: Guests,
    door: Arc<Door>,
    allowance: Allowance,
}

/// What a connection's client has proved.
#[derive(Debug)]
enum Standing {
    Stranger { _turn: Turn<IpAddr> },
    Guest(Guest),
}

impl Peer {
    fn stranger(
        address: SocketAddr,
        shown: Option<ShownChain>,
        turn: Turn<IpAddr>,
        guests: Guests,
        allowance: Allowance,
    ) -> Self {
        Self {
            address,
            shown: shown.map(Arc::new),
            standing: Arc::new(Mutex::new(Standing::Stranger { _turn: turn })),
            guests,
            door: Arc::default(),
            allowance,
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

    /// The certificate that the client has the key of, where it was asked for one.
    pub fn shown(&self) -> Option<&ShownChain> {
        self.shown.as_deref()
    }

    /// A call of this connection had a good token, of a caller of this name.
    pub fn is_authenticated(&self, caller: &str) {
        self.allowance.renew();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        match &*standing {
            Standing::Stranger { .. } => {
                let guest = self.guests.enter(caller, Arc::clone(&self.door));
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
        if self.tls.config().is_none() {
            // It comes again, or asks another replica, sooner than if it waited.
            self.metrics.connections_refused.inc();
            return;
        }
        let address = self.client.ip();
        let waiting = self.metrics.waiting("connection");
        let turn = tokio::select! {
            turn = self.strangers.turn(address, Urgency::NoCertificate) => turn,
            () = self.drain.started() => return,
        };
        drop(waiting);
        let turn = match turn {
            Ok(turn) => turn,
            Err(busy) => {
                // Before TLS there is no way to say when to come again.
                self.metrics.connections_refused.inc();
                tracing::debug!(client = %self.client, why = %busy.why, "a connection was closed");
                return;
            }
        };
        if has_gone(&stream) {
            return;
        }
        // What follows is large, and most who wait have not come so far; what is over
        // gives back what it took.
        if let Some(agreed) = Box::pin(self.shake_hands(stream, turn)).await {
            Box::pin(self.serve_calls(agreed)).await;
        }
    }

    /// Agrees with the client on TLS.
    async fn shake_hands(&mut self, stream: TcpStream, turn: Turn<IpAddr>) -> Option<Agreed> {
        let open = self.metrics.connection();
        // A message is one small write; waiting to fill a packet only delays it.
        let _ = stream.set_nodelay(true);
        let allowance = Allowance::new(self.limits.unproved_bytes);
        let outbox = Outbox::new(Metered::new(stream, allowance.clone()));
        let Some(config) = self.tls.config() else {
            self.metrics.connections_refused.inc();
            return None;
        };
        let handshake = TlsAcceptor::from(config).accept(outbox.clone());
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(self.limits.handshake, handshake) => handshake,
            () = self.drain.started() => return None,
        };
        let Ok(Ok(stream)) = handshake else {
            self.metrics.handshake_failures.inc();
            tracing::debug!(client = %self.client, "a client did not agree on TLS");
            return None;
        };
        let shown = ShownChain::of_connection(stream.get_ref().1);
        let peer = Peer::stranger(self.client, shown, turn, self.guests.clone(), allowance);
        Some(Agreed {
            stream: Box::new(stream),
            outbox,
            peer,
            _open: open,
        })
    }

    async fn serve_calls(&mut self, agreed: Agreed) {
        let Agreed {
            stream,
            outbox,
            peer,
            _open,
        } = agreed;
        outbox.put_off();
        let (calls, limits) = (&self.calls, self.limits);
        let service = {
            let peer = peer.clone();
            service_fn(move |request| answer(calls.clone(), request, peer.clone(), limits.call))
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
            ended = sending(connection.as_mut(), &outbox) => Some(ended),
            () = self.drain.started() => None,
            () = stay(&peer, limits.stranger) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // Time for the calls in hand, and for the client to read on.
                let rest = sending(connection, &outbox);
                let rest = tokio::time::timeout(2 * limits.call, rest);
                tokio::select! {
                    rest = rest => rest.unwrap_or(Ok(())),
                    () = peer.door.cut() => Ok(()),
                }
            }
        };
        if peer.allowance.is_used_up() {
            self.metrics.connections_flooded.inc();
        }
        if let Err(error) = ended {
            // Whatever went wrong on the connection is the client's affair.
            tracing::debug!(client = %self.client, %error, "a client's connection ended with an error");
        }
    }
}

/// Runs a connection, and sends what it has to say each time that it pauses.
async fn sending(
    mut connection: Pin<&mut impl Future<Output = hyper::Result<()>>>,
    outbox: &ClientOutbox,
) -> io::Result<()> {
    poll_fn(|cx| {
        let polled = connection.as_mut().poll(cx);
        let sent = outbox.poll_send(cx);
        match (polled, sent) {
            (Poll::Ready(ended), _) => Poll::Ready(ended.map_err(io::Error::other)),
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Pending, _) => Poll::Pending,
        }
    })
    .await
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
async fn stay(peer: &Peer, stranger: Duration) {
    let too_long_a_stranger = async {
        tokio::time::sleep(stranger).await;
        if peer.is_guest() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = peer.door.leave() => {}
        () = too_long_a_stranger => {}
        () = tokio::time::sleep(MAX_AGE) => {}
    }
}

/// One call, within its time.
async fn answer(
    mut calls: Calls,
    mut request: hyper::Request<Incoming>,
    peer: Peer,
    time: Duration,
) -> Result<hyper::Response<tonic::body::Body>, Infallible> {
    request.extensions_mut().insert(peer);
    match tokio::time::timeout(time, calls.call(request)).await {
        Ok(answered) => answered,
        Err(_) => Ok(Status::deadline_exceeded("the call took too long").into_http()),
    }
}
