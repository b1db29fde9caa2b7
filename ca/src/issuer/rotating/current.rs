//! What signs now. Replaced as a whole, read without a lock.

use std::sync::Arc;
use std::time::SystemTime;

use bulkhead_pki::bundle::TrustBundle;
use bulkhead_pki::certificate::{Certificate, Fingerprint};
use bulkhead_pki::jwt::JwtKey;
use bulkhead_pki::svid::SvidChain;

use crate::issuer::Issued;
use crate::keyring::{Keyring, Signs};
use crate::rotation::slots::Slots;
use crate::store::StoreError;

/// What signing needs, and what is told of the rest. No root's key is in it.
pub(super) struct Current {
    pub(super) signs: Signs,
    /// The root that leaves are under.
    pub(super) signing_root: Fingerprint,
    pub(super) token_signer: Arc<JwtKey>,
    pub(super) slots: Slots,
    pub(super) bundle: TrustBundle,
    pub(super) intermediates_pem: Arc<[String]>,
    pub(super) roots_pem: Arc<str>,
    pub(super) document: Arc<str>,
}

impl Current {
    pub(super) fn new(keyring: &Keyring) -> Result<Self, StoreError> {
        let signs = keyring.signs()?;
        let bundle = keyring.bundle()?;
        // An upstream says with each leaf what is above it.
        let (root, intermediates) = match &signs {
            Signs::Here(authority) => (authority.root(), authority.intermediates()),
            Signs::Upstream(own) => (&own.root, Default::default()),
        };
        Ok(Self {
            intermediates_pem: intermediates.iter().map(Certificate::to_pem).collect(),
            signing_root: root.fingerprint(),
            roots_pem: bundle.to_pem().into(),
            document: keyring.document()?.to_json()?.into(),
            slots: keyring.slots().clone(),
            token_signer: keyring.token_signer().ok_or(StoreError::NothingSigns)?,
            signs,
            bundle,
        })
    }
    /// A leaf with all that its holder needs besides.
    pub(super) fn issued(&self, svid: SvidChain, intermediates_pem: Arc<[String]>) -> Issued {
        Issued {
            svid,
            intermediates_pem,
            roots_pem: Arc::clone(&self.roots_pem),
            bundle: self.bundle.id(),
            sequence: self.bundle.sequence(),
            signing_root: self.signing_root,
        }
    }

    /// When what signs, or was signed to see who signs, expires.
    pub(super) fn not_after(&self) -> SystemTime {
        match &self.signs {
            Signs::Here(authority) => authority.not_after(),
            Signs::Upstream(own) => own.certificate.not_after(),
        }
    }
}
