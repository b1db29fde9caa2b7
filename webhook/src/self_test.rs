//! Whether the API server gets sidecars from us: a pod is created through it,
//! as a dry run, and looked at.
//!
//! ```text
//!  self-test ─create Pod, dryRun=All─▶ kube-apiserver ─self-test.inject…─▶ any replica, ready or not
//!      ▲                                     │
//!      └────────── the pod as it would be ◀──┘
//! ```
//!
//! A replica becomes ready when this has worked once: it shows that the API
//! server reaches the port, trusts the certificate and applies the patch, which
//! a replica alone cannot know. So the test must not need a replica that is
//! ready. It has a webhook of its own in the registration, for pods with the
//! label [`LABEL`] in Bulkhead's own namespace, by way of a Service that leads to
//! replicas that are not ready too.
//!
//! Once ready, a failing test is a metric and a log line, and takes no replica
//! out of its Service: the answer came from any of them, and a mesh whose
//! replicas have all left their Service is worse off than one of which some
//! answer. A refusal that says nothing about us (a quota, a policy, a missing
//! permission) counts as no answer, and holds nobody up.

use std::collections::BTreeMap;
use std::fmt;

use bulkhead_inject::{INIT_CONTAINER, PROXY_CONTAINER};
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Duration, sleep, timeout};

use crate::metrics::Metrics;
use crate::registration::SELF_TEST;
use crate::registration::keeper::Registered;
use crate::stops::Stops;

/// The label of the pod of the test.
pub const LABEL: &str = "bulkhead.io/self-test";

/// Between tests that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between tests that did not.
const PERIOD: Duration = Duration::from_secs(60);
/// How long the API server may take, our own timeout included.
const DEADLINE: Duration = Duration::from_secs(15);

/// Tests, as one task.
pub(crate) struct SelfTest {
    pub(crate) pods: Api<Pod>,
    pub(crate) system_namespace: String,
    pub(crate) stops: watch::Receiver<Option<Stops>>,
    pub(crate) condition: Condition,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

/// What one test showed.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Outcome {
    /// The pod would have its sidecar.
    Injected,
    /// It would not, because somebody has switched injection off.
    Stopped,
    /// Nothing about us.
    Unknown(String),
    Failed(String),
}

impl SelfTest {
    pub(crate) fn new(
        client: Client,
        system_namespace: &str,
        stops: watch::Receiver<Option<Stops>>,
        condition: Condition,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        Self {
            pods: Api::namespaced(client, system_namespace),
            system_namespace: system_namespace.to_owned(),
            stops,
            condition,
            clock,
            metrics,
        }
    }

    /// Tests until the drain starts; first when there is a registration,
    /// because before that there is nothing to test.
    pub(crate) async fn run(
        self,
        mut registered: watch::Receiver<Registered>,
        mut drain: drain::Watch,
    ) {
        let testing = async {
            if registered.wait_for(|all| !all.is_empty()).await.is_ok() {
                self.test_again_and_again().await;
            }
        };
        tokio::select! {
            () = testing => {}
            () = drain.started() => {}
        }
    }

    async fn test_again_and_again(&self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut last = None;
        let mut times = 0;
        loop {
            let outcome = self.test().await;
            times = if last.as_ref() == Some(&outcome) {
                times + 1
            } else {
                1
            };
            self.note(&outcome);
            if times == outcome.times_before_it_is_said() {
                outcome.say();
            }
            let pause = match outcome {
                Outcome::Failed(_) => backoff.after_failure(jitter()),
                Outcome::Injected | Outcome::Stopped | Outcome::Unknown(_) => {
                    backoff.reset();
                    PERIOD.mul_f64(0.5 + 0.5 * jitter())
                }
            };
            last = Some(outcome);
            sleep(pause).await;
        }
    }

    async fn test(&self) -> Outcome {
        let pod = pod();
        let parameters = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match timeout(DEADLINE, self.pods.create(&parameters, &pod)).await {
            Ok(Ok(created)) if is_injected(&created) => Outcome::Injected,
            Ok(Ok(created)) if self.is_stopped(&created) => Outcome::Stopped,
            Ok(Ok(_)) => Outcome::Failed(
                "the pod would be stored without a sidecar: the API server does not know our \
                 registration yet, or something took it out"
                    .to_owned(),
            ),
            Ok(Err(error)) => judged(&error),
            Err(_) => Outcome::Unknown(format!("the API server took longer than {DEADLINE:?}")),
        }
    }

    fn is_stopped(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let own = &self.system_namespace;
        let now = self.clock.now();
        let stops = self.stops.borrow();
        stops
            .as_ref()
            .is_some_and(|stops| stops.cover(own, own, &labels, now))
    }

