//! An issuer of cert-manager, by its CertificateRequests.
//!
//! ```text
//!  create CertificateRequest ─▶ approved or denied ─▶ issued or failed ─▶ delete
//!                               (approver-policy…)     (the issuer)
//! ```
//!
//! Whether a request is approved is for the people who run cert-manager to say.
//! It is watched for a bounded time, and what is told of it meanwhile is what an
//! error shows. It is deleted in every case: its answer is checked and kept
//! here.

mod request;

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_runtime::clock::Clock;
use futures::StreamExt as _;
use kube::api::{Api, DeleteParams, DynamicObject, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};

use self::request::{Order, State};
use super::answer::Answer;
use super::{Reason, SignedChain, Upstream, UpstreamError, read_roots};
use crate::vet::VettedCsr;

pub use self::request::{IssuerError, IssuerRef};

/// How long an issuer may take, which includes people that approve requests
/// within seconds and none that do by hand.
const ISSUED_WITHIN: Duration = Duration::from_secs(60);

/// Signs by cert-manager.
pub struct CertManager {
    requests: Api<DynamicObject>,
    issuer: IssuerRef,
    roots_file: Option<PathBuf>,
    trust_domain: TrustDomain,
    clock: Clock,
}

impl CertManager {
    /// Nothing is asked yet. Requests are made in `namespace`, which is where a
    /// namespaced issuer must be.
    pub fn new(
        client: Client,
        namespace: &str,
        issuer: IssuerRef,
        roots_file: Option<PathBuf>,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> Self {
        Self {
            requests: Api::namespaced_with(client, namespace, &request::resource()),
            issuer,
            roots_file,
            trust_domain,
            clock,
        }
    }

    async fn sign(&self, order: Order<'_>) -> Result<Answer, UpstreamError> {
        let roots = read_roots(self.roots_file.as_deref()).await?;
        let made = order.to_object(&self.issuer);
        let made = self.requests.create(&PostParams::default(), &made).await;
        let name = made.map_err(|error| self.not_asked(&error))?.name_any();
        let outcome = self.outcome(&name).await;
        // Also after a failure: cert-manager keeps them for ever.
        if let Err(error) = self.requests.delete(&name, &DeleteParams::default()).await {
            tracing::warn!(%error, request = name, "a CertificateRequest that is done with was not deleted");
        }
        outcome?.read(roots.as_ref())
    }

    /// Watches a request to its end, within a bounded time.
    async fn outcome(&self, name: &str) -> Result<request::Issued, UpstreamError> {
        let mut last = "nobody said anything about it".to_owned();
        let watched = async {
            let mut seen = watcher::watch_object(self.requests.clone(), name).boxed();
            while let Some(event) = seen.next().await {
                match event {
                    Ok(Some(object)) => match State::of(&object) {
                        State::Issued(issued) => return Ok(issued),
                        State::Refused(why) => return Err(self.refused(name, &why)),
                        State::Pending(what) => last = what,
                    },
                    Ok(None) => {}
                    Err(error) => last = format!("watching it failed: {error}"),
                }
            }
            Err(self.refused(name, "the watch of it ended"))
        };
        match tokio::time::timeout(ISSUED_WITHIN, watched).await {
            Ok(outcome) => outcome,
            Err(_) => Err(UpstreamError::new(
                Reason::Unreachable,
                format!(
                    "CertificateRequest {name} to {} was not answered within {} s: {last}; does \
                     cert-manager run, and does an approver approve requests of this \
                     ServiceAccount?",
                    self.issuer,
                    ISSUED_WITHIN.as_secs(),
                ),
            )),
        }
    }

    fn refused(&self, name: &str, why: &str) -> UpstreamError {
        UpstreamError::new(
            Reason::Refused,
            format!("CertificateRequest {name} to {}: {why}", self.issuer),
        )
    }

    fn not_asked(&self, error: &kube::Error) -> UpstreamError {
        let (reason, advice) = match error {
            kube::Error::Api(status) if status.code == 404 => {
                (Reason::Unusable, "is cert-manager installed?")
            }
            kube::Error::Api(status) if status.code == 403 => (
                Reason::Refused,
                "the chart grants it where ca.upstream.kind is cert-manager",
            ),
            kube::Error::Api(status) if status.code < 500 => (
                Reason::Refused,
                "a webhook or the API server did not take it",
            ),
            _ => (Reason::Unreachable, "is the API server there?"),
        };
        UpstreamError::new(
            reason,
            format!(
                "making a CertificateRequest to {} failed: {error}; {advice}",
                self.issuer
            ),
        )
    }
}

#[tonic::async_trait]
impl Upstream for CertManager {
    fn kind(&self) -> &'static str {
        "cert-manager"
    }

    async fn sign_intermediate(
        &self,
        key: &PrivateKey,
        trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<SignedChain, UpstreamError> {
        let csr = csr::create_intermediate(key, trust_domain)
            .map_err(|error| UpstreamError::new(Reason::Unusable, error.to_string()))?;
        let answer = self.sign(Order::intermediate(&csr, lifetime)).await?;
        answer.into_intermediate(key, trust_domain, self.clock.now())
    }

    async fn sign_leaf(
        &self,
        csr: &VettedCsr,
        lifetime: Duration,
    ) -> Result<SignedChain, UpstreamError> {
        if csr.csr().uris().is_empty() {
            return Err(UpstreamError::new(
                Reason::Unusable,
                "cert-manager takes the identity from the workload's request, and this workload \
                 named none in it",
            ));
        }
        let pem = csr.csr().to_pem();
        let answer = self.sign(Order::leaf(&pem, lifetime)).await?;
        answer.into_leaf(csr, &self.trust_domain, self.clock.now())
    }

    /// cert-manager does not tell.
    async fn changed(&self) {
        std::future::pending().await
    }
}
