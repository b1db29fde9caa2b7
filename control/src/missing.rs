//! Pods that should have a sidecar and have none: created while the webhook was
//! away, or before their namespace was labelled.
//!
//! They are counted by every replica. The one that holds the lease says so on
//! the pods, and evicts them where that was chosen.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bulkhead_crds::lease::Held;
use bulkhead_runtime::drain;
use k8s_openapi::api::core::v1::{ObjectReference, Pod as KubePod};
use kube::api::EvictParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use tokio::time::{Instant, timeout};

use crate::hub::Hub;
use crate::metrics::{Metrics, NamespaceLabel, OutcomeLabel};
use crate::object::{Key, Name};

/// How often missing sidecars are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// How long a pod is watched before anything is done about it: its namespace,
/// or the pod itself, may be about to change.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events in one look. The rest of a storm is said in the next ones.
const MAX_EVENTS: usize = 20;
/// One eviction in this time. What restarts must have time to serve again.
const EVICT_EVERY: Duration = Duration::from_secs(10);
/// How long evictions rest where they were of no use.
const REST: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(5);
const REPORTER: &str = "bulkhead.io/control";

/// Looks for pods that miss their sidecar.
pub(crate) struct Missing {
    pub(crate) hub: Hub,
    pub(crate) metrics: Metrics,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) known: HashMap<Name, Known>,
    pub(crate) pace: Pace,
}

/// What is needed to do something about it.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) held: Held,
    pub(crate) restart: bool,
    pub(crate) no_injection: Arc<AtomicBool>,
}

impl Cluster {
    pub(crate) fn new(
        client: Client,
        instance: &str,
        held: Held,
        restart: bool,
        no_injection: Arc<AtomicBool>,
    ) -> Self {
        let reporter = Reporter {
            controller: REPORTER.to_owned(),
            instance: Some(instance.to_owned()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            held,
            restart,
            no_injection,
        }
    }
}

/// A pod that misses its sidecar, by its UID.
pub(crate) struct Known {
    since: Instant,
    is_said: bool,
}

/// A pod that misses its sidecar, as it was found.
#[derive(Clone, Debug)]
struct Found {
    key: Key,
    uid: Name,
    /// Somebody makes another one when it goes.
    has_controller: bool,
    workload: (Name, Name),
}

impl Missing {
    pub(crate) fn new(hub: Hub, metrics: Metrics, cluster: Option<Cluster>) -> Self {
        Self {
            hub,
            metrics,
            cluster,
            known: HashMap::new(),
            pace: Pace::default(),
        }
    }

    /// Looks until the drain starts.
    pub(crate) async fn run(mut self, mut drain: drain::Watch) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = drain.started() => return,
            }
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let found = self.found();
        self.count(&found);
        let now = Instant::now();
        self.known
            .retain(|uid, _| found.iter().any(|pod| pod.uid == *uid));
        for pod in &found {
            let known = self.known.entry(pod.uid.clone()).or_insert_with(|| Known {
                since: now,
                is_said: false,
            });
            self.pace.seen(&pod.workload, known.since);
        }
        let Some(cluster) = self
            .cluster
            .as_ref()
            .filter(|cluster| cluster.held.is_held())
        else {
            return;
        };
        let mut said = 0;
        let mut evicted = None;
        for pod in &found {
            let Some(known) = self.known.get_mut(&pod.uid) else {
                continue;
            };
            if now.duration_since(known.since) < PATIENCE {
                continue;
            }
            if !known.is_said && said < MAX_EVENTS {
                cluster.say(pod).await;
                known.is_said = true;
                said += 1;
            }
            let may_restart = cluster.restart
                && pod.has_controller
                && !cluster.no_injection.load(Ordering::Relaxed)
                && evicted.is_none()
                && self.pace.allows(now);
            if may_restart && cluster.evict(pod, &self.metrics).await {
                evicted = Some(pod.workload.clone());
            }
        }
        if let Some(workload) = evicted {
            self.pace.evicted(workload, now);
        }
    }

    fn found(&self) -> Vec<Found> {
        self.hub.read(|index| {
            let missing = index.missing_sidecars().map(|(key, pod)| Found {
                key: key.clone(),
                uid: pod.uid.clone(),
                has_controller: pod.has_controller,
                workload: (key.namespace.clone(), pod.workload.clone()),
            });
            missing.collect()
        })
    }

    fn count(&self, found: &[Found]) {
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        for pod in found {
            *counts.entry(&pod.key.namespace).or_default() += 1;
        }
        self.metrics.missing.clear();
        for (namespace, count) in counts {
            let namespace = namespace.to_owned();
            let labels = NamespaceLabel { namespace };
            self.metrics.missing.get_or_create(&labels).set(count);
        }
    }
}

