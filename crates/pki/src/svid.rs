//! The X.509-SVID profile, as lists of rules, and the chains that fulfil it.
//!
//! Each rule cites its section of X509-SVID
//! (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>). The
//! same lists judge what Bulkhead issues and what it accepts from a peer.

use std::sync::Arc;
use std::time::SystemTime;

use bulkhead_core::identity::SpiffeId;
use rustls_pki_types::CertificateDer;

use crate::certificate::{Certificate, CertificateError, Facts};
use crate::key::{KeyError, PublicKey};

/// The longest chain that is read, in bytes of PEM.
const MAX_CHAIN_PEM: usize = 64 * 1024;

/// The most certificates that a chain may have. Verifying costs the verifier
/// work for each, and nobody has more than three or four.
pub const MAX_CHAIN_LENGTH: usize = 10;

/// One rule of the profile.
#[derive(Debug)]
pub struct Rule {
    /// The section of X509-SVID that makes the rule.
    pub section: &'static str,
    /// What must be so.
    pub text: &'static str,
    holds: fn(&Facts) -> bool,
}

/// What every leaf must fulfil, besides having one SPIFFE ID.
pub const LEAF_RULES: &[Rule] = &[
    Rule {
        section: "2",
        text: "a certificate has exactly one URI among its alternative names",
        holds: |facts| facts.uris.len() == 1,
    },
    Rule {
        section: "Appendix A",
        text: "the alternative names are critical where the subject is empty",
        holds: |facts| facts.names_critical || !facts.subject_empty,
    },
    Rule {
        section: "4.1",
        text: "a leaf does not set cA",
        holds: |facts| !facts.is_ca,
    },
    Rule {
        section: "4.3",
        text: "key usage is there and critical",
        holds: key_usage_is_critical,
    },
    Rule {
        section: "4.3",
        text: "a leaf's key usage has digitalSignature",
        holds: |facts| facts.key_usage.is_some_and(|usage| usage.digital_signature),
    },
    Rule {
        section: "4.3",
        text: "a leaf's key usage has neither keyCertSign nor cRLSign",
        holds: |facts| {
            facts
                .key_usage
                .is_none_or(|usage| !usage.key_cert_sign && !usage.crl_sign)
        },
    },
    Rule {
        section: "4.4",
        text: "a leaf's extended key usage, if there, has both serverAuth and clientAuth",
        holds: |facts| {
            facts
                .extended_key_usage
                .is_none_or(|usage| usage.server_auth && usage.client_auth)
        },
    },
];

/// What every signing certificate between a leaf and its root must fulfil.
pub const SIGNING_RULES: &[Rule] = &[
    Rule {
        section: "4.1",
        text: "a signing certificate sets cA",
        holds: |facts| facts.is_ca,
    },
    Rule {
        section: "4.3",
        text: "key usage is there and critical",
        holds: key_usage_is_critical,
    },
    Rule {
        section: "4.3",
        text: "a signing certificate's key usage has keyCertSign",
        holds: |facts| facts.key_usage.is_some_and(|usage| usage.key_cert_sign),
    },
    Rule {
        section: "2",
        text: "a signing certificate has one URI among its alternative names at most",
        holds: |facts| facts.uris.len() <= 1,
    },
    Rule {
        section: "3.2",
        text: "the SPIFFE ID of a signing certificate, if there, has no path",
        holds: |facts| {
            facts
                .uris
                .iter()
                .all(|uri| SpiffeId::parse(uri).is_ok_and(|id| id.path().is_empty()))
        },
    },
];

fn key_usage_is_critical(facts: &Facts) -> bool {
    facts.key_usage.is_some_and(|usage| usage.critical)
}

/// Checks a leaf, and gives its identity.
pub(crate) fn check_leaf(facts: &Facts) -> Result<SpiffeId, ProfileError> {
    check(facts, LEAF_RULES)?;
    let uri = facts.uris.first().map_or("", String::as_str);
    let id = SpiffeId::parse(uri).map_err(ProfileError::NotSpiffe)?;
    if id.path().is_empty() {
        // Section 3.1: only signing certificates carry a trust domain's own ID.
        return Err(ProfileError::NoPath(id));
    }
    Ok(id)
}

