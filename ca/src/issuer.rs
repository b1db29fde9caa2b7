//! What signs. Each way of signing is one file below and one line in
//! [`crate::app`]; whatever it is, it issues what was vetted and nothing else.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_pki::authority::AuthorityError;
use bulkhead_pki::bundle::{BundleId, TrustBundle};
use bulkhead_pki::certificate::Fingerprint;
use bulkhead_pki::jwt::JwtKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate, ServingError};
use bulkhead_pki::svid::SvidChain;
use bulkhead_proto::ca::CertificateAnswer;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::upstream::{Reason, UpstreamError};
use crate::vet::VettedCsr;

use self::status::Status;

pub mod rotating;
pub mod status;

/// Signs for workloads, and for this server itself.
#[tonic::async_trait]
pub trait Issuer: Send + Sync + 'static {
    /// Issues the vetted identity for the vetted key. The certificate may be
    /// valid for less than `lifetime`, never for more.
    async fn issue(&self, csr: &VettedCsr, lifetime: Duration) -> Result<Issued, IssueError>;

    /// Is told which trust bundle somebody claims to hold, before it is given
    /// another certificate.
    fn claimed(&self, _holder: &str, _bundle: BundleId) {}

    /// Issues a certificate that clients with the mesh's roots verify by name.
    async fn issue_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<ServingCertificate, IssueError>;

    /// What workloads are to trust.
    fn trust_bundle(&self) -> TrustBundle;

    /// The same roots in PEM, and every change of them.
    fn roots_pem(&self) -> watch::Receiver<Arc<str>>;

    /// The SPIFFE bundle of the trust domain in JSON, and every change of it.
    fn bundle_document(&self) -> watch::Receiver<Arc<str>>;

    /// When the last look at the CA's store began that succeeded, and each such look.
    /// What it showed is in the bundle by then.
    fn store_seen(&self) -> watch::Receiver<Instant>;

    /// Whether another CA than the one that signs here is in the store: it is that
    /// one's to say what to trust.
    fn is_replaced(&self) -> watch::Receiver<bool>;

    /// What there is to say about the CA's own certificates, as it changes.
    fn status(&self) -> watch::Receiver<Arc<Status>>;

    /// What signs JWT-SVIDs now; its public half is in the bundle.
    fn jwt_signer(&self) -> Result<Arc<JwtKey>, IssueError>;
}

/// What a caller gets.
#[derive(Clone, Debug)]
pub struct Issued {
    pub svid: SvidChain,
    /// The certificates above the leaf, in PEM, which are the same for many.
    pub intermediates_pem: Arc<[String]>,
    /// All trust roots in PEM.
    pub roots_pem: Arc<str>,
    /// The name of the set of these roots, and which version of the bundle.
    pub bundle: BundleId,
    pub sequence: u64,
    /// The root that the chain leads to.
    pub signing_root: Fingerprint,
}

impl Issued {
    /// In the form and order of the wire: leaf, intermediates, roots.
    pub fn to_answer(&self) -> CertificateAnswer {
        let leaf = self.svid.leaf().to_pem();
        CertificateAnswer {
            chain: std::iter::once(leaf)
                .chain(self.intermediates_pem.iter().cloned())
                .collect(),
            roots: self.roots_pem.as_ref().to_owned(),
        }
    }
}

/// Why nothing was issued. The caller did nothing wrong.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("issuing failed: {0}")]
    Authority(#[from] AuthorityError),
    #[error("the upstream issuer, which signs each leaf, did not: {0}")]
    Upstream(#[from] UpstreamError),
    #[error(
        "the upstream issuer signs under another root by now, {0}: nothing of it is given out before all workloads hold that root"
    )]
    NewRoot(Fingerprint),
    #[error(
        "an upstream issuer signed each leaf, and the settings name none any more: name it again, or rotate to a root of this CA's own"
    )]
    NoUpstream,
    #[error("issuing this server's own certificate failed: {0}")]
    Serving(#[from] ServingError),
    #[error(
        "the CA's store was last seen {} s ago, and another replica may have changed roots since: this one does not sign until it sees the store again",
        .0.as_secs()
    )]
    StoreUnseen(Duration),
}

impl IssueError {
    /// A stable word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Upstream(error) => match error.reason() {
                Reason::Unreachable => "upstream_unreachable",
                Reason::Refused => "upstream_refused",
                Reason::Unusable => "upstream_unusable",
            },
            Self::NewRoot(_) => "upstream_new_root",
            Self::StoreUnseen(_) => "store_unseen",
            Self::Authority(_) | Self::NoUpstream | Self::Serving(_) => "issuer_failed",
        }
    }
}
