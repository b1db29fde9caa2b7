//! Counts what an upstream is asked, what came of it, and how long that took.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::elsewhere::Signed;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;
use bulkhead_pki::svid::SvidChain;
use tokio::time::Instant;

use super::{SignedChain, SignedServing, Upstream, UpstreamError};
use crate::metrics::Metrics;
use crate::vet::VettedCsr;

/// An upstream with a count of its answers.
pub struct Measured {
    inner: Arc<dyn Upstream>,
    metrics: Metrics,
}

impl Measured {
    /// All counts are there from the start, at zero.
    pub fn new(inner: Arc<dyn Upstream>, metrics: Metrics) -> Self {
        metrics.begin_upstream();
        Self { inner, metrics }
    }

    async fn measure<T>(
        &self,
        signs: &'static str,
        asked: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let asking = Asking {
            metrics: &self.metrics,
            signs,
            began: Instant::now(),
            // Whoever asked may give up before there is an answer.
            outcome: "given_up",
        };
        let answered = asked.await;
        asking.ended(match &answered {
            Ok(_) => "signed",
            Err(error) => error.reason().as_str(),
        });
        answered
    }
}

struct Asking<'a> {
    metrics: &'a Metrics,
    signs: &'static str,
    began: Instant,
    outcome: &'static str,
}

impl Asking<'_> {
    fn ended(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.metrics
            .upstream_answered(self.signs, self.outcome, took);
    }
}

#[tonic::async_trait]
impl Upstream for Measured {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn sign_intermediate(
        &self,
        key: &PrivateKey,
        trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<SignedChain, UpstreamError> {
        let asked = self.inner.sign_intermediate(key, trust_domain, lifetime);
        self.measure("intermediate", asked).await
    }

    async fn sign_leaf(
        &self,
        csr: &VettedCsr,
        lifetime: Duration,
    ) -> Result<Signed<SvidChain>, UpstreamError> {
        self.measure("leaf", self.inner.sign_leaf(csr, lifetime))
            .await
    }

    async fn sign_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<SignedServing, UpstreamError> {
        self.measure("serving", self.inner.sign_serving(names, lifetime))
            .await
    }

    fn origin(&self) -> String {
        self.inner.origin()
    }

    async fn changed(&self) {
        self.inner.changed().await;
    }

    async fn tidy(&self) {
        self.inner.tidy().await;
    }
}
