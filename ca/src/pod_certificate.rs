//! Kubernetes' own way to certificates: a signer for PodCertificateRequests, so
//! that kubelet makes the key, mounts the SVID and renews it, for pods that have
//! no sidecar.
//!
//! ```text
//!  kubelet ─ PodCertificateRequest ─▶ API server: the key is the node's, the pod runs there
//!                                          │ watch (the replica with the Lease)
//!        decision: pod and ServiceAccount as named? ─▶ vet ─▶ issuer ─▶ check
//!                                          │
//!  kubelet ◀─ status: chain, times, Issued, or Denied or Failed and why
//! ```
//!
//! - [`request`]: the object, as far as it matters here.
//! - [`decision`]: what becomes of a request.
//! - [`record`]: its audit record.
//!
//! A request is answered once: the status is written with the resource version
//! that was read, and the API server lets nobody change it afterwards.

mod decision;
mod record;
mod request;

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead_core::identity::TrustDomain;
use bulkhead_crds::lease::Held;
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ApiResource, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};

use self::decision::{Decision, Refusal, Rules, decide};
use self::request::{PodCertificateRequest, is_answered, time};
use crate::config::Lifetimes;
use crate::issuer::{IssueError, Issuer};
use crate::metrics::Metrics;
use crate::trust_bundle::cluster::{SIGNER, find};

const KIND: &str = "PodCertificateRequest";
/// The versions that we know, the best first.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
/// How often it is asked whether the API server has the kind.
const LOOK: Duration = Duration::from_secs(60);
/// Requests that are tried to be answered at once; the rest wait.
const AT_ONCE: usize = 16;
/// How long one try may take.
const DEADLINE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Answers requests, as one task. Cheap to clone.
#[derive(Clone)]
pub struct Signer {
    pub client: Client,
    pub trust_domain: TrustDomain,
    pub lifetimes: Lifetimes,
    pub issuer: Arc<dyn Issuer>,
    pub held: Held,
    pub clock: Clock,
    pub metrics: Metrics,
}

