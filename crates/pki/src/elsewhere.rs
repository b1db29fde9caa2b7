//! Leaves that another CA signed at our request: whether they are what was asked
//! for, and what is wrong where they are not.
//!
//! Another CA has rules of its own, and may put more into a certificate than it
//! was asked for, or less. What is given out carries exactly the names that were
//! vetted, for the key that asked, for no longer than was asked, and is accepted
//! by whoever holds the one root that it ends in. Signing certificates from
//! elsewhere are judged in [`crate::authority::foreign`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::bundle::{BundleError, Roots, TrustBundle};
use crate::certificate::{AlternativeNames, Certificate};
use crate::key::{PrivateKey, PublicKey};
use crate::serving::{ServerName, ServingCertificate, ServingError};
use crate::svid::{MAX_CHAIN_LENGTH, ProfileError, SvidChain, SvidError};
use crate::tls;
use crate::verifier::{PeerError, PeerVerifier, Role};

/// What another CA signed, with the root that it ends in.
#[derive(Clone, Debug)]
pub struct Signed<T> {
    pub certificate: T,
    pub root: Certificate,
}

/// For when what is asked for may be valid.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub now: SystemTime,
    /// From `now` on.
    pub lifetime: Duration,
}

impl Signed<SvidChain> {
    /// Takes the SVID of `id` for `key`: the leaf is the first of
    /// `certificates`, and the others may be in any order.
    pub fn svid(
        certificates: Vec<Certificate>,
        roots: &Roots,
        trust_domain: &TrustDomain,
        (id, key): (&SpiffeId, &PublicKey),
        span: Span,
    ) -> Result<Self, ElsewhereError> {
        let (mut chain, root) = path(certificates, roots)?;
        check_span(&chain, &root, span)?;
        let leaf = chain.remove(0);
        let names = leaf.alternative_names()?;
        let svid = SvidChain::new(leaf, chain)?;
        if svid.id() != id {
            let signed = svid.id().clone();
            let asked = id.clone();
            return Err(ElsewhereError::Identity { signed, asked });
        }
        if !svid.is_for(key) {
            return Err(ElsewhereError::Key);
        }
        let wanted = AlternativeNames {
            uris: vec![id.as_str().to_owned()],
            ..AlternativeNames::default()
        };
        check_names(&names, &wanted)?;
        let bundle = TrustBundle::new(trust_domain.clone(), Roots::new([root.clone()])?);
        let verifier = PeerVerifier::only(Arc::new(bundle), id.clone());
        let presented = svid.to_der();
        for role in [Role::Client, Role::Server] {
            verifier.verify(&presented[0], &presented[1..], role, span.now)?;
        }
        let certificate = svid;
        Ok(Self { certificate, root })
    }
}

impl Signed<ServingCertificate> {
    /// Takes the certificate of a server with these names and this key.
    pub fn serving(
        certificates: Vec<Certificate>,
        roots: &Roots,
        names: &[ServerName],
        key: PrivateKey,
        span: Span,
    ) -> Result<Self, ElsewhereError> {
        let (chain, root) = path(certificates, roots)?;
        check_span(&chain, &root, span)?;
        let mut wanted = AlternativeNames::default();
        for name in names {
            match name {
                ServerName::Dns(name) => wanted.dns.push(name.clone()),
                ServerName::Ip(address) => wanted.addresses.push(*address),
            }
        }
        check_names(&chain[0].alternative_names()?, &wanted)?;
        let certificate = ServingCertificate::new(chain, key)?;
        verify_server(&certificate, &root, names, span.now)?;
        Ok(Self { certificate, root })
    }
}

/// As clients that hold the root do.
fn verify_server(
    certificate: &ServingCertificate,
    root: &Certificate,
    names: &[ServerName],
    now: SystemTime,
) -> Result<(), ElsewhereError> {
    let mut store = RootCertStore::empty();
    store.add(root.der().clone())?;
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&tls::PROVIDER))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
    let presented: Vec<CertificateDer<'_>> = certificate
        .chain()
        .iter()
        .map(|part| part.der().clone())
        .collect();
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    for name in names {
        let name = rustls_pki_types::ServerName::try_from(name.to_string())
            .map_err(|_| ServingError::Name(name.to_string()))?;
        verifier.verify_server_cert(&presented[0], &presented[1..], &name, &[], now)?;
    }
    Ok(())
}

/// The shortest way from the first certificate to a root: the leaf, then each
/// signer of the one before, without the root; and the root.
fn path(
    mut certificates: Vec<Certificate>,
    roots: &Roots,
) -> Result<(Vec<Certificate>, Certificate), ElsewhereError> {
    certificates.retain(|part| !part.is_self_signed());
    let leaf = certificates.first().ok_or(ElsewhereError::Empty)?;
    if leaf.facts().is_ca {
        return Err(ElsewhereError::NotALeaf(leaf.serial()));
    }
    // Each with the one that it signed, in the order in which they were reached.
    let mut reached: Vec<(usize, Option<usize>)> = vec![(0, None)];
    let mut next = 0;
    while let Some(&(at, _)) = reached.get(next) {
        let certificate = &certificates[at];
        let mut vouching = roots.certificates().iter();
        if let Some(root) = vouching.find(|root| certificate.is_signed_by(root)) {
            let chain = trace(&certificates, &reached, next);
            if chain.len() > MAX_CHAIN_LENGTH {
                return Err(SvidError::Length(chain.len()).into());
            }
            return Ok((chain, root.clone()));
        }
        for (signer, above) in certificates.iter().enumerate() {
            let is_new = reached.iter().all(|(known, _)| *known != signer);
            if is_new && certificate.is_signed_by(above) {
                reached.push((signer, Some(next)));
            }
        }
        next += 1;
    }
    let (last, _) = reached[reached.len() - 1];
    Err(ElsewhereError::NoRoot(certificates[last].serial()))
}

