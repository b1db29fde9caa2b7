//! One endpoint: connecting to it, what is in flight to it, and its idle
//! connections.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::identity::SpiffeId;
use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bulkhead_pki::verifier::PeerError;
use futures::FutureExt as _;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::SURELY_KEPT;
use super::app;
use super::balancer::Worker;
use super::stream::{MeshStream, Stream};
use crate::buffer::Buffered;
use crate::credentials::Credentials;
use crate::failure::Failure;
use crate::socket;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than the time for which the peer's proxy keeps an idle connection, so
/// that no request meets one that is being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The most idle connections kept for one endpoint and worker.
const MAX_IDLE: usize = 256;
/// How long an endpoint that could not be connected to, or is about to go, is left
/// alone while there are others.
const AVOIDED: Duration = Duration::from_secs(5);

/// What a connection is secured with.
#[derive(Clone)]
pub(crate) enum Security {
    Plain,
    /// Mutual TLS with these credentials. Requests do not travel under an old
    /// certificate when there is a new one.
    Mesh(Arc<Credentials>),
}

impl PartialEq for Security {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) => true,
            (Self::Mesh(one), Self::Mesh(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// An endpoint, as one worker uses it.
pub(crate) struct Peer {
    pub(super) address: SocketAddr,
    /// Present where it must prove one over mutual TLS.
    pub(super) identity: Option<SpiffeId>,
    in_flight: Cell<usize>,
    /// When it could not be connected to.
    failed: Cell<Option<Instant>>,
    /// When it said that it has nobody behind it, or is about to go.
    leaving: Cell<Option<Instant>>,
    /// Whether it ended the last handshake without a word.
    hung_up: Cell<bool>,
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    connection: Buffered<Stream>,
    since: Instant,
    security: Security,
}

/// A request or connection to an endpoint, for as long as it takes.
pub(crate) struct InFlight(Rc<Peer>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl Peer {
    pub(super) fn new(address: SocketAddr, identity: Option<SpiffeId>) -> Rc<Self> {
        Rc::new(Self {
            address,
            identity,
            in_flight: Cell::new(0),
            failed: Cell::new(None),
            leaving: Cell::new(None),
            hung_up: Cell::new(false),
            idle: RefCell::default(),
        })
    }

    pub(super) fn hold(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(Rc::clone(self))
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Leaves it alone for a while, although it can be connected to.
    pub(super) fn avoid(&self) {
        self.leaving.set(Some(Instant::now()));
    }

    /// Whether there was a reason a moment ago to ask others first.
    pub(super) fn is_avoided(&self) -> bool {
        let reasons = [self.failed.get(), self.leaving.get()];
        let mut reasons = reasons.into_iter().flatten();
        reasons.any(|since| since.elapsed() < AVOIDED)
    }

    /// Whether it accepted the last connection and ended it before mesh TLS was agreed
    /// on, without saying why.
    pub(super) fn hung_up(&self) -> bool {
        self.hung_up.get()
    }

    /// Connects to it; it must prove its identity where it is expected to.
    pub(super) async fn connect(
        &self,
        worker: &Worker,
        inside: Protocol,
        security: &Security,
        within: Duration,
    ) -> Result<Stream, Failure> {
        // A handshake takes kilobytes, which whoever waits for it would keep as long as
        // the connection lives.
        let connected = Box::pin(async {
            let stream = app::connect(self.address, within).await?;
            match (security, &self.identity) {
                (Security::Mesh(credentials), Some(identity)) => {
                    let secured = self.secure(worker, inside, credentials, identity, stream);
                    secured.await.map(Stream::mesh)
                }
                _ => Ok(Stream::plain(stream)),
            }
        });
        let connected = connected.await;
        let failed = connected.is_err().then(Instant::now);
        self.failed.set(failed);
        connected
    }

    async fn secure(
        &self,
        worker: &Worker,
        inside: Protocol,
        credentials: &Arc<Credentials>,
        identity: &SpiffeId,
        stream: TcpStream,
    ) -> Result<Box<MeshStream>, Failure> {
        self.hung_up.set(false);
        let config = worker.tls.get(credentials, identity, inside)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let handshake = TlsConnector::from(config).connect(name, Buffered::new(stream).into());
        let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(mut stream)) => {
                socket::bound_tls(stream.get_mut().1);
                Box::new(stream)
            }
            Ok(Err(error)) => {
                // What TLS found wrong, here or there, is an error of its own.
                self.hung_up
                    .set(error.get_ref().is_none_or(|it| !it.is::<rustls::Error>()));
                return Err(refusal(self.address, &error));
            }
            Err(_) => {
                let detail = format!(
                    "{} did not finish within {HANDSHAKE_TIMEOUT:?}",
                    self.address
                );
                return Err(Failure::new(Reason::TlsHandshakeFailed, detail));
            }
        };
        // The handshake verified it, or the session that was resumed once did.
        let peer = credentials
            .peer(stream.get_ref().1, worker.clock.now())
            .map_err(|error| Failure::new(Reason::TlsHandshakeFailed, error))?;
        if peer.id() != identity {
            let detail = format!("{} is {}", self.address, peer.id());
            return Err(Failure::new(Reason::PeerIdentityMismatch, detail));
        }
        Ok(stream)
    }

    /// The latest that was given back and is still good: the others then age,
    /// and a pool that once was large shrinks.
    ///
    /// For what cannot be sent `again`, one that the server will not close at that
    /// moment, or would say so.
    pub(super) fn take_idle(&self, security: &Security, again: bool) -> Option<Buffered<Stream>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|idle| idle.since.elapsed() < IDLE_TIMEOUT && idle.security == *security);
        if !again {
            // The latest: if that is too old, so are the others.
            let latest = idle.last()?;
            if !latest.connection.io.is_vouched() && latest.since.elapsed() >= SURELY_KEPT {
                return None;
            }
        }
        while let Some(mut candidate) = idle.pop() {
            if is_quiet(&mut candidate.connection) {
                return Some(candidate.connection);
            }
        }
        None
    }

    pub(super) fn give_back(&self, mut connection: Buffered<Stream>, security: Security) {
        connection.io.in_flight = None;
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push(Idle {
                connection,
                since: Instant::now(),
                security,
            });
        }
    }

    /// Closes what has been idle for too long.
    pub(super) fn tidy(&self) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|idle| idle.since.elapsed() < IDLE_TIMEOUT);
    }

    /// Closes all that is idle.
    pub(super) fn close_idle(&self) {
        self.idle.take();
    }
}

/// Whether an idle connection is still open and says nothing, as it should.
/// Whatever a server says unasked, the end of the stream included, makes its
/// connection useless.
pub(super) fn is_quiet<S: tokio::io::AsyncRead + Unpin>(connection: &mut Buffered<S>) -> bool {
    // Without tokio's limit on what a task does at once: beyond it, every
    // connection would look open.
    unconstrained(connection.fill()).now_or_never().is_none()
}

/// A server that is somebody else is another thing than one that cannot be
/// talked to.
fn refusal(address: SocketAddr, error: &io::Error) -> Failure {
    let peer = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>())
        .and_then(PeerError::from_tls);
    match peer {
        Some(PeerError::UnexpectedIdentity { .. }) => {
            let detail = format!("{address}: {error}");
            Failure::new(Reason::PeerIdentityMismatch, detail)
        }
        _ => Failure::new(Reason::TlsHandshakeFailed, format!("{address}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_connections_that_have_ended_are_all_seen_to_have() {
        // As after a peer's restart. Tokio lets a task do 128 things at once.
        for number in 0..300 {
            let (near, far) = tokio::io::duplex(64);
            drop(far);
            assert!(!is_quiet(&mut Buffered::new(near)), "connection {number}");
        }
    }
}
