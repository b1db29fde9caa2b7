//! The TLS settings towards servers, made once for each identity.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use bulkhead_core::identity::SpiffeId;
use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use rustls::ClientConfig;

use crate::credentials::Credentials;
use crate::failure::Failure;

/// The most settings that are kept; beyond it, all are made anew. Far more than
/// one application has kinds of peers.
const MAX_KEPT: usize = 512;

/// The settings that belong to the latest credentials. Sessions are resumed
/// within them, so never across a rotation.
#[derive(Default)]
pub(crate) struct TlsSettings(RefCell<Made>);

#[derive(Default)]
struct Made {
    with: Option<Arc<Credentials>>,
    settings: HashMap<(SpiffeId, Protocol), Arc<ClientConfig>>,
}

impl TlsSettings {
    /// For connections that carry `inside` to whoever proves this identity.
    pub(super) fn get(
        &self,
        credentials: &Arc<Credentials>,
        identity: &SpiffeId,
        inside: Protocol,
    ) -> Result<Arc<ClientConfig>, Failure> {
        let mut made = self.0.borrow_mut();
        let is_same = |with: &Arc<Credentials>| Arc::ptr_eq(with, credentials);
        if !made.with.as_ref().is_some_and(is_same) || made.settings.len() == MAX_KEPT {
            made.with = Some(Arc::clone(credentials));
            made.settings.clear();
        }
        let key = (identity.clone(), inside);
        if let Some(settings) = made.settings.get(&key) {
            return Ok(Arc::clone(settings));
        }
        let settings = credentials
            .client_config(identity, inside)
            .map_err(|error| Failure::new(Reason::TlsHandshakeFailed, error))?;
        made.settings.insert(key, Arc::clone(&settings));
        Ok(settings)
    }
}
