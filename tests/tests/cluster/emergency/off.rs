//! Level 1: new pods get no sidecar.

use std::time::Duration;

use bulkhead_tests::cluster::apps::server;
use bulkhead_tests::cluster::commands::{CHART, bulkhead, helm, kubectl, kubectl_apply};
use bulkhead_tests::cluster::{SYSTEM_NAMESPACE, alone, beside_others, until};
use bulkhead_tests::namespace::{Namespace, is_injected};
use kube::ResourceExt as _;
use tokio::time::Instant;

use crate::programs::{self, ALL, WEBHOOK, would_store};

const STOPPED: &str = "bulkhead.io/injection-stopped";
/// From the command to the first pod without a sidecar. The machine may be
/// building something beside the tests.
const WITHIN: Duration = Duration::from_secs(20);

async fn pods_are_refused(namespace: &Namespace) {
    until("pods that ask for a sidecar are refused", async || {
        would_store(namespace).await.err()
    })
    .await;
}

async fn pods_are_injected(namespace: &Namespace) {
    until("pods that ask for a sidecar get one", async || {
        would_store(namespace).await.ok().filter(is_injected)
    })
    .await;
}

#[tokio::test]
async fn with_every_pod_of_bulkhead_dead_off_lets_pods_start_and_ends_at_its_time() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace().await;
    programs::without(&cluster, ALL, async {
        pods_are_refused(&namespace).await;
        let typed = Instant::now();
        bulkhead(&["off", "--for", "60s", "--reason", "all are dead"]).await;
        let stored = would_store(&namespace).await.expect("the switch is on");
        let after = typed.elapsed();
        assert!(!is_injected(&stored));
        assert!(after < WITHIN, "a pod was let through after {after:?} only");
        // And it runs.
        let web = server("web").start(&namespace).await;
        assert!(!is_injected(&web.pod().await));
        pods_are_refused(&namespace).await;
    })
    .await;
}

#[tokio::test]
async fn off_is_undone_by_no_restart_of_the_webhook_and_by_no_helm_upgrade_but_by_on() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace().await;
    let mesh_wide = ["off", "--reason", "the webhook is wrong"];
    bulkhead(&mesh_wide).await;
    let is_off = async || {
        let stored = would_store(&namespace).await.expect("pods are created");
        assert!(!is_injected(&stored));
        assert!(stored.annotations()[STOPPED].ends_with("the webhook is wrong"));
    };
    is_off().await;
    programs::kill(&cluster, WEBHOOK).await;
    is_off().await;
    helm(&[
        "upgrade",
        "bulkhead",
        CHART,
        "-n",
        SYSTEM_NAMESPACE,
        "--reuse-values",
        "--wait",
    ])
    .await;
    is_off().await;
    bulkhead(&["on"]).await;
    pods_are_injected(&namespace).await;
}

#[tokio::test]
async fn kubectl_apply_turns_a_switch_and_kubectl_get_says_who_why_and_until_when() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let arguments = ["off", "-n", namespace.name(), "--reason", "typed at night"];
    let dry_run = ["--for", "30m", "--dry-run", "-o", "yaml"];
    let manifest = bulkhead(&[&arguments[..], &dry_run[..]].concat()).await;
    pods_are_injected(&namespace).await;
    kubectl_apply(&manifest).await;
    until("pods get no sidecar", async || {
        let stored = would_store(&namespace).await.expect("pods are created");
        (!is_injected(&stored)).then_some(())
    })
    .await;
    let table = kubectl(&["get", "injectionstops", "-n", namespace.name()]).await;
    for word in ["BY", "REASON", "UNTIL", "typed at night", "admin"] {
        assert!(table.contains(word), "{table}");
    }
    until("control gives it a time limit", async || {
        let get = ["get", "injectionstops", "-n", namespace.name(), "-o"];
        let owner = "jsonpath={.items[*].metadata.ownerReferences[*].kind}";
        let owner = kubectl(&[&get[..], &[owner]].concat()).await;
        (owner == "Job").then_some(())
    })
    .await;
    kubectl(&["delete", "injectionstops", "-n", namespace.name(), "--all"]).await;
    pods_are_injected(&namespace).await;
}
