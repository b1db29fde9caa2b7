//! Level 2: sidecars that run hand bytes on untouched.

use std::net::SocketAddr;

use bulkhead_tests::cluster::apps::{self, App, HTTP_PORT, Load, TCP_ECHO_PORT, server, sum};
use bulkhead_tests::cluster::commands::bulkhead;
use bulkhead_tests::cluster::{alone, beside_others, until};
use bulkhead_tests::namespace::Namespace;
use k8s_openapi::api::core::v1::Pod;

use super::STRICT;
use crate::programs::{self, CA, CONTROL};

/// What the command says of the server and both loads. It gives control two
/// seconds for it; what that leaves undone on a busy machine it does itself.
const BY_CONTROL: &[&str] = &[
    "control  told all 3 sidecars, and they forward",
    "forward  3 of 3 sidecars",
];

/// What a client without a sidecar is told.
async fn asked_in_plaintext(pod: &Pod) -> Option<u16> {
    let address = SocketAddr::new(apps::ip(pod), HTTP_PORT);
    apps::get(address, "/", &[]).await.ok()?.status
}

async fn forwards(pod: &Pod) -> bool {
    sum(pod, "bulkhead_bypass", &["phase=\"forward\""]).await == 1.0
}

/// Requests, each on a connection of its own, and lines on one that is kept.
async fn under_load<'a>(namespace: &'a Namespace, web: &App<'_>) -> [Load<'a>; 2] {
    let url = web.url("/");
    let lines = format!("tcp://{}:{TCP_ECHO_PORT}", web.host());
    let requests = ["--new-connections", url.as_str()];
    let (requests, lines) = tokio::join!(
        Load::start_with(namespace, "requests", &requests),
        Load::start(namespace, "lines", &lines),
    );
    [requests, lines]
}

/// From STRICT on both sides, under load.
async fn there(namespace: &Namespace, web: &App<'_>, loads: &[Load<'_>], how: &[&str]) {
    let pod = web.pod().await;
    assert_eq!(asked_in_plaintext(&pod).await, Some(403));
    let scope = ["-n", namespace.name()];
    let said = bulkhead(&[&["bypass", "--reason", "a drill"][..], &scope[..]].concat()).await;
    assert!(how.iter().any(|how| said.contains(how)), "{said}");
    assert!(forwards(&pod).await, "{said}");
    assert_eq!(asked_in_plaintext(&pod).await, Some(200));
    for load in loads {
        assert!(forwards(&load.app().pod().await).await, "{said}");
        load.goes_on(50).await;
    }
}

/// To STRICT again. No request has failed, on the way there neither.
async fn back(namespace: &Namespace, web: &App<'_>, loads: &[Load<'_>]) {
    let pod = web.pod().await;
    bulkhead(&["on", "-n", namespace.name()]).await;
    until("plaintext is refused again", async || {
        (asked_in_plaintext(&pod).await == Some(403)).then_some(())
    })
    .await;
    for load in loads {
        load.goes_on(50).await;
        load.has_not_failed().await;
    }
}

#[tokio::test]
async fn with_control_up_no_request_fails_and_no_connection_ends_on_the_way_there_and_back() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = server("web").start(&namespace).await;
    let loads = under_load(&namespace, &web).await;
    there(&namespace, &web, &loads, BY_CONTROL).await;
    back(&namespace, &web, &loads).await;
}

#[tokio::test]
async fn with_control_down_no_request_fails_and_no_connection_ends_on_the_way_there_and_back() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = server("web").start(&namespace).await;
    let loads = under_load(&namespace, &web).await;
    programs::without(&cluster, &[CONTROL], async {
        there(&namespace, &web, &loads, &["forward  3 of 3 sidecars"]).await;
        back(&namespace, &web, &loads).await;
    })
    .await;
}

#[tokio::test]
async fn a_bypass_that_control_brought_is_turned_back_after_control_has_died() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = server("web").start(&namespace).await;
    let loads = under_load(&namespace, &web).await;
    there(&namespace, &web, &loads, BY_CONTROL).await;
    programs::without(&cluster, &[CONTROL], back(&namespace, &web, &loads)).await;
}

#[tokio::test]
async fn a_sidecar_without_a_certificate_works_under_bypass() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    programs::without(&cluster, &[CA], async {
        let web = server("web").create(&namespace).await;
        let client = server("client").create(&namespace).await;
        for app in [&web, &client] {
            until("its sidecar runs", async || {
                let pods = app.pods().await;
                let status = pods.first()?.status.as_ref()?;
                let sidecars = status.init_container_statuses.as_ref()?;
                let state = |name: &str| {
                    let found = sidecars.iter().find(|container| container.name == name);
                    found.and_then(|container| container.state.as_ref())
                };
                state(bulkhead_inject::PROXY_CONTAINER)?
                    .running
                    .as_ref()
                    .map(|_| ())
            })
            .await;
        }
        bulkhead(&[
            "bypass",
            "--reason",
            "the CA is dead",
            "-n",
            namespace.name(),
        ])
        .await;
        web.ready().await;
        client.ready().await;
        // Bytes pass untouched, so it is Kubernetes that leads them to the
        // server, a moment after the server is ready.
        until("the server answers", async || {
            (client.get(&web.url("/")).await.status == Some(200)).then_some(())
        })
        .await;
    })
    .await;
    bulkhead(&["on", "-n", namespace.name()]).await;
}
