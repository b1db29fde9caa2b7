//! Level 3: workloads are restarted as `kubectl rollout restart` does it, some
//! at a time, each watched until it is healthy again. Its own rollout strategy
//! keeps it serving meanwhile. The first that does not become healthy stops the
//! others from being begun.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use bulkhead_core::bypass::rfc3339;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use super::scope::WorkloadKind;
use super::workloads::Workload;
use crate::cluster::Cluster;
use crate::error;

const POLL: Duration = Duration::from_millis(500);

/// How a restart goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Workloads that are restarted at the same time.
    pub(crate) parallel: usize,
    /// How long one may take to become healthy.
    pub(crate) patience: Duration,
}

/// What has been done.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) restarted: u32,
    /// The first that did not become healthy, and why.
    pub(crate) stopped_at: Option<(Workload, String)>,
}

/// Restarts the workloads in their order, and tells `progress` of each that is
/// done.
pub(crate) async fn restart_all(
    cluster: &Cluster,
    workloads: Vec<Workload>,
    pace: Pace,
    now: SystemTime,
    out: &mut impl Write,
    mut progress: impl AsyncFnMut(&Outcome),
) -> anyhow::Result<Outcome> {
    let of = workloads.len();
    let restarts = workloads.into_iter().map(|workload| async move {
        let result = restart(cluster, &workload, pace.patience, now).await;
        (workload, result)
    });
    let mut restarts =
        std::pin::pin!(futures::stream::iter(restarts).buffer_unordered(pace.parallel));
    let mut outcome = Outcome::default();
    while let Some((workload, result)) = restarts.next().await {
        match result {
            Ok(took) => {
                outcome.restarted += 1;
                let done = outcome.restarted;
                let took = took.as_secs();
                writeln!(
                    out,
                    "restart  {done} of {of}: {workload} is healthy after {took} s"
                )?;
            }
            Err(error) => {
                outcome.stopped_at = Some((workload, error::describe(&error)));
                progress(&outcome).await;
                return Ok(outcome);
            }
        }
        out.flush()?;
        progress(&outcome).await;
    }
    Ok(outcome)
}

/// Restarts one, and returns how long it took to become healthy.
async fn restart(
    cluster: &Cluster,
    workload: &Workload,
    patience: Duration,
    now: SystemTime,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let restarted_at = rfc3339(now).unwrap_or_default();
    let annotation = json!({"kubectl.kubernetes.io/restartedAt": restarted_at});
    let patch = json!({"spec": {"template": {"metadata": {"annotations": annotation}}}});
    match workload.kind {
        WorkloadKind::Deployment => {
            rollout::<Deployment>(cluster, workload, &patch, patience, deployment).await?;
        }
        WorkloadKind::StatefulSet => {
            rollout::<StatefulSet>(cluster, workload, &patch, patience, stateful_set).await?;
        }
        WorkloadKind::DaemonSet => {
            rollout::<DaemonSet>(cluster, workload, &patch, patience, daemon_set).await?;
        }
    }
    Ok(began.elapsed())
}

/// How a rollout stands.
#[derive(Debug, Eq, PartialEq)]
enum Standing {
    Done,
    /// In words that follow "after 10 min".
    Waiting(String),
    /// It will not get done by waiting.
    Failed(String),
}

async fn rollout<K>(
    cluster: &Cluster,
    workload: &Workload,
    patch: &Value,
    patience: Duration,
    standing: fn(&K) -> Standing,
) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(cluster.client.clone(), &workload.namespace);
    let mut latest = api
        .patch(
            &workload.name,
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
        .context("restarting it failed")?;
    let began = Instant::now();
    let mut polls = interval(POLL);
    loop {
        match standing(&latest) {
            Standing::Done => return Ok(()),
            Standing::Failed(why) => bail!("{why}"),
            Standing::Waiting(why) if began.elapsed() > patience => {
                bail!("after {} s {why}", patience.as_secs())
            }
            Standing::Waiting(_) => {}
        }
        polls.tick().await;
        latest = api
            .get(&workload.name)
            .await
            .context("asking how it is failed")?;
    }
}

