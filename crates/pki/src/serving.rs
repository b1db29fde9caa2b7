//! Certificates with DNS names and IP addresses, for Bulkhead's own servers:
//! the CA's, which the mesh's own authority issues, and the webhook's, which has
//! a small CA of its own that signs for nobody else.
//!
//! They are no SVIDs: no peer in the mesh takes one for a workload.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::BasicConstraints;
use rustls::client::WebPkiServerVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::authority::{Authority, AuthorityError};
use crate::bundle::Roots;
use crate::certificate::{Certificate, CertificateError};
use crate::identity::WorkloadIdentity;
use crate::key::{KeyError, PrivateKey};
use crate::leaf::{Name, Purpose};
use crate::signer::{self, SignError, Signer, Validity};
use crate::tls;
use crate::verifier::ProofOfPossession;

pub use crate::tls::TlsError;

/// The longest chain that is read, in bytes of PEM.
const MAX_CHAIN_PEM: usize = 64 * 1024;

/// A CA for one server, apart from the mesh's.
pub struct ServingAuthority {
    signer: Signer,
}

impl ServingAuthority {
    /// A new self-signed CA. `name` is for people who look at it.
    pub fn new(name: &str, lifetime: Duration, now: SystemTime) -> Result<Self, ServingError> {
        let params = signer::signing(
            Validity::new(now, lifetime)?,
            "Bulkhead",
            name,
            BasicConstraints::Constrained(0),
        )?;
        Ok(Self {
            signer: Signer::self_signed(params)?,
        })
    }

    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, ServingError> {
        let mut certificates = Certificate::all_from_pem(certificate, MAX_CHAIN_PEM)?;
        if certificates.len() != 1 || !certificates[0].facts().is_ca {
            return Err(ServingError::NotAnAuthority);
        }
        let key = PrivateKey::from_pem(key)?;
        Ok(Self {
            signer: Signer::new(certificates.swap_remove(0), key)?,
        })
    }

    /// Issues a certificate for a server, with a key of its own. It does not
    /// outlive this CA.
    pub fn issue(
        &self,
        names: &[ServerName],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<ServingCertificate, ServingError> {
        let certificate = self.certificate();
        if !certificate.facts().is_valid_at(now) {
            return Err(ServingError::NotValid(certificate.serial()));
        }
        let mut validity = Validity::new(now, lifetime)?;
        validity.not_after = validity.not_after.min(certificate.not_after());
        issue(&self.signer, &[], names, validity)
    }

    pub fn certificate(&self) -> &Certificate {
        self.signer.certificate()
    }

    /// The private key, for whoever keeps it.
    pub fn key(&self) -> &PrivateKey {
        self.signer.key()
    }
}

impl fmt::Debug for ServingAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServingAuthority({})", self.certificate().serial())
    }
}

impl Authority {
    /// Issues a certificate for a server of the control plane, so that clients
    /// which hold the mesh's roots can verify it by name.
    pub fn issue_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<ServingCertificate, ServingError> {
        let validity = self.clamp(Validity::new(now, lifetime)?, now)?;
        issue(self.signer(), self.intermediates(), names, validity)
    }
}

/// A name that clients verify a server by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerName {
    Dns(String),
    Ip(IpAddr),
}

