//! Signing certificates of a trust domain, and what they issue.
//!
//! An [`Authority`] is a signing certificate with its key and the chain above
//! it. A root has nothing above it; an intermediate has a root, and perhaps
//! more intermediates. Issuing is template, sign, check: nothing leaves that
//! does not fulfil the profile. What somebody else made is judged in [`foreign`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use rcgen::BasicConstraints;

use crate::bundle::Roots;
use crate::certificate::Certificate;
use crate::key::{KeyError, PrivateKey, PublicKey};
use crate::leaf::{Name, Purpose};
use crate::signer::{self, SignError, Signer, Validity};
use crate::svid::{self, ProfileError, SvidChain, SvidError};

pub use crate::signer::BACKDATE;

pub mod foreign;

/// A signing certificate of a trust domain, with its key.
pub struct Authority {
    trust_domain: TrustDomain,
    signer: Signer,
    /// What a leaf must be presented with: this certificate and those above
    /// it, the root excepted.
    intermediates: Arc<[Certificate]>,
    root: Certificate,
    /// When the whole chain is valid: nothing is issued outside.
    valid: Validity,
}

impl Authority {
    /// A new root, which may have intermediates below it.
    pub fn new_root(
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        // A signing certificate is an SVID too: of the trust domain itself.
        let mut params = signer::signing(
            Validity::new(now, lifetime)?,
            trust_domain.as_str(),
            "Bulkhead root",
            BasicConstraints::Unconstrained,
        )?;
        params.subject_alt_names = vec![signer::uri(trust_domain.id().as_str())?];
        let signer = Signer::self_signed(params)?;
        let root = signer.certificate().clone();
        Self::assemble(trust_domain, signer, Vec::new(), root)
    }

    /// A new intermediate below this one, which signs leaves only. It does not
    /// outlive anything above it.
    pub fn new_intermediate(
        &self,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        self.new_intermediate_for(&PrivateKey::generate()?, lifetime, now)
    }

    /// The same, for a key that somebody has already.
    pub fn new_intermediate_for(
        &self,
        key: &PrivateKey,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let validity = self.clamp(Validity::new(now, lifetime)?, now)?;
        let signer = self.signer.subordinate(key, &self.trust_domain, validity)?;
        let chain = std::iter::once(signer.certificate())
            .chain(self.intermediates.iter())
            .cloned()
            .collect();
        Self::assemble(&self.trust_domain, signer, chain, self.root.clone())
    }

    /// A stored authority: its certificate first, then each signer of the one
    /// before; the last one, or a root that signed it, is the root.
    pub fn from_parts(
        trust_domain: &TrustDomain,
        mut chain: Vec<Certificate>,
        key: PrivateKey,
        roots: &Roots,
    ) -> Result<Self, AuthorityError> {
        for pair in chain.windows(2) {
            if !pair[0].is_signed_by(&pair[1]) {
                return Err(AuthorityError::BrokenChain(pair[0].serial()));
            }
        }
        let (Some(own), Some(top)) = (chain.first().cloned(), chain.last()) else {
            return Err(AuthorityError::Empty);
        };
        let root = roots
            .certificates()
            .iter()
            .find(|root| *root == top || top.is_signed_by(root))
            .cloned()
            .ok_or_else(|| AuthorityError::NoRoot(top.serial()))?;
        if *top == root {
            chain.pop();
        }
        Self::assemble(trust_domain, Signer::new(own, key)?, chain, root)
    }

    fn assemble(
        trust_domain: &TrustDomain,
        signer: Signer,
        intermediates: Vec<Certificate>,
        root: Certificate,
    ) -> Result<Self, AuthorityError> {
        let mut valid = Validity {
            not_before: root.not_before(),
            not_after: root.not_after(),
        };
        for certificate in intermediates.iter().chain([signer.certificate()]) {
            let facts = certificate.facts();
            svid::check_signing(facts)?;
            let foreign = |uri: &String| *uri != trust_domain.id().as_str();
            if facts.uris.iter().any(foreign) {
                return Err(AuthorityError::TrustDomain(certificate.serial()));
            }
            valid.not_before = valid.not_before.max(facts.not_before);
            valid.not_after = valid.not_after.min(facts.not_after);
        }
        Ok(Self {
            trust_domain: trust_domain.clone(),
            signer,
            intermediates: intermediates.into(),
            root,
            valid,
        })
    }