fn deployment(found: &Deployment) -> Standing {
    let wanted = found
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let status = found.status.clone().unwrap_or_default();
    if is_stale(found.metadata.generation, status.observed_generation) {
        return Standing::Waiting("its controller has not seen the restart".to_owned());
    }
    let conditions = status.conditions.unwrap_or_default();
    let has_failed = |reason: Option<&str>| reason == Some("ProgressDeadlineExceeded");
    if let Some(condition) = conditions
        .iter()
        .find(|condition| has_failed(condition.reason.as_deref()))
    {
        let message = condition.message.clone().unwrap_or_default();
        return Standing::Failed(format!("its rollout made no progress: {message}"));
    }
    let updated = status.updated_replicas.unwrap_or(0);
    let available = status.available_replicas.unwrap_or(0);
    let all = status.replicas.unwrap_or(0);
    counted(updated, available, wanted, all > updated)
}

fn stateful_set(found: &StatefulSet) -> Standing {
    let spec = found.spec.clone().unwrap_or_default();
    let strategy = spec.update_strategy.unwrap_or_default();
    if strategy.type_.as_deref() == Some("OnDelete") {
        return Standing::Failed(
            "its pods are replaced only when somebody deletes them".to_owned(),
        );
    }
    let wanted = spec.replicas.unwrap_or(1);
    let rolling = strategy.rolling_update.unwrap_or_default();
    let updatable = wanted - rolling.partition.unwrap_or(0).min(wanted);
    let status = found.status.clone().unwrap_or_default();
    if is_stale(found.metadata.generation, status.observed_generation) {
        return Standing::Waiting("its controller has not seen the restart".to_owned());
    }
    let updated = status.updated_replicas.unwrap_or(0).min(updatable);
    let ready = status.ready_replicas.unwrap_or(0);
    if updated == updatable && ready >= wanted {
        return Standing::Done;
    }
    Standing::Waiting(format!(
        "{updated} of {updatable} pods are new and {ready} ready"
    ))
}

fn daemon_set(found: &DaemonSet) -> Standing {
    let strategy = found.spec.clone().and_then(|spec| spec.update_strategy);
    if strategy.and_then(|strategy| strategy.type_).as_deref() == Some("OnDelete") {
        return Standing::Failed(
            "its pods are replaced only when somebody deletes them".to_owned(),
        );
    }
    let status = found.status.clone().unwrap_or_default();
    if is_stale(found.metadata.generation, status.observed_generation) {
        return Standing::Waiting("its controller has not seen the restart".to_owned());
    }
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let available = status.number_available.unwrap_or(0);
    counted(updated, available, status.desired_number_scheduled, false)
}

fn is_stale(generation: Option<i64>, observed: Option<i64>) -> bool {
    observed < generation
}

fn counted(updated: i32, available: i32, wanted: i32, old_ones_remain: bool) -> Standing {
    if updated >= wanted && available >= wanted && !old_ones_remain {
        return Standing::Done;
    }
    let available = available.min(wanted);
    Standing::Waiting(format!(
        "{updated} of {wanted} pods are new and {available} available"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(status: Value) -> Standing {
        let object = json!({
            "metadata": {"generation": 3},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": status,
        });
        deployment(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_deployment_is_healthy_when_all_pods_are_new_and_available_and_none_is_old() {
        let done = json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2,
            "availableReplicas": 2});
        assert_eq!(standing(done.clone()), Standing::Done);
        for (field, value) in [
            ("observedGeneration", 2),
            ("updatedReplicas", 1),
            ("availableReplicas", 1),
            ("replicas", 3),
        ] {
            let mut status = done.clone();
            status[field] = json!(value);
            assert!(
                matches!(standing(status), Standing::Waiting(_)),
                "{field} {value}"
            );
        }
    }

    #[test]
    fn a_rollout_that_its_controller_gave_up_is_not_waited_for() {
        let status = json!({"observedGeneration": 3, "conditions": [{
            "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
            "message": "ReplicaSet cart-1 has timed out",
        }]});
        let Standing::Failed(why) = standing(status) else {
            panic!("it is waited for");
        };
        assert!(why.contains("cart-1 has timed out"), "{why}");
    }

    #[test]
    fn pods_that_only_their_owner_replaces_stop_the_restart() {
        let object = json!({
            "metadata": {"generation": 1},
            "spec": {"selector": {}, "template": {}, "serviceName": "db",
                "updateStrategy": {"type": "OnDelete"}},
        });
        let standing = stateful_set(&serde_json::from_value(object).unwrap());
        assert!(matches!(standing, Standing::Failed(_)), "{standing:?}");
    }
}
