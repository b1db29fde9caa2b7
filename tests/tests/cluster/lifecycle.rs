//! Bulkhead is upgraded and uninstalled while pods with sidecars run.

use bulkhead_tests::cluster::apps::{Load, server};
use bulkhead_tests::cluster::commands::{CHART, helm, kubectl};
use bulkhead_tests::cluster::{SYSTEM_NAMESPACE, alone, until};
use bulkhead_tests::namespace::is_injected;
use kube::ResourceExt as _;

use crate::afterwards::afterwards;
use crate::programs::{self, ALL, pods_of, would_store};

const STRICT: &[(&str, &str)] = &[("bulkhead.io/mtls-mode", "STRICT")];

#[tokio::test]
async fn no_request_fails_while_helm_upgrades_every_program() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = server("web").start(&namespace).await;
    let load = Load::start_with(&namespace, "load", &["--new-connections", &web.url("/")]).await;
    let mut before = Vec::new();
    for program in ALL {
        before.extend(pods_of(&cluster, program).await);
    }
    let changed = ["webhook", "ca", "control"]
        .map(|program| format!("{program}.podAnnotations.upgraded=by-{}", namespace.name()));
    let mut upgrade = vec![
        "upgrade",
        "bulkhead",
        CHART,
        "--namespace",
        SYSTEM_NAMESPACE,
        "--reuse-values",
        "--wait",
    ];
    for value in &changed {
        upgrade.extend(["--set", value]);
    }
    helm(&upgrade).await;
    programs::are_ready(&cluster, ALL).await;
    for program in ALL {
        for pod in pods_of(&cluster, program).await {
            let is_new = before.iter().all(|old| old.uid() != pod.uid());
            let leaves = pod.metadata.deletion_timestamp.is_some();
            assert!(is_new || leaves, "{} was not replaced", pod.name_any());
        }
    }
    let stored = would_store(&namespace).await.expect("the webhook answers");
    assert!(is_injected(&stored));
    load.goes_on(50).await;
    load.has_not_failed().await;
}

/// Whatever is called after Bulkhead or belongs to it, in the whole cluster, but
/// for what the test made itself.
async fn what_is_left() -> Vec<String> {
    let kinds = kubectl(&["api-resources", "--verbs=list", "-o", "name"]).await;
    // Events tell what was. The chart did not make the namespace. Our own kinds
    // go with their definitions, which are looked for like everything else.
    let is_looked_for = |kind: &&str| {
        !kind.starts_with("events") && *kind != "namespaces" && !kind.ends_with(".bulkhead.io")
    };
    let kinds: Vec<&str> = kinds.lines().filter(is_looked_for).collect();
    let all = kinds.join(",");
    let everywhere = ["--all-namespaces", "--ignore-not-found", "-o", "name"];
    let names = kubectl(&[&["get", all.as_str()], &everywhere[..]].concat()).await;
    let names = names.lines().filter(|name| name.contains("bulkhead"));
    names.map(str::to_owned).collect()
}

#[tokio::test]
async fn uninstalled_it_leaves_nothing_and_pods_with_sidecars_go_on() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = server("web").start(&namespace).await;
    let load = Load::start(&namespace, "load", &web.url("/")).await;
    let values = helm(&[
        "get",
        "values",
        "bulkhead",
        "-n",
        SYSTEM_NAMESPACE,
        "-o",
        "json",
    ])
    .await;
    let directory = tempfile::tempdir().expect("there is a place for temporary files");
    let values_file = directory.path().join("values.json");
    std::fs::write(&values_file, values).expect("it can be written");
    let uninstalled = async {
        helm(&["uninstall", "bulkhead", "-n", SYSTEM_NAMESPACE, "--wait"]).await;
        until("nothing is left", async || {
            let left = what_is_left().await;
            left.is_empty().then_some(())
        })
        .await;
        load.goes_on(50).await;
        // Nobody is asked about new pods any more.
        let stored = would_store(&namespace).await.expect("pods are created");
        assert!(!is_injected(&stored));
        load.has_not_failed().await;
    };
    let install_again = async {
        let values_file = values_file.display().to_string();
        helm(&[
            "upgrade",
            "--install",
            "bulkhead",
            CHART,
            "--namespace",
            SYSTEM_NAMESPACE,
            "--values",
            &values_file,
            "--wait",
        ])
        .await;
        programs::injects(&cluster).await;
    };
    afterwards(uninstalled, install_again).await;
}
