//! Who a TLS peer is: the one place that decides it.
//!
//! A peer is known by its SPIFFE ID and by nothing else. Its chain must end in
//! the trust bundle (RFC 5280, by webpki), every certificate must fulfil the
//! X.509-SVID profile, and the ID must be in the bundle's trust domain; a server
//! must be the very one that was expected. Host names play no part.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::identity::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError as TlsCertificateError, CommonState, DigitallySignedStruct, DistinguishedName,
    OtherError, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::TrustBundle;
use crate::certificate::{CertificateError, Facts};
use crate::svid::{self, MAX_CHAIN_LENGTH, ProfileError};
use crate::tls;

/// That a peer has the key of what it shows: what the two traits of verifiers have in
/// common. The configurations of this crate speak nothing older than TLS 1.3, so that
/// the refusal is for whoever would build another with the same verifier.
macro_rules! signed_under_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General(
                "mesh peers are verified under TLS 1.3 only".to_owned(),
            ))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &tls::algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            tls::algorithms().supported_schemes()
        }
    };
}

mod shown;

pub(crate) use self::shown::ProofOfPossession;
pub use self::shown::{ShownChain, ShownSvid};

/// The SPIFFE ID that a peer proved. Only verification makes one.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct PeerId {
    id: SpiffeId,
    not_after: SystemTime,
}

impl PeerId {
    /// The peer of a finished handshake, full or resumed, of a connection whose
    /// configuration came from [`crate::identity::WorkloadIdentity`].
    ///
    /// A resumed session proves what the full handshake before it proved. The
    /// certificate may have expired since; then the peer is refused.
    pub(crate) fn of_connection(
        connection: &CommonState,
        bundle: &TrustBundle,
        now: SystemTime,
    ) -> Result<Self, PeerError> {
        let leaf = connection
            .peer_certificates()
            .and_then(<[_]>::first)
            .ok_or(PeerError::NoCertificate)?;
        let facts = Facts::parse(leaf)?;
        if !facts.is_valid_at(now) {
            return Err(PeerError::Expired);
        }
        Self::of_leaf(&facts, bundle)
    }

    fn of_leaf(facts: &Facts, bundle: &TrustBundle) -> Result<Self, PeerError> {
        let id = svid::check_leaf(facts)?;
        if !id.is_member_of(bundle.trust_domain()) {
            return Err(PeerError::ForeignTrustDomain(id));
        }
        Ok(Self {
            id,
            not_after: facts.not_after,
        })
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the certificate that proved it expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// What the peer wants to be: rules differ a little.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    Client,
    Server,
}

/// Verifies peers against one trust bundle.
#[derive(Debug)]
pub struct PeerVerifier {
    bundle: Arc<TrustBundle>,
    /// The one server that is expected; any member where there is none.
    expected: Option<SpiffeId>,
}

impl PeerVerifier {
    /// Accepts every member of the bundle's trust domain.
    pub fn any_member(bundle: Arc<TrustBundle>) -> Self {
        Self {
            bundle,
            expected: None,
        }
    }

    /// Accepts one peer.
    pub fn only(bundle: Arc<TrustBundle>, expected: SpiffeId) -> Self {
        Self {
            bundle,
            expected: Some(expected),
        }
    }

    /// Verifies a chain: the leaf, and what was presented with it.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: SystemTime,
    ) -> Result<PeerId, PeerError> {
        self.verify_with_root(leaf, intermediates, role, now)
            .map(|(peer, _)| peer)
    }

    /// Verifies a chain, and says as well which root vouches for it: its place
    /// among those of the bundle.
    pub(crate) fn verify_with_root(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: SystemTime,
    ) -> Result<(PeerId, usize), PeerError> {
        if intermediates.len() >= MAX_CHAIN_LENGTH {
            return Err(PeerError::ChainTooLong);
        }
        let root = self.verify_path(leaf, intermediates, role, now)?;
        let peer = PeerId::of_leaf(&Facts::parse(leaf)?, &self.bundle)?;
        match &self.expected {
            Some(expected) if peer.id != *expected => Err(PeerError::UnexpectedIdentity {
                expected: expected.clone(),
                actual: peer.id,
            }),
            _ => Ok((peer, root)),
        }
    }

