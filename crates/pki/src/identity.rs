//! One workload's identity: a key, its chain and a trust bundle, which were
//! checked together, and the TLS configurations that show it.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bulkhead_core::identity::SpiffeId;
use rustls::client::Resumption;
use rustls::server::ProducesTickets;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::bundle::TrustBundle;
use crate::certificate::Certificate;
use crate::key::{KeyError, PrivateKey};
use crate::svid::SvidChain;
use crate::tls::{self, TlsError};
use crate::verifier::{PeerError, PeerId, PeerVerifier, Role};

/// Sessions that a client remembers, for each configuration. One is worth
/// half a millisecond of CPU on both sides.
const CLIENT_SESSIONS: usize = 256;

/// A workload's identity, which its peers accept.
///
/// It never changes: renewal makes a new one, and so does another bundle. TLS
/// sessions are resumed only within one identity, so that none outlives a change
/// of certificate or bundle.
pub struct WorkloadIdentity {
    key: PrivateKey,
    chain: SvidChain,
    bundle: Arc<TrustBundle>,
    /// The place of the root that vouches for the chain, among the bundle's.
    signing_root: usize,
    resolver: Arc<SingleCertAndKey>,
    ticketer: Arc<dyn ProducesTickets>,
}

impl WorkloadIdentity {
    /// Takes a key, chain and bundle that fit together, for `expected`, now.
    ///
    /// They are judged by what the peers will judge by, in both roles.
    pub fn new(
        expected: &SpiffeId,
        key: &PrivateKey,
        chain: SvidChain,
        bundle: TrustBundle,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        if chain.public_key()? != *key.public_key() {
            return Err(IdentityError::KeyMismatch);
        }
        let (presented, signing_root) = accepted(expected, &chain, &bundle, now)?;
        Ok(Self {
            key: key.clone(),
            resolver: tls::resolver(presented, key)?,
            ticketer: new_ticketer()?,
            chain,
            bundle: Arc::new(bundle),
            signing_root,
        })
    }

    /// The same key and chain with another bundle, if peers that hold that one
    /// accept the chain.
    ///
    /// # Errors
    /// The bundle has no root for the chain, or the chain is not valid any more.
    pub fn with_bundle(&self, bundle: TrustBundle, now: SystemTime) -> Result<Self, IdentityError> {
        let (_, signing_root) = accepted(self.id(), &self.chain, &bundle, now)?;
        Ok(Self {
            key: self.key.clone(),
            resolver: Arc::clone(&self.resolver),
            ticketer: new_ticketer()?,
            chain: self.chain.clone(),
            bundle: Arc::new(bundle),
            signing_root,
        })
    }

    /// For the server's side of mesh TLS: every client must prove a SPIFFE ID of
    /// the trust domain; which of them may enter is for policy to say.
    pub fn server_config<'a>(
        &self,
        alpn: impl IntoIterator<Item = &'a str>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let verifier = PeerVerifier::any_member(Arc::clone(&self.bundle));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&tls::PROVIDER))
            .with_protocol_versions(tls::VERSIONS)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(&self.resolver) as Arc<_>);
        config.alpn_protocols = tls::alpn_protocols(alpn);
        config.ticketer = Arc::clone(&self.ticketer);
        // A connection uses one up, and gets one.
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }

    /// For the client's side, towards one server.
    ///
    /// No server name is sent and none is verified; whatever is given to the
    /// connection only tells remembered sessions apart, so give the address.
    pub fn client_config<'a>(
        &self,
        expected_server: &SpiffeId,
        alpn: impl IntoIterator<Item = &'a str>,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let verifier = PeerVerifier::only(Arc::clone(&self.bundle), expected_server.clone());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&tls::PROVIDER))
            .with_protocol_versions(tls::VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&self.resolver) as Arc<_>);
        config.alpn_protocols = tls::alpn_protocols(alpn);
        config.enable_sni = false;
        config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
        Ok(Arc::new(config))
    }

    /// Who is at the other end of a connection that was made with one of this
    /// identity's configurations, after a full or a resumed handshake.
    pub fn peer_id(&self, connection: &CommonState, now: SystemTime) -> Result<PeerId, PeerError> {
        PeerId::of_connection(connection, &self.bundle, now)
    }

    pub fn id(&self) -> &SpiffeId {
        self.chain.id()
    }

    /// What shows the chain, for configurations of this crate.
    pub(crate) fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::clone(&self.resolver)
    }

    /// The key that the leaf is for. Whoever has it is this workload.
    pub fn private_key(&self) -> &PrivateKey {
        &self.key
    }

    pub fn chain(&self) -> &SvidChain {
        &self.chain
    }

    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The root that vouches for the chain: the first of the bundle's, where
    /// several could.
    pub fn signing_root(&self) -> &Certificate {
        &self.bundle.roots().certificates()[self.signing_root]
    }

    pub fn not_before(&self) -> SystemTime {
        self.chain.not_before()
    }

    pub fn not_after(&self) -> SystemTime {
        self.chain.not_after()
    }

    /// The leaf's serial number in lower-case hexadecimal digits.
    pub fn serial(&self) -> String {
        self.chain.serial()
    }
}

/// The chain as it is presented, and the place of the root that vouches for it,
/// if peers with this bundle accept it in both roles.
fn accepted(
    expected: &SpiffeId,
    chain: &SvidChain,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(Vec<CertificateDer<'static>>, usize), PeerError> {
    let verifier = PeerVerifier::only(Arc::new(bundle.clone()), expected.clone());
    let presented = chain.to_der();
    let (leaf, intermediates) = presented
        .split_first()
        .expect("a chain begins with its leaf");
    verifier.verify(leaf, intermediates, Role::Client, now)?;
    let (_, root) = verifier.verify_with_root(leaf, intermediates, Role::Server, now)?;
    Ok((presented, root))
}

/// Makes tickets that no other identity takes.
fn new_ticketer() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    Ok(rustls::crypto::aws_lc_rs::Ticketer::new()?)
}

impl fmt::Debug for WorkloadIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadIdentity")
            .field("id", self.id())
            .field("serial", &self.serial())
            .finish_non_exhaustive()
    }
}

/// Why a key, a chain and a bundle do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate is for another key than the one that was made")]
    KeyMismatch,
    #[error("the certificate's key is refused: {0}")]
    Key(#[from] KeyError),
    #[error("peers would not accept this certificate: {0}")]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}
