//! What people deploy is left as they wrote it; the pods made from it are not.

use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};

use crate::cluster::{Cluster, dry_run};

const ON: &[(&str, &str)] = &[("bulkhead.io/inject", "enabled")];

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "registry.example/web:1"}]},
    })
}

fn containers(template: &Value) -> usize {
    let count = |list| template["spec"][list].as_array().map_or(0, Vec::len);
    count("initContainers") + count("containers")
}

/// The one pod that a controller made in the namespace.
async fn the_pod(namespace: &Namespace) -> Pod {
    let pods: Api<Pod> = namespace.api();
    let list = pods.list(&ListParams::default()).await;
    let mut pods = list.expect("the administrator may list pods").items;
    assert_eq!(pods.len(), 1);
    pods.remove(0)
}

#[tokio::test]
async fn a_deployments_template_stays_and_its_pod_is_injected() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let deployments: Api<Deployment> = namespace.api();
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template()},
    });
    let deployment = serde_json::from_value(deployment).unwrap();
    deployments
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    let created = |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.and_then(|status| status.replicas) == Some(1)
    };
    let stored = await_condition(deployments, "web", created)
        .await
        .unwrap()
        .unwrap();

    let stored = serde_json::to_value(stored).unwrap();
    assert_eq!(containers(&stored["spec"]["template"]), 1);
    assert!(is_injected(&the_pod(&namespace).await));
}

#[tokio::test]
async fn so_does_a_stateful_sets() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let sets: Api<StatefulSet> = namespace.api();
    let set = json!({
        "metadata": {"name": "web"},
        "spec": {
            "serviceName": "web",
            "selector": {"matchLabels": {"app": "web"}},
            "template": template(),
        },
    });
    let set = serde_json::from_value(set).unwrap();
    sets.create(&PostParams::default(), &set).await.unwrap();
    let created = |set: Option<&StatefulSet>| {
        let status = set.and_then(|set| set.status.as_ref());
        status.is_some_and(|status| status.replicas == 1)
    };
    let stored = await_condition(sets, "web", created)
        .await
        .unwrap()
        .unwrap();

    let stored = serde_json::to_value(stored).unwrap();
    assert_eq!(containers(&stored["spec"]["template"]), 1);
    assert!(is_injected(&the_pod(&namespace).await));
}

#[tokio::test]
async fn a_jobs_pod_gets_a_sidecar_that_lets_it_finish() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let jobs: Api<Job> = namespace.api();
    let mut template = template();
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({"metadata": {"name": "once"}, "spec": {"template": template}});
    let job = serde_json::from_value(job).unwrap();
    jobs.create(&PostParams::default(), &job).await.unwrap();
    let created = |job: Option<&Job>| {
        let status = job.and_then(|job| job.status.as_ref());
        status.and_then(|status| status.active) == Some(1)
    };
    let stored = await_condition(jobs, "once", created)
        .await
        .unwrap()
        .unwrap();

    let stored = serde_json::to_value(stored).unwrap();
    assert_eq!(containers(&stored["spec"]["template"]), 1);
    let pod = the_pod(&namespace).await;
    assert!(is_injected(&pod));
    // A native sidecar is stopped when the application's containers have ended.
    let spec = pod.spec.unwrap();
    assert_eq!(spec.containers.len(), 1);
}

#[tokio::test]
async fn a_dry_run_shows_the_sidecar_and_stores_nothing() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let pods: Api<Pod> = namespace.api();
    let shown = pods
        .create(&dry_run(), &a_pod("pod").build())
        .await
        .unwrap();
    assert!(is_injected(&shown));
    assert!(pods.get_opt("pod").await.unwrap().is_none());
}