    /// RFC 5280, section 6, and the profile's rules for each signer on the way
    /// to one of the bundle's roots, whose place is the answer.
    fn verify_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: SystemTime,
    ) -> Result<usize, PeerError> {
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let roots = self.bundle.roots();
        let anchors = roots.anchors_at(now);
        let end_entity = EndEntityCert::try_from(leaf)?;
        let path = end_entity.verify_for_usage(
            tls::algorithms().all,
            &anchors,
            intermediates,
            UnixTime::since_unix_epoch(since_epoch),
            usage,
            None,
            None,
        )?;
        for signer in path.intermediate_certificates() {
            svid::check_signing(&Facts::parse(&signer.der())?)?;
        }
        let place = roots.place_of(path.anchor());
        Ok(place.expect("a path ends in one of the anchors that it was sought from"))
    }

    fn verify_for_tls(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<PeerId, rustls::Error> {
        let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        self.verify(leaf, intermediates, role, now)
            .map_err(PeerError::into_tls)
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_for_tls(end_entity, intermediates, Role::Server, now)
            .map(|_| ServerCertVerified::assertion())
    }

    signed_under_tls13!();
}

impl ClientCertVerifier for PeerVerifier {
    /// None: a list of names would tell everybody who asks which roots are
    /// trusted, and clients of a mesh have one certificate to offer anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify_for_tls(end_entity, intermediates, Role::Client, now)
            .map(|_| ClientCertVerified::assertion())
    }

    signed_under_tls13!();
}

/// Why a peer is not who it should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PeerError {
    #[error("the peer showed no certificate")]
    NoCertificate,
    #[error("the peer's chain has more than {MAX_CHAIN_LENGTH} certificates")]
    ChainTooLong,
    #[error("the peer's certificate expired since its session began")]
    Expired,
    #[error("the peer's chain does not lead to the trust bundle: {0}")]
    Path(#[from] webpki::Error),
    #[error("the peer's chain cannot be read: {0}")]
    Certificate(#[from] CertificateError),
    #[error("the peer's chain is not one of SVIDs: {0}")]
    Profile(#[from] ProfileError),
    #[error("the peer {0} is of another trust domain than the bundle")]
    ForeignTrustDomain(SpiffeId),
    #[error("the peer proved to be {actual}, and {expected} was expected")]
    UnexpectedIdentity {
        expected: SpiffeId,
        actual: SpiffeId,
    },
}

impl PeerError {
    /// What this module had against the peer, where a TLS error came from here.
    pub fn from_tls(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(TlsCertificateError::Other(OtherError(error))) => {
                error.downcast_ref()
            }
            _ => None,
        }
    }

    /// Whether time has run out for a certificate of the chain.
    pub fn is_expiry(&self) -> bool {
        matches!(
            self,
            Self::Expired | Self::Path(webpki::Error::CertExpired { .. })
        )
    }

    /// Whether a certificate of the chain is of the future, by the clock that it
    /// was verified by.
    pub fn is_not_yet_valid(&self) -> bool {
        matches!(self, Self::Path(webpki::Error::CertNotValidYet { .. }))
    }

    /// The commonest causes keep the alerts that TLS has for them, so that the
    /// other side's log says something of use too.
    fn into_tls(self) -> rustls::Error {
        let certificate_error = match self {
            Self::Path(webpki::Error::CertExpired { time, not_after }) => {
                TlsCertificateError::ExpiredContext { time, not_after }
            }
            Self::Path(webpki::Error::CertNotValidYet { time, not_before }) => {
                TlsCertificateError::NotValidYetContext { time, not_before }
            }
            Self::Path(webpki::Error::UnknownIssuer) => TlsCertificateError::UnknownIssuer,
            Self::Path(webpki::Error::InvalidSignatureForPublicKey) => {
                TlsCertificateError::BadSignature
            }
            other => TlsCertificateError::Other(OtherError(Arc::new(other))),
        };
        certificate_error.into()
    }
}