    fn note(&self, outcome: &Outcome) {
        let is_failing = matches!(outcome, Outcome::Failed(_));
        self.metrics.self_test_failing.set(i64::from(is_failing));
        // The condition, once it holds, holds; see above.
        if !is_failing {
            self.condition.set(true);
        }
    }
}

impl Outcome {
    /// The API server hears of a registration by a watch of its own, so that
    /// the first failures are nothing to worry about.
    fn times_before_it_is_said(&self) -> u32 {
        match self {
            Self::Failed(_) => 3,
            Self::Injected | Self::Stopped | Self::Unknown(_) => 1,
        }
    }

    fn say(&self) {
        match self {
            Self::Injected => tracing::info!("the self-test works: {self}"),
            Self::Stopped => tracing::warn!("the self-test was not injected: {self}"),
            Self::Unknown(_) => tracing::warn!("the self-test says nothing: {self}"),
            Self::Failed(_) => tracing::error!("the self-test fails: {self}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Injected => f.write_str("the API server gets sidecars from this webhook"),
            Self::Stopped => f.write_str("injection is switched off (kubectl get injectionstops)"),
            Self::Unknown(why) => write!(
                f,
                "the API server refused the pod of the test for a reason of its own: {why}"
            ),
            Self::Failed(why) => write!(
                f,
                "{why}; pods that ask for a sidecar are refused meanwhile. Check that the API \
                 server reaches the webhook's port (firewalls, NetworkPolicies)"
            ),
        }
    }
}

/// What a refusal says about us.
fn judged(error: &kube::Error) -> Outcome {
    let text = error.to_string();
    // A policy or a quota that refused the pod for what is in our containers
    // has seen them.
    if [INIT_CONTAINER, PROXY_CONTAINER]
        .iter()
        .any(|name| text.contains(name))
    {
        return Outcome::Injected;
    }
    if text.contains(&format!("{SELF_TEST}.inject.bulkhead.io")) {
        return Outcome::Failed(text);
    }
    Outcome::Unknown(text)
}

fn is_injected(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
    });
    containers
        .into_iter()
        .flatten()
        .any(|container| container.name == PROXY_CONTAINER)
}

/// A pod that asks for a sidecar and that no policy should mind.
fn pod() -> Pod {
    let labels = [(LABEL, "injection"), ("bulkhead.io/inject", "enabled")];
    Pod {
        metadata: ObjectMeta {
            name: Some("bulkhead-self-test".to_owned()),
            labels: Some(
                labels
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            containers: vec![Container {
                name: "never-runs".to_owned(),
                image: Some("self-test.bulkhead.io/none".to_owned()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_runtime::monitoring::Monitoring;
    use kube::core::Status;

    fn refusal(message: &str) -> kube::Error {
        kube::Error::Api(Box::new(
            Status::failure(message, "Forbidden").with_code(403),
        ))
    }

    #[test]
    fn a_refusal_says_something_of_us_or_nothing() {
        let failed = "Internal error occurred: failed calling webhook \
                      \"self-test.inject.bulkhead.io\": connection refused";
        assert!(matches!(judged(&refusal(failed)), Outcome::Failed(_)));
        // Pod Security, which minds our init container, has seen it.
        let seen = "violates PodSecurity \"restricted:latest\": unrestricted capabilities \
                    (container \"bulkhead-init\" must not include \"NET_ADMIN\")";
        assert_eq!(judged(&refusal(seen)), Outcome::Injected);
        for other in [
            "exceeded quota: pods",
            "failed calling webhook \"policy.example\": timeout",
            "pods is forbidden: User cannot create resource",
        ] {
            assert!(
                matches!(judged(&refusal(other)), Outcome::Unknown(_)),
                "{other}"
            );
        }
    }

    #[tokio::test]
    async fn a_replica_that_was_ready_stays_so_when_the_way_to_it_breaks() {
        let monitoring = Monitoring::default();
        let (_known, stops) = watch::channel(None);
        let service = tower::service_fn(|_: axum::http::Request<kube::client::Body>| async {
            Err::<axum::http::Response<kube::client::Body>, _>(std::io::Error::other("unused"))
        });
        let test = SelfTest::new(
            Client::new(service, "default"),
            "bulkhead-system",
            stops,
            monitoring.readiness.condition("self_test"),
            Clock::system(),
            Metrics::register(&monitoring),
        );
        let broken = Outcome::Failed("connection refused".to_owned());
        test.note(&broken);
        assert_eq!(monitoring.readiness.missing(), ["self_test"]);
        test.note(&Outcome::Injected);
        test.note(&broken);
        assert!(monitoring.readiness.missing().is_empty());
        let metrics = monitoring.metrics();
        assert!(
            metrics.contains("bulkhead_webhook_self_test_failing 1"),
            "{metrics}"
        );
    }
}
