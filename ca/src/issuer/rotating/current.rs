//! What signs now. Replaced as a whole, read without a lock.

use std::sync::Arc;

use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::TrustBundle;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::jwt::JwtKey;

use crate::keyring::Keyring;
use crate::rotation::slots::Slots;
use crate::store::StoreError;

/// What signing needs, and what is told of the rest. No root's key is in it.
pub(super) struct Current {
    pub(super) signer: Authority,
    pub(super) token_signer: Arc<JwtKey>,
    pub(super) slots: Slots,
    pub(super) bundle: TrustBundle,
    pub(super) intermediates_pem: Arc<[String]>,
    pub(super) roots_pem: Arc<str>,
    pub(super) document: Arc<str>,
}

impl Current {
    pub(super) fn new(keyring: &Keyring) -> Result<Self, StoreError> {
        let signer = keyring.signer()?;
        let bundle = keyring.bundle()?;
        let intermediates = signer.intermediates().iter();
        Ok(Self {
            intermediates_pem: intermediates.map(Certificate::to_pem).collect(),
            roots_pem: bundle.to_pem().into(),
            document: keyring.document()?.to_json()?.into(),
            slots: keyring.slots().clone(),
            token_signer: keyring.token_signer().ok_or(StoreError::NothingSigns)?,
            signer,
            bundle,
        })
    }
}