impl ServerName {
    /// Reads an IP address or a DNS name.
    pub fn parse(text: &str) -> Result<Self, ServingError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        rustls_pki_types::DnsName::try_from(text)
            .map(|_| Self::Dns(text.to_owned()))
            .map_err(|_| ServingError::Name(text.chars().take(128).collect()))
    }

    fn as_name(&self) -> Name<'_> {
        match self {
            Self::Dns(name) => Name::Dns(name),
            Self::Ip(address) => Name::Ip(*address),
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// A server's chain with its key.
#[derive(Clone)]
pub struct ServingCertificate {
    chain: Vec<Certificate>,
    key: PrivateKey,
    resolver: Arc<SingleCertAndKey>,
}

impl ServingCertificate {
    /// Takes a chain, the leaf first, and its key.
    pub fn new(chain: Vec<Certificate>, key: PrivateKey) -> Result<Self, ServingError> {
        let leaf = chain.first().ok_or(ServingError::Empty)?;
        if leaf.public_key()? != *key.public_key() {
            return Err(ServingError::KeyMismatch);
        }
        let der = chain.iter().map(|part| part.der().clone()).collect();
        Ok(Self {
            resolver: tls::resolver(der, &key)?,
            chain,
            key,
        })
    }

    /// Reads a chain, the leaf first, and its key.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, ServingError> {
        Self::new(
            Certificate::all_from_pem(chain, MAX_CHAIN_PEM)?,
            PrivateKey::from_pem(key)?,
        )
    }

    pub fn leaf(&self) -> &Certificate {
        &self.chain[0]
    }

    pub fn not_before(&self) -> SystemTime {
        self.leaf().not_before()
    }

    /// When the first certificate of the chain expires.
    pub fn not_after(&self) -> SystemTime {
        self.chain
            .iter()
            .map(Certificate::not_after)
            .min()
            .expect("a chain begins with its leaf")
    }

    /// The leaf, then each signer of the one before.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(Certificate::to_pem).collect()
    }

    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Server TLS 1.3; clients need no certificate, and are asked for none.
    pub fn server_config<'a>(
        &self,
        alpn: impl IntoIterator<Item = &'a str>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        self.config_for(rustls::server::WebPkiClientVerifier::no_client_auth(), alpn)
    }

    /// The same, and clients may show a certificate: which it is, and that they
    /// have its key, is all that this finds out ([`crate::verifier::ShownChain`]).
    pub fn server_config_that_asks<'a>(
        &self,
        alpn: impl IntoIterator<Item = &'a str>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        self.config_for(Arc::new(ProofOfPossession), alpn)
    }

    fn config_for<'a>(
        &self,
        clients: Arc<dyn ClientCertVerifier>,
        alpn: impl IntoIterator<Item = &'a str>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&tls::PROVIDER))
            .with_protocol_versions(tls::VERSIONS)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::clone(&self.resolver) as Arc<_>);
        config.alpn_protocols = tls::alpn_protocols(alpn);
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServingCertificate({})", self.leaf().serial())
    }
}

/// For clients of such a server: it is verified by its name and these roots.
pub fn client_config<'a>(
    roots: &Roots,
    alpn: impl IntoIterator<Item = &'a str>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots.certificates() {
        store.add(root.der().clone())?;
    }
    by_name(store, tls::VERSIONS, alpn)
}

/// The same for a client that is a workload: a server that asks for a certificate
/// gets the one of `identity`.
pub fn client_config_as<'a>(
    identity: &WorkloadIdentity,
    roots: &Roots,
    alpn: impl IntoIterator<Item = &'a str>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::clone(&*client_config(roots, alpn)?);
    config.client_auth_cert_resolver = identity.resolver();
    Ok(Arc::new(config))
}

/// For clients of somebody else's server, which may speak TLS 1.2: it is verified
/// by its name and these roots. A root that cannot be read is passed over, as
/// there are old ones in what systems trust.
pub fn foreign_client_config<'a>(
    roots: impl IntoIterator<Item = CertificateDer<'static>>,
    alpn: impl IntoIterator<Item = &'a str>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    by_name(store, rustls::DEFAULT_VERSIONS, alpn)
}

fn by_name<'a>(
    roots: RootCertStore,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: impl IntoIterator<Item = &'a str>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&tls::PROVIDER))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&tls::PROVIDER))
        .with_protocol_versions(versions)?
        .with_webpki_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = tls::alpn_protocols(alpn);
    Ok(Arc::new(config))
}

fn issue(
    signer: &Signer,
    intermediates: &[Certificate],
    names: &[ServerName],
    validity: Validity,
) -> Result<ServingCertificate, ServingError> {
    if names.is_empty() {
        return Err(ServingError::NoName);
    }
    let names: Vec<_> = names.iter().map(ServerName::as_name).collect();
    let key = PrivateKey::generate()?;
    let leaf = signer.sign_leaf(Purpose::Server, &names, key.public_key(), validity)?;
    let chain = std::iter::once(leaf)
        .chain(intermediates.iter().cloned())
        .collect();
    ServingCertificate::new(chain, key)
}

/// Why a server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    #[error("there is no certificate in the chain: the file is empty or is not PEM")]
    Empty,
    #[error("there is no name for the server to be verified by")]
    NoName,
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    #[error("the private key is not the one of the certificate: were files of two pairs mixed?")]
    KeyMismatch,
    #[error("there is not exactly one CA certificate in the PEM text")]
    NotAnAuthority,
    #[error("the CA certificate {0} has expired or is not valid yet")]
    NotValid(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}
