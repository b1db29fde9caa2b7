//! What an upstream gave, before anybody relies on it: certificates in some
//! order, with or without roots.

use std::time::{Duration, SystemTime};

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::elsewhere::{ElsewhereError, Signed, Span};
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_pki::svid::SvidChain;

use super::{Reason, SignedChain, SignedServing, UpstreamError};
use crate::vet::VettedCsr;

/// The longest PEM text that an upstream may give, in bytes.
pub const MAX_PEM: usize = 256 * 1024;

/// By how much the clocks of this CA and of an upstream may differ without
/// anything being refused that was asked for.
const CLOCKS: Duration = Duration::from_secs(30);

/// The lifetime that an upstream is asked for, so that by our clock a leaf is
/// not valid for longer than `lifetime`.
pub(super) fn lifetime_to_ask(lifetime: Duration) -> Duration {
    lifetime - CLOCKS.min(lifetime / 10)
}

/// Certificates that an upstream gave: what was asked for first, then whatever
/// is above it.
#[derive(Clone, Debug)]
pub struct Answer {
    certificates: Vec<Certificate>,
    roots: Roots,
}

impl Answer {
    /// Reads the texts of an answer. The roots are those that people configured,
    /// or the self-signed certificates of the answer itself where they did not.
    pub fn read<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        configured: Option<&Roots>,
    ) -> Result<Self, UpstreamError> {
        let mut certificates: Vec<Certificate> = Vec::new();
        for text in texts {
            let read = Certificate::all_from_pem(text, MAX_PEM);
            let read = read.map_err(|error| {
                unusable(format!(
                    "a certificate of its answer cannot be read: {error}"
                ))
            })?;
            for certificate in read {
                if !certificates.contains(&certificate) {
                    certificates.push(certificate);
                }
            }
        }
        if certificates.is_empty() {
            return Err(unusable("there is no certificate in its answer"));
        }
        let own: Vec<_> = certificates
            .extract_if(.., |part| part.is_self_signed())
            .collect();
        let roots = match configured {
            Some(roots) => roots.clone(),
            None => Roots::new(own).map_err(|_| {
                unusable(
                    "its answer does not reach up to a root: name the file of the roots in \
                     BULKHEAD_CA_UPSTREAM_ROOTS, or complete the chain there",
                )
            })?,
        };
        Ok(Self {
            certificates,
            roots,
        })
    }

    /// An intermediate for `key`, which is tried out.
    pub fn into_intermediate(
        self,
        key: &PrivateKey,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<SignedChain, UpstreamError> {
        let Self {
            certificates,
            roots,
        } = self;
        let authority =
            Authority::from_elsewhere(trust_domain, certificates, key.clone(), &roots, now)
                .map_err(|error| unusable(format!("what it signed does not fit: {error}")))?;
        Ok(SignedChain::of(&authority, &roots))
    }

    /// A leaf for what was vetted, judged as its peers will.
    pub fn into_leaf(
        self,
        csr: &VettedCsr,
        trust_domain: &TrustDomain,
        span: Span,
    ) -> Result<Signed<SvidChain>, UpstreamError> {
        let wanted = (csr.id(), csr.public_key());
        Signed::svid(self.certificates, &self.roots, trust_domain, wanted, span)
            .map_err(|error| not_as_asked(&error))
    }

    /// This server's own certificate, judged as its clients will.
    pub fn into_serving(
        self,
        names: &[ServerName],
        key: PrivateKey,
        span: Span,
    ) -> Result<SignedServing, UpstreamError> {
        let Self {
            certificates,
            roots,
        } = self;
        let signed = Signed::<ServingCertificate>::serving(certificates, &roots, names, key, span);
        let Signed { certificate, root } = signed.map_err(|error| not_as_asked(&error))?;
        Ok(SignedServing {
            certificate,
            roots: root_first(&root, &roots),
        })
    }
}

impl SignedChain {
    /// The chain of an authority, with its own root first among `roots`.
    pub(super) fn of(authority: &Authority, roots: &Roots) -> Self {
        Self {
            chain: authority.intermediates().to_vec(),
            roots: root_first(authority.root(), roots),
        }
    }
}

/// The same roots; the one that signs comes first.
pub(super) fn root_first(root: &Certificate, roots: &Roots) -> Roots {
    let ordered = std::iter::once(root).chain(roots.certificates()).cloned();
    Roots::new(ordered).expect("these were roots already")
}

fn not_as_asked(error: &ElsewhereError) -> UpstreamError {
    unusable(format!("what it signed is not what was asked for: {error}"))
}

fn unusable(message: impl Into<String>) -> UpstreamError {
    UpstreamError::new(Reason::Unusable, message)
}