impl Cluster {
    async fn say(&self, pod: &Found) {
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.key.namespace.to_string()),
            name: Some(pod.key.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: "SidecarMissing".to_owned(),
            note: Some(NOTE.to_owned()),
            action: "Checking".to_owned(),
            secondary: None,
        };
        let problem = match timeout(DEADLINE, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {DEADLINE:?}"),
        };
        tracing::warn!(
            error = problem,
            pod = %pod.key,
            "writing an Event failed; check that the ServiceAccount may create and patch \
             events.events.k8s.io"
        );
    }

    /// Evicts a pod; says whether that was done. A disruption budget may be
    /// against it for now.
    async fn evict(&self, pod: &Found, metrics: &Metrics) -> bool {
        let api = Api::<KubePod>::namespaced(self.client.clone(), &pod.key.namespace);
        let parameters = EvictParams::default();
        let outcome = match timeout(DEADLINE, api.evict(&pod.key.name, &parameters)).await {
            Ok(Ok(_)) => {
                tracing::info!(pod = %pod.key, "a pod that misses its sidecar was evicted, so that its successor gets one");
                "evicted"
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => "gone",
            Ok(Err(kube::Error::Api(status))) if status.code == 429 => "disruption_budget",
            Ok(Err(error)) => {
                tracing::warn!(%error, pod = %pod.key, "evicting a pod that misses its sidecar failed");
                "failed"
            }
            Err(_) => "failed",
        };
        metrics
            .evictions
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
        outcome == "evicted"
    }
}

const NOTE: &str = "The pod should have Bulkhead's sidecar and has none: it was created while \
                    injection did not work, or before its namespace asked for it. Restart it to \
                    bring it into the mesh.";

/// How fast pods are evicted, and when to stop: where the successor of an evicted
/// pod misses its sidecar as well, injection does not work, and to go on would
/// restart everything for nothing.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<Instant>,
    rests_until: Option<Instant>,
    /// When a pod of this workload was evicted first.
    evicted: BTreeMap<(Name, Name), Instant>,
}

impl Pace {
    fn allows(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now >= last + EVICT_EVERY)
            && self.rests_until.is_none_or(|until| now >= until)
    }

    fn evicted(&mut self, workload: (Name, Name), now: Instant) {
        self.last = Some(now);
        self.evicted.entry(workload).or_insert(now);
    }

    /// A pod of this workload misses its sidecar, since then.
    fn seen(&mut self, workload: &(Name, Name), since: Instant) {
        if self
            .evicted
            .get(workload)
            .is_some_and(|first| since > *first)
        {
            self.evicted.clear();
            self.rests_until = Some(since + REST);
            tracing::error!(
                namespace = &*workload.0,
                workload = &*workload.1,
                "the successor of an evicted pod misses its sidecar as well: injection does not \
                 work, and no pod is evicted for ten minutes; run `bulkhead check`"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> (Name, Name) {
        ("shop".into(), "cart".into())
    }

    #[tokio::test]
    async fn pods_are_evicted_one_at_a_time_with_time_between() {
        let mut pace = Pace::default();
        let start = Instant::now();
        pace.seen(&workload(), start);
        assert!(pace.allows(start));
        pace.evicted(workload(), start);
        assert!(!pace.allows(start + EVICT_EVERY / 2));
        assert!(pace.allows(start + EVICT_EVERY));
    }

    #[tokio::test]
    async fn where_successors_miss_their_sidecar_too_evictions_stop() {
        let mut pace = Pace::default();
        let start = Instant::now();
        pace.evicted(workload(), start);
        // One that was there before.
        pace.seen(&workload(), start - Duration::from_secs(1));
        assert!(pace.allows(start + EVICT_EVERY));
        let later = start + Duration::from_secs(3);
        pace.seen(&workload(), later);
        assert!(!pace.allows(start + EVICT_EVERY));
        assert!(!pace.allows(later + REST / 2));
        assert!(pace.allows(later + REST));
    }
}
