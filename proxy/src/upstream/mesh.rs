//! An upstream's proxy, over mesh mTLS.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bulkhead_core::sidecar::OutboundListener;
use bulkhead_pki::verifier::PeerError;
use bulkhead_runtime::clock::Clock;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Connect, app};
use crate::credentials::{Credentials, Latest};
use crate::failure::Failure;

/// A peer in another zone answers within a fraction of this; one that is gone
/// never does, and another endpoint is waiting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) type MeshStream = TlsStream<TcpStream>;

/// Connects to any of an upstream's endpoints, each of which must prove the
/// upstream's identity.
pub(crate) struct Mesh {
    upstream: Arc<OutboundListener>,
    inside: Protocol,
    latest: Latest,
    clock: Clock,
    /// Which endpoint is next.
    turn: Cell<usize>,
    /// The TLS settings of the credentials that they were made from.
    tls: RefCell<Option<(Arc<Credentials>, Arc<ClientConfig>)>>,
}

impl Mesh {
    pub(crate) fn new(
        upstream: Arc<OutboundListener>,
        inside: Protocol,
        latest: Latest,
        clock: Clock,
    ) -> Self {
        Self {
            upstream,
            inside,
            latest,
            clock,
            turn: Cell::new(0),
            tls: RefCell::new(None),
        }
    }

    /// What a connection would be made with now.
    pub(crate) fn credentials(&self) -> Option<Arc<Credentials>> {
        self.latest.get()
    }

    fn tls(&self) -> Result<(Arc<Credentials>, Arc<ClientConfig>), Failure> {
        let latest = self
            .latest
            .get()
            .ok_or_else(|| Failure::new(Reason::NoCertificate, "the CA has not issued one yet"))?;
        let mut tls = self.tls.borrow_mut();
        if let Some((known, config)) = &*tls
            && Arc::ptr_eq(known, &latest)
        {
            return Ok((latest, Arc::clone(config)));
        }
        let config = latest
            .client_config(&self.upstream.identity, self.inside)
            .map_err(|error| Failure::new(Reason::TlsHandshakeFailed, error))?;
        *tls = Some((Arc::clone(&latest), Arc::clone(&config)));
        Ok((latest, config))
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<MeshStream, Failure> {
        let (credentials, config) = self.tls()?;
        let stream = app::connect(address, CONNECT_TIMEOUT).await?;
        let name = ServerName::IpAddress(address.ip().into());
        let handshake = TlsConnector::from(config).connect(name, stream);
        let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(refusal(address, &error)),
            Err(_) => {
                let detail = format!("{address} did not finish within {HANDSHAKE_TIMEOUT:?}");
                return Err(Failure::new(Reason::TlsHandshakeFailed, detail));
            }
        };
        // The handshake verified it, or the session that was resumed once did.
        let peer = credentials
            .peer(stream.get_ref().1, self.clock.now())
            .map_err(|error| Failure::new(Reason::TlsHandshakeFailed, error))?;
        if *peer.id() != self.upstream.identity {
            let detail = format!("{address} is {}", peer.id());
            return Err(Failure::new(Reason::PeerIdentityMismatch, detail));
        }
        Ok(stream)
    }
}

impl Connect for Mesh {
    type Io = MeshStream;

    /// Tries each endpoint once, beginning with the one whose turn it is.
    async fn connect(&self) -> Result<MeshStream, Failure> {
        let endpoints = &self.upstream.addresses;
        let first = self.turn.get();
        self.turn.set(first.wrapping_add(1));
        let mut last = None;
        for offset in 0..endpoints.len() {
            let address = endpoints[first.wrapping_add(offset) % endpoints.len()];
            match self.connect_to(address).await {
                Ok(stream) => return Ok(stream),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| {
            let detail = format!("upstream {} has no endpoints", self.upstream.name);
            Failure::new(Reason::UpstreamConnectFailed, detail)
        }))
    }
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