/// Checks a signing certificate.
pub(crate) fn check_signing(facts: &Facts) -> Result<(), ProfileError> {
    check(facts, SIGNING_RULES)
}

fn check(facts: &Facts, rules: &'static [Rule]) -> Result<(), ProfileError> {
    match rules.iter().find(|rule| !(rule.holds)(facts)) {
        None => Ok(()),
        Some(rule) => Err(ProfileError::Rule {
            section: rule.section,
            text: rule.text,
        }),
    }
}

/// A leaf that fulfils the profile, and the intermediates to present with it.
/// Cloning it is cheap.
///
/// That a root vouches for it is another question, which
/// [`crate::verifier::PeerVerifier`] answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SvidChain {
    id: SpiffeId,
    leaf: Certificate,
    intermediates: Arc<[Certificate]>,
}

impl SvidChain {
    /// Takes a leaf and the certificates above it, the nearest first.
    pub fn new(
        leaf: Certificate,
        intermediates: impl Into<Arc<[Certificate]>>,
    ) -> Result<Self, SvidError> {
        let intermediates = intermediates.into();
        if intermediates.len() >= MAX_CHAIN_LENGTH {
            return Err(SvidError::Length(intermediates.len() + 1));
        }
        Ok(Self {
            id: check_leaf(leaf.facts())?,
            leaf,
            intermediates,
        })
    }

    /// Reads a PEM text: the leaf first, then each signer of the one before.
    pub fn from_pem(text: &str) -> Result<Self, SvidError> {
        Self::from_certificates(Certificate::all_from_pem(text, MAX_CHAIN_PEM)?)
    }

    /// Reads DER in the same order.
    pub fn from_der(chain: Vec<CertificateDer<'static>>) -> Result<Self, SvidError> {
        if chain.len() > MAX_CHAIN_LENGTH {
            return Err(SvidError::Length(chain.len()));
        }
        let certificates: Result<Vec<_>, _> =
            chain.into_iter().map(Certificate::from_der).collect();
        Self::from_certificates(certificates?)
    }

    fn from_certificates(mut certificates: Vec<Certificate>) -> Result<Self, SvidError> {
        if certificates.is_empty() {
            return Err(SvidError::Length(0));
        }
        let intermediates = certificates.split_off(1);
        let leaf = certificates.swap_remove(0);
        Self::new(leaf, intermediates)
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn leaf(&self) -> &Certificate {
        &self.leaf
    }

    /// The certificates above the leaf, without the root.
    pub fn intermediates(&self) -> &[Certificate] {
        &self.intermediates
    }

    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before()
    }

    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after()
    }

    /// The leaf's serial number in lower-case hexadecimal digits.
    pub fn serial(&self) -> String {
        self.leaf.serial()
    }

    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        self.leaf.public_key()
    }

    /// Whether the leaf is for this key.
    pub fn is_for(&self, key: &PublicKey) -> bool {
        self.leaf.facts().spki == key.as_spki()
    }

    pub fn to_pem(&self) -> String {
        self.certificates().map(Certificate::to_pem).collect()
    }

    pub fn to_der(&self) -> Vec<CertificateDer<'static>> {
        self.certificates()
            .map(|certificate| certificate.der().clone())
            .collect()
    }

    fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        std::iter::once(&self.leaf).chain(self.intermediates.iter())
    }
}

/// Which rule of the profile a certificate breaks.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProfileError {
    #[error("the certificate breaks X509-SVID section {section}: {text}")]
    Rule {
        section: &'static str,
        text: &'static str,
    },
    #[error("the certificate's URI is no SPIFFE ID (X509-SVID section 2): {0}")]
    NotSpiffe(bulkhead_core::identity::IdentityError),
    #[error("the leaf's SPIFFE ID {0} has no path (X509-SVID section 3.1)")]
    NoPath(SpiffeId),
}

/// Why bytes are not a chain.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SvidError {
    #[error("the chain has {0} certificates; 1 to {MAX_CHAIN_LENGTH} are accepted")]
    Length(usize),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}
