//! Whether a request asks for what its caller may have.

use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::csr::{OtherName, ParsedCsr};
use bulkhead_pki::key::PublicKey;

use crate::node_proxy::Subject;

/// A request that asks for exactly the identity that it may, or for nothing. Only
/// [`vet`] makes one for a caller.
#[derive(Clone, Debug)]
pub struct VettedCsr {
    id: SpiffeId,
    csr: ParsedCsr,
    holder: String,
}

impl VettedCsr {
    /// A request of nobody's, to see what becomes of one.
    pub(crate) fn trial(id: SpiffeId, csr: ParsedCsr) -> Self {
        Self {
            holder: id.to_string(),
            id,
            csr,
        }
    }

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
pub fn vet(subject: &Subject, csr: &ParsedCsr) -> Result<VettedCsr, VetError> {
    if let Some(name) = csr.other_names().first() {
        return Err(VetError::OtherName(*name));
    }
    match csr.uris() {
        [] => {}
        [uri] if uri == subject.id().as_str() => {}
        [uri] => return Err(VetError::ForeignIdentity(shown(uri))),
        uris => return Err(VetError::ManyIdentities(uris.len())),
    }
    Ok(VettedCsr {
        id: subject.id().clone(),
        csr: csr.clone(),
        holder: holder(subject),
    })
}

/// A node's proxy holds as many as it asks for.
fn holder(subject: &Subject) -> String {
    match subject.caller().pod() {
        Some(pod) => format!("{} {}", subject.id(), pod.name),
        None => format!("{} ({})", subject.id(), subject.caller().instance()),
    }
}

/// A hostile name may be long; its beginning tells enough.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(256).collect()
}

/// Why a caller may not have what it asks for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VetError {
    #[error("the call asks on behalf of {0:?}, and this caller may ask for itself alone")]
    Impersonation(String),
    #[error("the caller is a node's proxy, and it is not known on which node it runs")]
    UnknownNode,
    #[error("the call asks on behalf of {identity:?}, and no pod of it runs on node {node:?}")]
    NotOnNode { identity: String, node: String },
    #[error("the request asks for a {}, and an SVID has none", .0.as_str())]
    OtherName(OtherName),
    #[error("the request asks for {0:?}, which is not the identity that the call is for")]
    ForeignIdentity(String),
    #[error("the request asks for {0} identities")]
    ManyIdentities(usize),
}

impl VetError {
    /// A stable word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Impersonation(_) => "impersonation",
            Self::UnknownNode | Self::NotOnNode { .. } => "not_on_node",
            Self::OtherName(_) => "csr_other_name",
            Self::ForeignIdentity(_) | Self::ManyIdentities(_) => "csr_foreign_identity",
        }
    }
}
