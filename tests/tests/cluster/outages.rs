//! Bulkhead's own pods end, one program or all of them, or the whole node does:
//! traffic goes on, and nobody else's pods wait for ours.

use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_tests::cluster::apps::{App, Load, WORKLOAD_IMAGE, server};
use bulkhead_tests::cluster::commands::{kubectl, restart_node};
use bulkhead_tests::cluster::{Cluster, SYSTEM_NAMESPACE, alone, becomes, is_ready, until};
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use crate::programs::{self, ALL, CA, CONTROL, WEBHOOK, would_store};

const STRICT: &[(&str, &str)] = &[("bulkhead.io/mtls-mode", "STRICT")];

async fn requests_go_on_while_it_is_killed(program: &str) {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = server("web").start(&namespace).await;
    let load = Load::start_with(&namespace, "load", &["--new-connections", &web.url("/")]).await;
    programs::kill(&cluster, program).await;
    load.goes_on(50).await;
    load.has_not_failed().await;
}

#[tokio::test]
async fn no_request_fails_while_the_ca_is_killed() {
    requests_go_on_while_it_is_killed(CA).await;
}

#[tokio::test]
async fn no_request_fails_while_control_is_killed() {
    requests_go_on_while_it_is_killed(CONTROL).await;
}

#[tokio::test]
async fn no_request_fails_while_the_webhook_is_killed() {
    requests_go_on_while_it_is_killed(WEBHOOK).await;
}

#[tokio::test]
async fn pods_are_injected_all_the_while_the_webhook_is_rolled_out() {
    let cluster = alone().await;
    let namespace = cluster.plain_namespace().await;
    let rolled_out = AtomicBool::new(false);
    let roll_out = async {
        let webhook = format!("deployment/{WEBHOOK}");
        kubectl(&["rollout", "restart", "-n", SYSTEM_NAMESPACE, &webhook]).await;
        kubectl(&["rollout", "status", "-n", SYSTEM_NAMESPACE, &webhook]).await;
        programs::are_ready(&cluster, &[WEBHOOK]).await;
        rolled_out.store(true, Ordering::Relaxed);
    };
    let create = async {
        let mut created = 0;
        while !rolled_out.load(Ordering::Relaxed) {
            let stored = would_store(&namespace).await;
            let stored = stored.unwrap_or_else(|error| panic!("after {created} pods: {error}"));
            assert!(is_injected(&stored), "after {created} pods: {stored:#?}");
            created += 1;
        }
        created
    };
    let ((), created) = tokio::join!(roll_out, create);
    assert!(created > 5, "only {created} pods were created meanwhile");
}

/// Creates a pod of nobody and waits until it runs.
async fn starts(namespace: &Namespace, name: &str) -> Pod {
    let container = json!({"name": "app", "image": WORKLOAD_IMAGE,
        "imagePullPolicy": "IfNotPresent", "args": ["serve", "--http", "8080"]});
    let pod = a_pod(name).spec(json!({"containers": [container]}));
    let pod = namespace.create_pod(&pod.build()).await;
    let pod = pod.expect("nobody is asked about this pod");
    let ready = |pod: Option<&Pod>| pod.is_some_and(is_ready);
    becomes(&namespace.api::<Pod>(), name, "ready", ready).await;
    pod
}

#[tokio::test]
async fn with_every_pod_of_bulkhead_ended_other_pods_start_and_traffic_goes_on() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let outside = cluster.plain_namespace().await;
    let kube_system = Namespace::existing(cluster.client(), "kube-system");
    let web = server("web").start(&namespace).await;
    let load = Load::start(&namespace, "load", &web.url("/")).await;
    programs::without(&cluster, ALL, async {
        let refused = until("the webhook is gone", async || {
            would_store(&namespace).await.err()
        })
        .await;
        let refused = refused.to_string();
        assert!(refused.contains("failed calling webhook"), "{refused}");
        let elsewhere = starts(&outside, "elsewhere").await;
        assert!(!is_injected(&elsewhere));
        let name = format!("pod-of-{}", namespace.name());
        let of_kubernetes = starts(&kube_system, &name).await;
        kube_system.delete_pod(&of_kubernetes).await;
        load.goes_on(50).await;
    })
    .await;
    load.goes_on(50).await;
    load.has_not_failed().await;
}

/// Waits until a client is answered by a server again.
async fn answers(client: &App<'_>, web: &App<'_>) {
    until("the server answers", async || {
        let reply = client.get(&web.url("/")).await;
        (reply.status == Some(200)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn after_a_power_cut_everything_comes_back_without_help() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let (web, client) = tokio::join!(
        server("web").start(&namespace),
        server("client").start(&namespace)
    );
    let before = web.pod().await;
    restart_node().await;
    programs::are_ready(&cluster, ALL).await;
    web.ready().await;
    client.ready().await;
    assert_eq!(web.pod().await.uid(), before.uid(), "it is the same pod");
    answers(&client, &web).await;
    new_pods_are_injected(&cluster, &namespace).await;
}

async fn new_pods_are_injected(cluster: &Cluster, namespace: &Namespace) {
    programs::injects(cluster).await;
    let later = server("later").start(namespace).await;
    assert!(is_injected(&later.pod().await));
}
