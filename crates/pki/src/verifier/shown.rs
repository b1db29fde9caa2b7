//! Certificates that clients may show, and need not.
//!
//! A server that is there for clients without a certificate cannot end a
//! handshake because of one: who shows an old one may have a token. So TLS proves
//! that the client has the key, and nothing else; whoever asks whose it is
//! verifies the chain then, by the bundle and the time of that moment.

use std::time::{Duration, SystemTime};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CommonState, DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::{PeerError, PeerId, PeerVerifier, Role};
use crate::bundle::TrustBundle;
use crate::certificate::{Certificate, Facts};
use crate::svid::MAX_CHAIN_LENGTH;
use crate::tls;

/// Has the client prove that it has the key of what it shows. It is no verifier
/// of anybody: see [`ShownChain::verify`].
#[derive(Debug)]
pub(crate) struct ProofOfPossession;

impl ClientCertVerifier for ProofOfPossession {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if intermediates.len() >= MAX_CHAIN_LENGTH {
            return Err(PeerError::ChainTooLong.into_tls());
        }
        Ok(ClientCertVerified::assertion())
    }

    signed_under_tls13!();
}

/// What a client showed, and has the key of.
#[derive(Clone, Debug)]
pub struct ShownChain(Vec<CertificateDer<'static>>);

/// A member of the trust domain, by a certificate that is good now.
#[derive(Clone, Debug)]
pub struct ShownSvid {
    pub peer: PeerId,
    /// From the certificate's beginning to its end.
    pub validity: Duration,
    /// Its serial number in lower-case hexadecimal digits.
    pub serial: String,
}

impl ShownChain {
    /// That of a finished handshake with a configuration that asks for one; none,
    /// where the client showed none.
    pub fn of_connection(connection: &CommonState) -> Option<Self> {
        let shown = connection.peer_certificates()?;
        let owned = shown.iter().map(|part| part.clone().into_owned());
        (!shown.is_empty()).then(|| Self(owned.collect()))
    }

    /// Whose it is, as peers with this bundle would see it now.
    pub fn verify(&self, bundle: &TrustBundle, now: SystemTime) -> Result<ShownSvid, PeerError> {
        let (leaf, intermediates) = self.0.split_first().ok_or(PeerError::NoCertificate)?;
        let verifier = PeerVerifier::any_member(std::sync::Arc::new(bundle.clone()));
        let peer = verifier.verify(leaf, intermediates, Role::Client, now)?;
        let certificate = Certificate::from_der(leaf.clone())?;
        let Facts {
            not_before,
            not_after,
            ..
        } = *certificate.facts();
        Ok(ShownSvid {
            peer,
            validity: not_after.duration_since(not_before).unwrap_or_default(),
            serial: certificate.serial(),
        })
    }
}
