//! Who signs above us, where the mesh's root is somebody else's.
//!
//! ```text
//!  issuer ─ sign_intermediate ─▶ measured ─▶ Upstream ─┬─ a directory of PEM files
//!         ├ sign_leaf ─────────▶                       ├─ cert-manager
//!         └ sign_serving ──────▶                       └─ Vault
//! ```
//!
//! An upstream signs our intermediate, which then signs everything else, or it
//! signs each leaf and this server's own certificate. Whatever it answers is
//! checked by [`answer`] before anybody relies on it. One that fails stops
//! nothing: what is there signs on, and the failure is a word of [`Reason`] in
//! metrics ([`measured`]) and the status.
//!
//! To add one: a file below that implements [`Upstream`], and its form in the
//! settings.

use std::path::Path;
use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::elsewhere::Signed;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_pki::svid::SvidChain;

use crate::vet::VettedCsr;

pub mod answer;
pub mod cert_manager;
pub mod files;
pub mod measured;
pub mod vault;

/// Another CA, which signs for this one.
#[tonic::async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// `files`, `cert-manager` or `vault`: for status, logs and metrics.
    fn kind(&self) -> &'static str;

    /// Signs an intermediate with this key, which signs leaves of the trust
    /// domain. It may be valid for less than `lifetime`.
    async fn sign_intermediate(
        &self,
        key: &PrivateKey,
        trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<SignedChain, UpstreamError>;

    /// Signs one leaf: the vetted identity for the vetted key. It may be valid
    /// for less than `lifetime`.
    async fn sign_leaf(
        &self,
        csr: &VettedCsr,
        lifetime: Duration,
    ) -> Result<Signed<SvidChain>, UpstreamError>;

    /// Signs a certificate for this server itself, with a new key, where it is
    /// the upstream that signs each leaf. It may be valid for less than
    /// `lifetime`.
    async fn sign_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<SignedServing, UpstreamError>;

    /// Names what signs there, as far as that is known without asking: where it
    /// is another than the last time, it is worth asking.
    fn origin(&self) -> String;

    /// Resolves when what signs there has changed, such as a replaced file;
    /// never, where the upstream cannot tell.
    async fn changed(&self);

    /// Removes what requests left behind there that nobody waits for any more.
    async fn tidy(&self) {}
}

/// What an upstream gave.
#[derive(Clone, Debug)]
pub struct SignedChain {
    /// What was asked for first, then each signer of the one before, without
    /// the root.
    pub chain: Vec<Certificate>,
    /// Who vouches for it. The root that the chain ends in is the first.
    pub roots: Roots,
}

/// This server's own certificate, signed by an upstream.
#[derive(Clone, Debug)]
pub struct SignedServing {
    pub certificate: ServingCertificate,
    /// Who vouches for it. The root that the chain ends in is the first.
    pub roots: Roots,
}

/// The roots that people put into a file, if they named one.
async fn read_roots(file: Option<&Path>) -> Result<Option<Roots>, UpstreamError> {
    let Some(file) = file else {
        return Ok(None);
    };
    let problem = |what: &dyn std::fmt::Display| {
        let file = file.display();
        UpstreamError::new(
            Reason::Unusable,
            format!("the roots in {file} cannot be used: {what}"),
        )
    };
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| problem(&error))?;
    let roots = Roots::from_pem(&text).map_err(|error| problem(&error))?;
    Ok(Some(roots))
}

/// Why an upstream signed nothing: what happened and what to do about it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct UpstreamError {
    reason: Reason,
    message: String,
}

impl UpstreamError {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }
}

/// The kinds of failure, by who can end them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    /// It cannot be reached, answers too late, or is out of order: it may work
    /// again by itself.
    Unreachable,
    /// It says no: somebody must permit it there.
    Refused,
    /// What it is set up with, or gave, does not fit: somebody must repair it.
    Unusable,
}

impl Reason {
    pub const ALL: [Self; 3] = [Self::Unreachable, Self::Refused, Self::Unusable];

    /// A stable word for status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Unusable => "unusable",
        }
    }
}
