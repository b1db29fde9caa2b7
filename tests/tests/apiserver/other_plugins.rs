//! The sidecar beside what else changes pods on their way: defaults, the
//! ServiceAccount and LimitRanger plugins, and a pod that was injected before.

use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::core::v1::{Container, LimitRange, Pod};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::cluster::Cluster;

const ON: &[(&str, &str)] = &[("bulkhead.io/inject", "enabled")];

fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
    let spec = pod.spec.as_ref().expect("a stored pod has a spec");
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers)
        .find(|container| container.name == name)
        .expect("the pod has the container")
}

/// Where a quota asks every container for a limit, a LimitRange is how people
/// answer it. Its plugin runs again after the webhook, and the webhook again
/// after it.
#[tokio::test]
async fn limits_that_the_namespace_gives_every_container_stay_on_the_sidecar() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let range: LimitRange = serde_json::from_value(json!({
        "metadata": {"name": "limits"},
        "spec": {"limits": [{"type": "Container", "default": {"cpu": "700m", "memory": "1Gi"}}]},
    }))
    .unwrap();
    let ranges: Api<LimitRange> = namespace.api();
    ranges.create(&PostParams::default(), &range).await.unwrap();

    let pod = namespace.create_pod(&a_pod("app").build()).await.unwrap();
    for name in ["bulkhead-proxy", "bulkhead-init"] {
        let resources = container(&pod, name).resources.clone().unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        let limit = |name: &str| limits.get(name).map(|quantity| quantity.0.as_str());
        assert_eq!(limit("cpu"), Some("700m"), "{name}");
        assert_eq!(limit("memory"), Some("256Mi"), "{name}: ours stays ours");
    }
}

#[tokio::test]
async fn a_pod_that_is_exported_and_created_again_is_the_same_pod() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let spec = json!({"containers": [{
        "name": "app",
        "image": "registry.example/app:1",
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
        "livenessProbe": {"grpc": {"port": 9000}},
    }]});
    let pod = a_pod("app").spec(spec).build();
    let first = namespace.create_pod(&pod).await.unwrap();
    assert!(is_injected(&first));
    namespace.delete_pod(&first).await;

    let mut exported = first.clone();
    exported.metadata.uid = None;
    exported.metadata.resource_version = None;
    exported.metadata.creation_timestamp = None;
    exported.metadata.managed_fields = None;
    exported.status = None;
    let second = namespace.create_pod(&exported).await.unwrap();
    assert_eq!(second.spec, first.spec);
    assert_eq!(second.metadata.labels, first.metadata.labels);
    assert_eq!(second.metadata.annotations, first.metadata.annotations);
}
