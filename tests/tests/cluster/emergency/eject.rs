//! Level 3: workloads are restarted without their sidecars.

use std::net::SocketAddr;

use bulkhead_tests::cluster::apps::{self, App, Load, server};
use bulkhead_tests::cluster::commands::{bulkhead, check, kubectl};
use bulkhead_tests::cluster::{Cluster, beside_others, until};
use bulkhead_tests::namespace::is_injected;

use super::STRICT;
use crate::programs::{CONTROL, WEBHOOK, pods_of};

async fn have_sidecars(app: &App<'_>, expected: bool) {
    let pods = app.pods().await;
    assert!(!pods.is_empty());
    for pod in pods {
        assert_eq!(is_injected(&pod), expected, "{pod:#?}");
    }
}

#[tokio::test]
async fn no_request_fails_while_pods_are_restarted_without_sidecars_and_with_them_again() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let elsewhere = cluster.meshed_namespace_with(STRICT).await;
    let web = server("web").replicas(2).start(&namespace).await;
    have_sidecars(&web, true).await;
    // It keeps its sidecar all the while, and its counts.
    let load = Load::start(&elsewhere, "load", &web.url("/")).await;
    let scope = ["-n", namespace.name()];

    let said = bulkhead(&[&["eject", "--reason", "a drill"][..], &scope[..]].concat()).await;
    web.ready().await;
    have_sidecars(&web, false).await;
    load.goes_on(50).await;
    assert_eq!(load.counts().await.failed, 0, "{said}");

    let said = bulkhead(&[&["on", "--restart"][..], &scope[..]].concat()).await;
    web.ready().await;
    have_sidecars(&web, true).await;
    load.goes_on(50).await;
    assert_eq!(load.counts().await.failed, 0, "{said}");
    load.has_not_failed().await;
}

/// The most that a replica of a program says of a metric.
async fn metric(cluster: &Cluster, program: &str, name: &str, labels: &[&str]) -> f64 {
    let mut most: f64 = 0.0;
    for pod in pods_of(cluster, program).await {
        let address = SocketAddr::new(apps::ip(&pod), bulkhead_core::ports::MONITORING);
        let reply = apps::get(address, "/metrics", &[]).await;
        let text = reply.expect("the monitoring port answers").body;
        most = most.max(bulkhead_tests::metrics::sum_of(&text, name, labels));
    }
    most
}

#[tokio::test]
async fn every_level_shows_in_check_in_events_and_in_metrics() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let name = namespace.name();
    // It turns the other two as well.
    bulkhead(&[
        "eject",
        "--reason",
        "to be seen",
        "--for",
        "30m",
        "-n",
        name,
    ])
    .await;

    let checked = check().await;
    for what in [
        "INJECTION IS OFF",
        "SIDECARS ARE BYPASSED",
        "SIDECARS ARE EJECTED",
    ] {
        let line = checked
            .stdout
            .lines()
            .find(|line| line.contains(what) && line.contains(name))
            .unwrap_or_else(|| panic!("{what}: {checked:?}"));
        assert!(
            line.contains("to be seen") && line.contains("until"),
            "{line}"
        );
    }
    let events = kubectl(&["get", "events", "-n", name]).await;
    for kind in ["injectionstop/", "bypass/", "ejection/"] {
        let mut lines = events.lines();
        let is_there = lines.any(|line| line.contains("TurnedOn") && line.contains(kind));
        assert!(is_there, "{kind}: {events}");
    }
    let here = format!("namespace=\"{name}\"");
    for (program, level) in [
        (WEBHOOK, "injection"),
        (CONTROL, "injection"),
        (CONTROL, "bypass"),
        (CONTROL, "ejection"),
    ] {
        let labels = [format!("level=\"{level}\""), here.clone()];
        let labels = labels.each_ref().map(String::as_str);
        until(&format!("{program} shows the level {level}"), async || {
            let shown = metric(&cluster, program, "bulkhead_emergency_active", &labels).await;
            (shown == 1.0).then_some(())
        })
        .await;
    }
    bulkhead(&["on", "-n", name]).await;
    let checked = check().await;
    let mut switches = checked.stdout.lines().filter(|line| line.starts_with("!!"));
    let here = format!("namespace {name},");
    assert!(!switches.any(|line| line.contains(&here)), "{checked:?}");
}
