//! Trust roots: what a chain must end in.
//!
//! [`Roots`] are certificates; a [`TrustBundle`] is the roots of one trust
//! domain, and which of its versions they are; a [`document`] is the standard
//! form of a bundle for other programs, with the keys of JWT-SVIDs in it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use bulkhead_core::identity::TrustDomain;
use rustls_pki_types::TrustAnchor;

use crate::certificate::{Certificate, CertificateError, Fingerprint, HexError};
use crate::certificate::{hex, read_hex};

pub mod document;

/// The longest file of roots that is read, in bytes of PEM.
const MAX_ROOTS_PEM: usize = 1024 * 1024;

/// At least one root certificate.
///
/// The order is kept, because the first root of a bundle that Bulkhead gives
/// out is the one that signs now. Equality does not look at it: the same roots
/// in another order trust the same peers.
#[derive(Clone, Debug)]
pub struct Roots {
    certificates: Vec<Certificate>,
    anchors: Vec<TrustAnchor<'static>>,
    id: BundleId,
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
            id: BundleId::of(&certificates),
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

    /// The name of this set of roots, whatever their order.
    pub fn id(&self) -> BundleId {
        self.id
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
        self.certificates.len() == other.certificates.len()
            && self
                .certificates
                .iter()
                .all(|root| other.certificates.contains(root))
    }
}

impl Eq for Roots {}

/// Names a set of roots: what a workload reports that it holds, and what the CA
/// compares that with. It is the first 16 bytes of the SHA-256 of the sorted
/// SHA-256 fingerprints of the roots, written in lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BundleId([u8; 16]);

impl BundleId {
    fn of(roots: &[Certificate]) -> Self {
        let mut fingerprints: Vec<_> = roots.iter().map(Certificate::fingerprint).collect();
        fingerprints.sort_unstable();
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for fingerprint in &fingerprints {
            context.update(Fingerprint::as_bytes(fingerprint));
        }
        let digest = context.finish();
        let first = digest.as_ref().first_chunk();
        Self(*first.expect("a SHA-256 digest has 32 bytes"))
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for BundleId {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read_hex(text).map(Self)
    }
}

/// The roots of one trust domain. Bundles of different domains are never put
/// together, because then each could speak for the other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Roots,
    sequence: u64,
}

impl TrustBundle {
    /// A bundle of which nobody said which version it is.
    pub fn new(trust_domain: TrustDomain, roots: Roots) -> Self {
        Self {
            trust_domain,
            roots,
            sequence: 0,
        }
    }

    /// Says which version this is: a greater number is a later bundle, and 0 is
    /// not known (SPIFFE Trust Domain and Bundle, 4.1.1).
    #[must_use]
    pub fn with_sequence(self, sequence: u64) -> Self {
        Self { sequence, ..self }
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

    /// The name of the set of roots.
    pub fn id(&self) -> BundleId {
        self.roots.id()
    }

    /// Which version of the bundle this is; 0 where that is not known.
    pub fn sequence(&self) -> u64 {
        self.sequence
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
