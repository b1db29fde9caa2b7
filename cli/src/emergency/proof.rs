//! Whether a switch does what it is for: a pod that asks for a sidecar is
//! created as a dry run, through everything that a real one goes through.

use std::time::Duration;

use bulkhead_inject::PROXY_CONTAINER;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use tokio::time::{Instant, interval, timeout};

use super::scope::Scope;
use crate::cluster::Cluster;

/// How long the switch may take to be seen by every part of the API server.
const WITHIN: Duration = Duration::from_secs(10);
/// One try. A webhook that swallows packets takes longer, and then the switch is
/// not seen yet.
const TRY: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(25);

/// What came of it.
#[derive(Debug)]
pub(crate) enum Proof {
    /// The pod was accepted without a sidecar, this long after the first try.
    Shown(Duration),
    /// It cannot be shown, for this reason.
    Unknown(String),
    /// It was not so, for as long as we waited; this is what happened last.
    Not(String),
}

/// Creates pods as a dry run until one has no sidecar. `by_policy` says that the
/// API server itself marks such pods.
pub(crate) async fn prove(cluster: &Cluster, scope: &Scope, by_policy: bool) -> Proof {
    let namespace = scope.namespace().unwrap_or("default");
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = eager_pod(scope);
    let began = Instant::now();
    let mut tries = interval(PAUSE);
    loop {
        tries.tick().await;
        let last = match timeout(TRY, pods.create(&dry_run, &pod)).await {
            Ok(Ok(pod)) if is_left_alone(&pod, by_policy) => return Proof::Shown(began.elapsed()),
            Ok(Ok(_)) => "such a pod still gets a sidecar".to_owned(),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 404 | 422) => {
                return Proof::Unknown(status.message.clone());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server did not answer in time".to_owned(),
        };
        if began.elapsed() > WITHIN {
            return Proof::Not(last);
        }
    }
}

fn is_left_alone(pod: &Pod, by_policy: bool) -> bool {
    let has_sidecar = pod.spec.as_ref().is_some_and(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
            .any(|container| container.name == PROXY_CONTAINER)
    });
    let annotations = pod.metadata.annotations.as_ref();
    let is_marked = annotations
        .is_some_and(|annotations| annotations.contains_key("bulkhead.io/injection-stopped"));
    !has_sidecar && (is_marked || !by_policy)
}

/// A pod that asks for a sidecar, and that every namespace accepts.
fn eager_pod(scope: &Scope) -> Pod {
    let mut labels = scope
        .selector()
        .map(|selector| selector.match_labels.clone())
        .unwrap_or_default();
    labels.insert("bulkhead.io/inject".to_owned(), "enabled".to_owned());
    let pod = json!({
        "metadata": {"generateName": "bulkhead-dry-run-", "labels": labels},
        "spec": {
            "securityContext": {
                "runAsNonRoot": true,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "never-runs",
                "image": "registry.k8s.io/pause:3.10",
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"},
                    "limits": {"cpu": "1m", "memory": "1Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    });
    serde_json::from_value(pod).expect("this is a pod")
}
