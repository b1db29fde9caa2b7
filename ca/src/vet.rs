//! Whether a caller may have what it asks for.

use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::csr::{OtherName, ParsedCsr};
use bulkhead_pki::key::PublicKey;

use crate::authenticate::Caller;

/// A request that asks for exactly the caller's identity, or for nothing. Only
/// [`vet`] makes one.
#[derive(Clone, Debug)]
pub struct VettedCsr {
    id: SpiffeId,
    csr: ParsedCsr,
    holder: String,
}

impl VettedCsr {
    /// The identity to issue.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Who will hold the certificate: the identity, and which of its instances.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// The key to issue it for.
    pub fn public_key(&self) -> &PublicKey {
        self.csr.public_key()
    }

    /// The request as the caller signed it.
    pub fn csr(&self) -> &ParsedCsr {
        &self.csr
    }
}

/// Every rule, in reading order. What the request is allowed to be at all was
/// settled when it was parsed.
pub fn vet(
    caller: &Caller,
    csr: &ParsedCsr,
    on_behalf_of: Option<&str>,
) -> Result<VettedCsr, VetError> {
    if let Some(identity) = on_behalf_of.filter(|identity| *identity != caller.id().as_str()) {
        return Err(VetError::Impersonation(shown(identity)));
    }
    if let Some(name) = csr.other_names().first() {
        return Err(VetError::OtherName(*name));
    }
    match csr.uris() {
        [] => {}
        [uri] if uri == caller.id().as_str() => {}
        [uri] => return Err(VetError::ForeignIdentity(shown(uri))),
        uris => return Err(VetError::ManyIdentities(uris.len())),
    }
    Ok(VettedCsr {
        id: caller.id().clone(),
        csr: csr.clone(),
        holder: holder(caller),
    })
}

fn holder(caller: &Caller) -> String {
    match caller.pod() {
        Some(pod) => format!("{} {}", caller.id(), pod.name),
        None => caller.id().to_string(),
    }
}

/// A hostile name may be long; its beginning tells enough.
fn shown(name: &str) -> String {
    name.chars().take(256).collect()
}

/// Why a caller may not have what it asks for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VetError {
    #[error("the call asks on behalf of {0:?}, and this caller may ask for itself alone")]
    Impersonation(String),
    #[error("the request asks for a {}, and an SVID has none", .0.as_str())]
    OtherName(OtherName),
    #[error("the request asks for {0:?}, which is not the caller's identity")]
    ForeignIdentity(String),
    #[error("the request asks for {0} identities")]
    ManyIdentities(usize),
}

impl VetError {
    /// A stable word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Impersonation(_) => "impersonation",
            Self::OtherName(_) => "csr_other_name",
            Self::ForeignIdentity(_) | Self::ManyIdentities(_) => "csr_foreign_identity",
        }
    }
}
