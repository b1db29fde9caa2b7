//! An issuer of cert-manager, by its CertificateRequests.
//!
//! ```text
//!  create CertificateRequest ─▶ approved or denied ─▶ issued or failed ─▶ delete
//!                               (approver-policy…)     (the issuer)
//! ```
//!
//! Whether a request is approved is for the people who run cert-manager to say.
//! It is watched for a bounded time, and what is told of it meanwhile is what an
//! error shows. It is deleted in every case, also when its caller gave up: its
//! answer is checked and kept here. What a CA left behind that ended in between
//! is known by its label and swept up.

pub mod request;

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::csr;
use bulkhead_pki::elsewhere::{Signed, Span};
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;
use bulkhead_pki::svid::SvidChain;
use bulkhead_runtime::clock::Clock;
use futures::StreamExt as _;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};

use self::request::{Order, State};
use super::answer::{Answer, lifetime_to_ask};
use super::{Reason, SignedChain, SignedServing, Upstream, UpstreamError, read_roots};
use crate::vet::VettedCsr;

pub use self::request::{IssuerError, IssuerRef};

/// How long an issuer may take, which includes people that approve requests
/// within seconds and none that do by hand.
const ISSUED_WITHIN: Duration = Duration::from_secs(60);

/// How long the API server may take for one request.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// From which age on nobody waits for a request any more.
const LEFT_BEHIND: Duration = Duration::from_secs(300);

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
        let parameters = PostParams::default();
        let made = self.requests.create(&parameters, &made);
        let made = tokio::time::timeout(ANSWERED_WITHIN, made).await;
        let made = made.map_err(|_| self.not_answered())?;
        let request = Request {
            name: made.map_err(|error| self.not_asked(&error))?.name_any(),
            requests: self.requests.clone(),
        };
        let issued = self.outcome(&request.name).await?;
        issued.read(roots.as_ref())
    }

    /// Watches a request to its end, within a bounded time.
    async fn outcome(&self, name: &str) -> Result<request::Issued, UpstreamError> {
        let mut last = "nobody said anything about it".to_owned();
        let watched = async {
            let mut seen = watcher::watch_object(self.requests.clone(), name)
                .default_backoff()
                .boxed();
            while let Some(event) = seen.next().await {
                match event {
                    Ok(Some(object)) => match State::of(&object.data) {
                        State::Issued(issued) => return Ok(issued),
                        State::Refused(why) => return Err(self.refused(name, &why)),
                        State::Pending(what) => last = what,
                        State::Unreadable(what) => return Err(self.unreadable(name, &what)),
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

    fn not_answered(&self) -> UpstreamError {
        UpstreamError::new(
            Reason::Unreachable,
            format!(
                "making a CertificateRequest to {} failed: the API server did not answer within \
                 {} s",
                self.issuer,
                ANSWERED_WITHIN.as_secs()
            ),
        )
    }

    fn refused(&self, name: &str, why: &str) -> UpstreamError {
        UpstreamError::new(
            Reason::Refused,
            format!("CertificateRequest {name} to {}: {why}", self.issuer),
        )
    }

    fn unreadable(&self, name: &str, what: &str) -> UpstreamError {
        UpstreamError::new(
            Reason::Unusable,
            format!(
                "the status of CertificateRequest {name} to {} cannot be read: {what}; is the \
                 CustomResourceDefinition certificaterequests.cert-manager.io the one of the \
                 cert-manager that runs, and the issuer's controller made for it?",
                self.issuer
            ),
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

/// A request that was made. cert-manager keeps them for ever, so that it is
/// deleted when this is dropped, whatever came of it and whoever gave up.
struct Request {
    requests: Api<DynamicObject>,
    name: String,
}

impl Drop for Request {
    fn drop(&mut self) {
        let (requests, name) = (self.requests.clone(), std::mem::take(&mut self.name));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { delete(&requests, &name).await });
        }
    }
}

async fn delete(requests: &Api<DynamicObject>, name: &str) {
    let parameters = DeleteParams::default();
    let deleted = requests.delete(name, &parameters);
    let problem = match tokio::time::timeout(ANSWERED_WITHIN, deleted).await {
        Ok(Ok(_)) => return,
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the API server did not answer".to_owned(),
    };
    tracing::warn!(
        problem,
        request = name,
        "a CertificateRequest that is done with was not deleted; it is swept up later"
    );
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
    ) -> Result<Signed<SvidChain>, UpstreamError> {
        if csr.csr().uris().is_empty() {
            return Err(UpstreamError::new(
                Reason::Unusable,
                "cert-manager takes the identity from the workload's request, and this workload \
                 named none in it",
            ));
        }
        let pem = csr.csr().to_pem();
        let order = Order::leaf(&pem, lifetime_to_ask(lifetime));
        let answer = self.sign(order).await?;
        let now = self.clock.now();
        answer.into_leaf(csr, &self.trust_domain, Span { now, lifetime })
    }

    async fn sign_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<SignedServing, UpstreamError> {
        let unusable =
            |error: &dyn std::fmt::Display| UpstreamError::new(Reason::Unusable, error.to_string());
        let key = PrivateKey::generate().map_err(|error| unusable(&error))?;
        let csr = csr::create_serving(&key, names).map_err(|error| unusable(&error))?;
        let order = Order::serving(&csr, lifetime_to_ask(lifetime));
        let answer = self.sign(order).await?;
        let now = self.clock.now();
        answer.into_serving(names, key, Span { now, lifetime })
    }

    fn origin(&self) -> String {
        format!("cert-manager {}", self.issuer)
    }

    /// Deletes the requests that a CA made and did not live to delete.
    async fn tidy(&self) {
        let ours = ListParams::default().labels(request::OURS);
        let listed = tokio::time::timeout(ANSWERED_WITHIN, self.requests.list_metadata(&ours));
        let Ok(Ok(listed)) = listed.await else {
            return;
        };
        let now = self.clock.now();
        for object in listed {
            let made = object.creation_timestamp();
            let age = made.and_then(|made| now.duration_since(made.0.into()).ok());
            if age.is_some_and(|age| age > LEFT_BEHIND) {
                delete(&self.requests, &object.name_any()).await;
            }
        }
    }

    /// cert-manager does not tell.
    async fn changed(&self) {
        std::future::pending().await
    }
}