/// Why there is no answer yet.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the API server: {0}")]
    Kubernetes(#[from] kube::Error),
    #[error(transparent)]
    Issuer(#[from] IssueError),
    #[error("there was no answer in time")]
    Late,
}

impl Signer {
    /// Answers until the drain starts, while this replica holds the Lease.
    pub async fn run(mut self, mut drain: drain::Watch) {
        tokio::select! {
            () = self.answer() => {}
            () = drain.started() => {}
        }
    }

    async fn answer(&mut self) {
        let resource = self.served().await;
        loop {
            while !self.held.is_held() {
                self.held.changed().await;
            }
            let mut held = self.held.clone();
            tokio::select! {
                () = self.follow(&resource) => {}
                () = async { while held.is_held() { held.changed().await } } => {}
            }
        }
    }

    /// Waits until the API server has the kind.
    async fn served(&self) -> ApiResource {
        let mut is_said = false;
        loop {
            match timeout(DEADLINE, find(&self.client, KIND, &VERSIONS)).await {
                Ok(Ok(Some(resource))) => return resource,
                Ok(Ok(None)) if is_said => {}
                Ok(Ok(None)) => {
                    is_said = true;
                    tracing::warn!(
                        "pod certificates are switched on, and this API server does not have \
                         them; they need Kubernetes 1.36 with the feature gate \
                         PodCertificateRequest"
                    );
                }
                Ok(Err(error)) => tracing::warn!(%error, "asking for the kind {KIND} failed"),
                Err(_) => tracing::warn!(
                    "the API server did not say in time whether it has the kind {KIND}"
                ),
            }
            sleep(LOOK).await;
        }
    }

    /// Answers what there is and what comes.
    async fn follow(&self, resource: &ApiResource) {
        let all = Api::<PodCertificateRequest>::all_with(self.client.clone(), resource);
        let ours = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
        let mut events = pin!(watcher(all, ours).default_backoff());
        let mut waiting: BTreeMap<(String, String), PodCertificateRequest> = BTreeMap::new();
        let mut in_hand: HashMap<(String, String), Arc<Notify>> = HashMap::new();
        let turns = Semaphore::new(AT_ONCE);
        let mut answers = FuturesUnordered::new();
        loop {
            while let Some(key) = waiting
                .keys()
                .find(|key| !in_hand.contains_key(*key))
                .cloned()
                && let Some(request) = waiting.remove(&key)
            {
                let is_over = Arc::new(Notify::new());
                in_hand.insert(key.clone(), Arc::clone(&is_over));
                let turns = &turns;
                answers.push(async move {
                    self.settle(resource, request, turns, &is_over).await;
                    key
                });
            }
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Apply(request) | Event::InitApply(request))) => {
                        let key = key_of(&request);
                        // One in hand is overtaken by whoever changed it, and is answered
                        // as it is now.
                        if let Some(is_over) = in_hand.get(&key) {
                            is_over.notify_one();
                        }
                        if is_answered(&request) {
                            waiting.remove(&key);
                        } else {
                            waiting.insert(key, request);
                        }
                    }
                    Some(Ok(Event::Delete(request))) => {
                        let key = key_of(&request);
                        if let Some(is_over) = in_hand.get(&key) {
                            is_over.notify_one();
                        }
                        waiting.remove(&key);
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::warn!(
                        %error,
                        "the watch of PodCertificateRequests was interrupted and will be \
                         resumed; check that the ServiceAccount may list and watch them"
                    ),
                    None => return,
                },
                Some(key) = answers.next() => {
                    in_hand.remove(&key);
                }
            }
        }
    }

    /// Answers one request, however often that must be tried, unless it is over first:
    /// somebody else answered it, or it is not there any more. Between two tries it
    /// takes nobody's turn.
    async fn settle(
        &self,
        resource: &ApiResource,
        request: PodCertificateRequest,
        turns: &Semaphore,
        is_over: &Notify,
    ) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut pause = Duration::ZERO;
        loop {
            let begin = async {
                sleep(pause).await;
                turns.acquire().await
            };
            let turn = tokio::select! {
                turn = begin => turn,
                () = is_over.notified() => return,
            };
            // What has begun is brought to its end, so that it is on record.
            let tried = timeout(DEADLINE, self.handle(resource, &request)).await;
            drop(turn);
            let trouble = match tried {
                Ok(Ok(())) => return,
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::Late,
            };
            self.metrics.refused("pod_certificate_delayed");
            tracing::warn!(
                error = %trouble,
                request = request.name_any(),
                namespace = request.namespace(),
                "answering a PodCertificateRequest failed and will be tried again; its pod waits"
            );
            pause = backoff.after_failure(jitter());
        }
    }

    async fn handle(
        &self,
        resource: &ApiResource,
        request: &PodCertificateRequest,
    ) -> Result<(), Trouble> {
        let rules = Rules {
            trust_domain: &self.trust_domain,
            lifetimes: &self.lifetimes,
        };
        let decision = decide(&self.client, request, rules, self.issuer.as_ref()).await?;
        let status = match &decision {
            Decision::Issued { issued, .. } => {
                let answer = issued.to_answer();
                let (begins, ends) = (issued.svid.not_before(), issued.svid.not_after());
                json!({
                    "certificateChain": answer.chain.concat(),
                    "notBefore": time(begins),
                    "beginRefreshAt": time(refresh_at(begins, ends)),
                    "notAfter": time(ends),
                    "conditions": [self.condition("Issued", "Issued", "the SVID was issued")],
                })
            }
            Decision::Refused { refusal, .. } => {
                let Refusal {
                    outcome,
                    reason,
                    message,
                } = refusal;
                json!({ "conditions": [self.condition(outcome.as_str(), reason, message)] })
            }
        };
        // What was signed is on record, whether or not it is known to have arrived.
        if matches!(decision, Decision::Issued { .. }) {
            record::write(request, &decision, &self.metrics);
        }
        let namespace = request.namespace().unwrap_or_default();
        let api: Api<PodCertificateRequest> =
            Api::namespaced_with(self.client.clone(), &namespace, resource);
        let patch = json!({
            "metadata": { "resourceVersion": request.resource_version() },
            "status": status,
        });
        let (name, parameters) = (request.name_any(), PatchParams::default());
        let written = api
            .patch_status(&name, &parameters, &Patch::Merge(patch))
            .await;
        match written {
            Ok(_) => {
                if matches!(decision, Decision::Refused { .. }) {
                    record::write(request, &decision, &self.metrics);
                }
                Ok(())
            }
            // It is gone, somebody has answered it, or has changed it: then the watch
            // tells of it.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn condition(&self, type_: &str, reason: &str, message: &str) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: time(self.clock.now()),
            observed_generation: None,
        }
    }
}

/// Its namespace and name.
fn key_of(request: &PodCertificateRequest) -> (String, String) {
    (request.namespace().unwrap_or_default(), request.name_any())
}

/// When kubelet is to ask for the next: at a random point between 50 % and 80 %
/// of the lifetime, so that pods that started together do not all come at once.
fn refresh_at(begins: SystemTime, ends: SystemTime) -> SystemTime {
    let lifetime = ends.duration_since(begins).unwrap_or_default();
    begins + lifetime.mul_f64(0.5 + 0.3 * jitter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_asks_again_when_the_api_server_lets_it() {
        let (begins, hour) = (SystemTime::UNIX_EPOCH, Duration::from_secs(3600));
        for _ in 0..1000 {
            let at = refresh_at(begins, begins + hour);
            let at = at.duration_since(begins).unwrap();
            assert!(at >= hour / 2 && at <= hour.mul_f64(0.8), "{at:?}");
        }
    }
}
