//! The workload's certificate as the data path sees it: the latest one, or none
//! yet. One task publishes it; every connection takes what there is when it
//! begins and keeps it to its end.

use std::sync::Arc;
use std::time::SystemTime;

use bulkhead_core::alpn;
use bulkhead_core::held::Held;
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::protocol::Protocol;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::serving::TlsError;
use bulkhead_pki::verifier::{PeerError, PeerId};
use rustls::{ClientConfig, CommonState, ServerConfig};
use tokio::sync::watch;

/// A verified identity, ready to be used on connections.
#[derive(Debug)]
pub struct Credentials {
    identity: WorkloadIdentity,
    server: Arc<ServerConfig>,
    /// For ports that are known to speak HTTP/2.
    http2_server: Arc<ServerConfig>,
    /// For ports whose bytes nobody looks at.
    opaque_server: Arc<ServerConfig>,
}

impl Credentials {
    /// # Errors
    /// The TLS library refuses the identity, which it accepted before.
    pub fn new(identity: WorkloadIdentity) -> Result<Self, TlsError> {
        let server = identity.server_config(alpn::server_offers(Protocol::Auto))?;
        let http2_server = identity.server_config(alpn::server_offers(Protocol::Http2))?;
        let opaque_server = identity.server_config(alpn::server_offers(Protocol::Opaque))?;
        Ok(Self {
            identity,
            server,
            http2_server,
            opaque_server,
        })
    }

    pub fn identity(&self) -> &WorkloadIdentity {
        &self.identity
    }

    /// What the workload holds of the mesh's trust, to be told to control.
    pub fn held(&self) -> Held {
        Held {
            bundle: self.identity.bundle().id().to_string(),
            signing_root: self.identity.signing_root().fingerprint().to_string(),
            certificate_expires: self.identity.not_after(),
        }
    }

    /// For inbound connections to a port of this protocol.
    pub fn server_config(&self, port: Protocol) -> Arc<ServerConfig> {
        Arc::clone(match port {
            Protocol::Http2 | Protocol::Grpc => &self.http2_server,
            Protocol::Auto | Protocol::Http1 => &self.server,
            Protocol::Opaque => &self.opaque_server,
        })
    }

    /// For outbound connections that carry `inside` to the one expected server.
    pub fn client_config(
        &self,
        expected: &SpiffeId,
        inside: Protocol,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let offers = alpn::client_offers(inside).iter().copied();
        self.identity.client_config(expected, offers)
    }

    /// Who is at the other end of a connection made with these credentials.
    pub fn peer(&self, connection: &CommonState, now: SystemTime) -> Result<PeerId, PeerError> {
        self.identity.peer_id(connection, now)
    }
}

pub type Publisher = watch::Sender<Option<Arc<Credentials>>>;

/// Where connections find the latest credentials. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Latest(watch::Receiver<Option<Arc<Credentials>>>);

impl Latest {
    pub fn get(&self) -> Option<Arc<Credentials>> {
        self.0.borrow().clone()
    }

    /// The same, and [`Self::changed`] waits for the next after these.
    pub fn get_and_mark(&mut self) -> Option<Arc<Credentials>> {
        self.0.borrow_and_update().clone()
    }

    /// Waits for the first credentials; nothing where the publisher is gone.
    pub async fn first(&mut self) -> Option<Arc<Credentials>> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Waits for the next credentials after those last seen.
    pub async fn changed(&mut self) -> Option<Arc<Credentials>> {
        self.0.changed().await.ok()?;
        self.0.borrow_and_update().clone()
    }
}

pub fn channel() -> (Publisher, Latest) {
    let (publisher, latest) = watch::channel(None);
    (publisher, Latest(latest))
}
