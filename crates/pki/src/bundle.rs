//! Trust roots: what a chain must end in.

use std::borrow::Cow;
use std::time::SystemTime;

use bulkhead_core::identity::TrustDomain;
use rustls_pki_types::TrustAnchor;

use crate::certificate::{Certificate, CertificateError};

/// The longest file of roots that is read, in bytes of PEM.
const MAX_ROOTS_PEM: usize = 1024 * 1024;

/// At least one root certificate.
#[derive(Clone, Debug)]
pub struct Roots {
    certificates: Vec<Certificate>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Roots {
    /// Takes roots; one that is there twice counts once.
    pub fn new(roots: impl IntoIterator<Item = Certificate>) -> Result<Self, BundleError> {
        let mut certificates: Vec<Certificate> = Vec::new();
        let mut anchors = Vec::new();
        for root in roots {
            if certificates.contains(&root) {
                continue;
            }
            if !root.facts().is_ca {
                return Err(BundleError::NotAnAuthority(root.serial()));
            }
            let anchor = webpki::anchor_from_trusted_cert(root.der())
                .map_err(|_| BundleError::Certificate(CertificateError::Malformed))?;
            anchors.push(anchor.to_owned());
            certificates.push(root);
        }
        if certificates.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(Self {
            certificates,
            anchors,
        })
    }

    /// Reads every certificate of a PEM text.
    pub fn from_pem(text: &str) -> Result<Self, BundleError> {
        Self::new(Certificate::all_from_pem(text, MAX_ROOTS_PEM)?)
    }

    pub fn to_pem(&self) -> String {
        self.certificates.iter().map(Certificate::to_pem).collect()
    }

    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// The roots that vouch for anybody at `now`. RFC 5280 (6.1.1) leaves the
    /// validity of a trust anchor to whoever trusts it; like OpenSSL and Go,
    /// Bulkhead trusts none beyond its date.
    pub(crate) fn anchors_at(&self, now: SystemTime) -> Cow<'_, [TrustAnchor<'static>]> {
        let is_valid = |root: &Certificate| root.facts().is_valid_at(now);
        if self.certificates.iter().all(is_valid) {
            return Cow::Borrowed(&self.anchors);
        }
        self.certificates
            .iter()
            .zip(&self.anchors)
            .filter(|(root, _)| is_valid(root))
            .map(|(_, anchor)| anchor.clone())
            .collect()
    }

    /// Which of the certificates this anchor was made of.
    pub(crate) fn place_of(&self, anchor: &TrustAnchor<'_>) -> Option<usize> {
        self.anchors.iter().position(|other| other == anchor)
    }
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for Roots {}

/// The roots of one trust domain. Bundles of different domains are never put
/// together, because then each could speak for the other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Roots,
}

impl TrustBundle {
    pub fn new(trust_domain: TrustDomain, roots: Roots) -> Self {
        Self {
            trust_domain,
            roots,
        }
    }

    pub fn from_pem(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        Roots::from_pem(text).map(|roots| Self::new(trust_domain, roots))
    }

    pub fn to_pem(&self) -> String {
        self.roots.to_pem()
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }
}

/// Why a text is not a set of roots.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    #[error("there is no certificate among the trust roots: the file is empty or is not PEM")]
    Empty,
    #[error("certificate {0} is among the trust roots and is not a CA's: was a leaf put there?")]
    NotAnAuthority(String),
    #[error("a trust root cannot be read: {0}")]
    Certificate(#[from] CertificateError),
}
