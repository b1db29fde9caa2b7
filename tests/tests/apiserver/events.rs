//! What `kubectl describe` of a workload shows when its pods do not come out as
//! somebody expects.

use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;

use crate::cluster::{Cluster, until};

const ON: &[(&str, &str)] = &[("bulkhead.io/inject", "enabled")];

/// Waits for the first Event of ours in the namespace.
async fn our_event(namespace: &Namespace) -> Event {
    let events: Api<Event> = namespace.api();
    let ours = async || {
        let all = events.list(&ListParams::default()).await;
        let all = all.expect("the administrator may list Events").items;
        all.into_iter()
            .find(|event| event.reporting_controller.as_deref() == Some("bulkhead.io/webhook"))
    };
    until(ours).await.expect("the webhook tells of it")
}

#[tokio::test]
async fn a_refused_deployment_says_why_where_people_look() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {
                    "labels": {"app": "web"},
                    "annotations": {"bulkhead.io/mtls-mode": "STRIKT"},
                },
                "spec": {"containers": [{"name": "web", "image": "registry.example/web:1"}]},
            },
        },
    });
    let deployment: Deployment = serde_json::from_value(deployment).unwrap();
    let deployments = namespace.api();
    deployments
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();

    let event = our_event(&namespace).await;
    assert_eq!(event.reason.as_deref(), Some("InjectionRefused"));
    let regarding = event.regarding.unwrap();
    assert_eq!(
        regarding.kind.as_deref(),
        Some("ReplicaSet"),
        "the pod was never stored"
    );
    let note = event.note.unwrap();
    for expected in ["bulkhead.io/mtls-mode", "STRIKT"] {
        assert!(note.contains(expected), "{expected} in: {note}");
    }
}

#[tokio::test]
async fn a_pod_of_another_mesh_is_left_alone_and_that_is_said() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let containers = json!([
        {"name": "app", "image": "registry.example/app:1"},
        {"name": "istio-proxy", "image": "registry.example/proxyv2:1"},
    ]);
    let pod = a_pod("pod").spec(json!({"containers": containers})).build();
    let stored = namespace.create_pod(&pod).await.unwrap();
    assert!(!is_injected(&stored));

    let event = our_event(&namespace).await;
    assert_eq!(event.reason.as_deref(), Some("InjectionSkipped"));
    let note = event.note.unwrap();
    assert!(note.contains("another mesh"), "{note}");
}