    /// Issues the SVID of `id` for a public key.
    ///
    /// It is valid from [`BACKDATE`] before `now`, for `lifetime` or until the
    /// first certificate above it expires, whichever is sooner.
    pub fn issue_svid(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<SvidChain, AuthorityError> {
        if !id.is_member_of(&self.trust_domain) {
            return Err(AuthorityError::NotAMember(id.clone()));
        }
        let validity = self.clamp(Validity::new(now, lifetime)?, now)?;
        let names = [Name::Uri(id.as_str())];
        let leaf = self
            .signer
            .sign_leaf(Purpose::Workload, &names, key, validity)?;
        let chain = SvidChain::new(leaf, Arc::clone(&self.intermediates))?;
        self.check(&chain, id, key)?;
        Ok(chain)
    }

    /// Checks what was made against what was asked for, and against the signer
    /// that others will compare it with.
    fn check(
        &self,
        chain: &SvidChain,
        id: &SpiffeId,
        key: &PublicKey,
    ) -> Result<(), AuthorityError> {
        let facts = chain.leaf().facts();
        let as_asked = chain.id() == id
            && chain.is_for(key)
            && facts.issuer == self.certificate().facts().subject
            && facts.not_after <= self.valid.not_after;
        as_asked.then_some(()).ok_or(AuthorityError::NotAsAsked)
    }

    /// Fits a validity into that of the chain above.
    pub(crate) fn clamp(
        &self,
        asked: Validity,
        now: SystemTime,
    ) -> Result<Validity, AuthorityError> {
        if now < self.valid.not_before || self.valid.not_after <= now {
            return Err(AuthorityError::NotValid {
                serial: self.certificate().serial(),
            });
        }
        Ok(Validity {
            not_before: asked.not_before.max(self.valid.not_before),
            not_after: asked.not_after.min(self.valid.not_after),
        })
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn certificate(&self) -> &Certificate {
        self.signer.certificate()
    }

    /// This certificate and those above it, the root excepted.
    pub fn intermediates(&self) -> &[Certificate] {
        &self.intermediates
    }

    pub fn root(&self) -> &Certificate {
        &self.root
    }

    /// When the first certificate of the chain expires, the root included:
    /// nothing that is issued is valid for longer.
    pub fn not_after(&self) -> SystemTime {
        self.valid.not_after
    }

    /// The private key, for whoever keeps it.
    pub fn key(&self) -> &PrivateKey {
        self.signer.key()
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("serial", &self.certificate().serial())
            .finish_non_exhaustive()
    }
}

/// Why an authority cannot be used, or did not issue.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("there is no signing certificate in the chain")]
    Empty,
    #[error(
        "certificate {0} is not signed by the one after it: is the chain in order, leaf first?"
    )]
    BrokenChain(String),
    #[error("none of the trust roots signed certificate {0}: was the root replaced?")]
    NoRoot(String),
    #[error("signing certificate {0} belongs to another trust domain")]
    TrustDomain(String),
    #[error("the signing certificate is not fit to sign: {0}")]
    Profile(#[from] ProfileError),
    #[error("{0} is not in the trust domain that this authority signs for")]
    NotAMember(SpiffeId),
    #[error("signing certificate {serial}, or one above it, has expired or is not valid yet")]
    NotValid { serial: String },
    #[error("what was issued is not a valid SVID: {0}")]
    Svid(#[from] SvidError),
    #[error("what was issued is not what was asked for; nothing was given out")]
    NotAsAsked,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Sign(#[from] SignError),
}
