//! From the creation of a pod until it is ready.
//!
//! A kubelet looks once a second which containers have ended, and probes once a
//! second at most. An init container and a sidecar cost a pod those waits whatever
//! they do, so a pod of the same shape is measured too, with an init container
//! that ends at once and a sidecar that is ready at once.

use bulkhead_tests::cluster::apps::{HTTP_PORT, WORKLOAD_IMAGE};
use bulkhead_tests::cluster::{Cluster, is_ready};
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use kube::runtime::wait::{await_condition, conditions};
use serde_json::{Value, json};
use tokio::time::Instant;

const IDLE_PORT: u16 = 15020;

/// Two namespaces to start the same pod in.
pub(super) struct Pods {
    plain: Namespace,
    meshed: Namespace,
}

impl Pods {
    pub(super) async fn new(cluster: &Cluster) -> Self {
        Self {
            plain: cluster.plain_namespace().await,
            meshed: cluster.meshed_namespace().await,
        }
    }

    /// Without a sidecar, in milliseconds.
    pub(super) async fn plain(&self) -> f64 {
        start(&self.plain, json!([]), false).await
    }

    /// With an init container and a sidecar that have nothing to do.
    pub(super) async fn idle(&self) -> f64 {
        start(&self.plain, idle_sidecar(), false).await
    }

    /// With Bulkhead's.
    pub(super) async fn meshed(&self) -> f64 {
        start(&self.meshed, json!([]), true).await
    }
}

fn idle_sidecar() -> Value {
    json!([
        {
            "name": "init",
            "image": WORKLOAD_IMAGE,
            "args": ["wait-file", "/workload"],
        },
        {
            "name": "sidecar",
            "image": WORKLOAD_IMAGE,
            "args": ["serve", "--http", IDLE_PORT.to_string()],
            "restartPolicy": "Always",
            "startupProbe": {"httpGet": {"path": "/health", "port": IDLE_PORT}, "periodSeconds": 1},
        },
    ])
}

/// The application has no probe of its own, whose period would be most of the
/// time.
async fn start(namespace: &Namespace, init_containers: Value, injected: bool) -> f64 {
    let container = json!({
        "name": "app",
        "image": WORKLOAD_IMAGE,
        "args": ["serve", "--http", HTTP_PORT.to_string()],
    });
    let spec = json!({"containers": [container], "initContainers": init_containers});
    let pod = a_pod("start").spec(spec).build();
    let began = Instant::now();
    let pod = namespace.create_pod(&pod).await.expect("the pod is valid");
    assert_eq!(is_injected(&pod), injected);
    let ready = |pod: Option<&Pod>| pod.is_some_and(is_ready);
    let (name, pods) = (pod.name_any(), namespace.api::<Pod>());
    await_condition(pods.clone(), &name, ready)
        .await
        .expect("the pod is watched");
    let took = began.elapsed();
    // Not at once: the node is to have nothing left to do for it.
    pods.delete(&name, &DeleteParams::default())
        .await
        .expect("the administrator may delete pods");
    let uid = pod.uid().expect("a stored pod has a UID");
    await_condition(pods, &name, conditions::is_deleted(&uid))
        .await
        .expect("the pod is watched");
    took.as_secs_f64() * 1e3
}