fn trace(
    certificates: &[Certificate],
    reached: &[(usize, Option<usize>)],
    end: usize,
) -> Vec<Certificate> {
    let mut chain = Vec::new();
    let mut step = Some(end);
    while let Some(at) = step {
        let (certificate, below) = reached[at];
        chain.push(certificates[certificate].clone());
        step = below;
    }
    chain.reverse();
    chain
}

/// Nothing is valid for longer than was asked, or than what signed it: it would
/// stop being accepted before its holder thinks of renewing it.
fn check_span(chain: &[Certificate], root: &Certificate, span: Span) -> Result<(), ElsewhereError> {
    let leaf = &chain[0];
    if leaf.not_after() > span.now + span.lifetime {
        return Err(ElsewhereError::Lifetime {
            asked: span.lifetime.as_secs(),
            signed: since(leaf.not_after(), span.now),
        });
    }
    if leaf.not_before() > span.now {
        return Err(ElsewhereError::NotYetValid(since(
            leaf.not_before(),
            span.now,
        )));
    }
    let mut above = chain[1..].iter().chain([root]);
    match above.find(|signer| signer.not_after() < leaf.not_after()) {
        Some(signer) => Err(ElsewhereError::Outlives(signer.serial())),
        None => Ok(()),
    }
}

fn since(later: SystemTime, earlier: SystemTime) -> u64 {
    let since = later.duration_since(earlier);
    since.unwrap_or_default().as_secs()
}

/// Exactly the names that were asked for, in whatever order, and no common name,
/// which some clients take for a name as well.
fn check_names(found: &AlternativeNames, wanted: &AlternativeNames) -> Result<(), ElsewhereError> {
    if let Some(name) = &found.common_name {
        return Err(ElsewhereError::CommonName(shown(name)));
    }
    if found.others {
        return Err(ElsewhereError::ForeignName(
            "a name of an unusual kind".to_owned(),
        ));
    }
    only(&found.uris, &wanted.uris)?;
    only(&found.dns, &wanted.dns)?;
    only::<IpAddr>(&found.addresses, &wanted.addresses)
}

fn only<T: fmt::Display + PartialEq>(found: &[T], wanted: &[T]) -> Result<(), ElsewhereError> {
    if let Some(foreign) = found.iter().find(|name| !wanted.contains(name)) {
        return Err(ElsewhereError::ForeignName(shown(&foreign.to_string())));
    }
    match wanted.iter().find(|name| !found.contains(name)) {
        Some(missing) => Err(ElsewhereError::MissingName(shown(&missing.to_string()))),
        None => Ok(()),
    }
}

fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(256).collect()
}

/// Why a leaf from elsewhere is not given out, and what to change there.
#[derive(Debug, thiserror::Error)]
pub enum ElsewhereError {
    #[error("there is no leaf in the answer")]
    Empty,
    #[error(
        "certificate {0}, the first of the answer, is a CA's, and a leaf was asked for: does the role or issuer there sign leaves?"
    )]
    NotALeaf(String),
    #[error(
        "none of the trust roots signed certificate {0}, nor is its signer in the answer: complete the chain there, or name the right roots here"
    )]
    NoRoot(String),
    #[error(
        "it is for {signed}, and {asked} was asked for: names must come from the request alone"
    )]
    Identity { signed: SpiffeId, asked: SpiffeId },
    #[error("it is for another key than the one that was asked for")]
    Key,
    #[error(
        "it has the common name {0:?}, which nobody asked for: let certificates have none there (a subject with an organization does no harm)"
    )]
    CommonName(String),
    #[error(
        "it has {0:?} among its names, which nobody asked for: let names come from the request alone there"
    )]
    ForeignName(String),
    #[error("{0:?} was asked for and is missing among its names: permit such names there")]
    MissingName(String),
    #[error(
        "it is valid for {signed} s, and {asked} s were asked for: let the lifetime come from the request there, and is the clock there right?"
    )]
    Lifetime { asked: u64, signed: u64 },
    #[error(
        "it becomes valid in {0} s only: does the clock there go ahead, or let it backdate certificates by a minute"
    )]
    NotYetValid(u64),
    #[error(
        "it would outlive certificate {0}, which signed it or is above it: renew that one there"
    )]
    Outlives(String),
    #[error(
        "it is no SVID: {0}; permit URI names there, and set the key usage digitalSignature (critical) with server and client authentication"
    )]
    Profile(ProfileError),
    #[error("it cannot be used: {0}")]
    Chain(SvidError),
    #[error("peers would refuse it: {0}")]
    Peers(#[from] PeerError),
    #[error("clients would refuse it as this server's own: {0}")]
    Clients(#[from] rustls::Error),
    #[error("it cannot be this server's own: {0}")]
    Serving(#[from] ServingError),
    #[error("its root cannot be used: {0}")]
    Root(#[from] BundleError),
    #[error(transparent)]
    Certificate(#[from] crate::certificate::CertificateError),
}

impl From<SvidError> for ElsewhereError {
    fn from(error: SvidError) -> Self {
        match error {
            SvidError::Profile(error) => Self::Profile(error),
            other => Self::Chain(other),
        }
    }
}
