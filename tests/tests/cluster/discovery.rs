//! What sidecars know of where connections go, and what becomes of it when it
//! changes, and when nobody is there to tell.

use std::net::SocketAddr;

use bulkhead_core::discovery::ResourceKind;
use bulkhead_core::identity::SpiffeId;
use bulkhead_tests::cluster::apps::{self, App, HTTP_PORT, Load, server, sum};
use bulkhead_tests::cluster::{Cluster, alone, becomes, beside_others, until};
use bulkhead_tests::subscriber::Subscriber;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::afterwards::afterwards;
use crate::certificate::{issue, service_address, trust_domain};

async fn scale(deployments: &Api<Deployment>, name: &str, replicas: u32) {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments
        .patch(name, &PatchParams::default(), &patch)
        .await
        .expect("the administrator may scale");
}

/// How many requests each of these pods has served.
async fn served(pod: &Pod) -> f64 {
    let labels = ["reporter=\"destination\"", "response_code=\"200\""];
    sum(pod, "istio_requests_total", &labels).await
}

#[tokio::test]
async fn requests_go_to_the_pods_that_are_ready_while_a_deployment_is_scaled() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web").start(&namespace).await;
    let first = web.pod().await;
    let load = Load::start(&namespace, "load", &web.url("/")).await;
    for _ in 0..2 {
        scale(&web.deployments(), "web", 2).await;
        web.ready().await;
        let pods = web.pods().await;
        let second = pods.iter().find(|pod| pod.uid() != first.uid()).unwrap();
        until("the new pod gets requests too", async || {
            (served(second).await > 20.0).then_some(())
        })
        .await;
        // One of the two leaves, whichever Kubernetes chooses.
        scale(&web.deployments(), "web", 1).await;
        web.ready().await;
        load.goes_on(50).await;
        load.has_not_failed().await;
    }
}

#[tokio::test]
async fn a_service_without_pods_says_so_until_it_has_one() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let (web, client) = tokio::join!(
        server("web").start(&namespace),
        server("client").start(&namespace)
    );
    assert_eq!(client.get(&web.url("/")).await.status, Some(200));
    scale(&web.deployments(), "web", 0).await;
    let reply = until("nobody is left to ask", async || {
        let reply = client.get(&web.url("/")).await;
        (reply.status != Some(200)).then_some(reply)
    })
    .await;
    assert_eq!(reply.status, Some(503), "{reply:?}");
    assert_eq!(reply.headers["bulkhead-reason"], "no_ready_endpoint");
    scale(&web.deployments(), "web", 1).await;
    until("the new pod is found", async || {
        (client.get(&web.url("/")).await.status == Some(200)).then_some(())
    })
    .await;
}

fn control_identity(cluster: &Cluster) -> SpiffeId {
    SpiffeId::workload(&trust_domain(), cluster.system().name(), "bulkhead-control").unwrap()
}

/// The sum of a metric over all replicas of control.
async fn counted_by_control(cluster: &Cluster, name: &str, labels: &[&str]) -> f64 {
    let mut total = 0.0;
    for pod in control_pods(cluster).await {
        let address = SocketAddr::new(apps::ip(&pod), bulkhead_core::ports::MONITORING);
        let reply = apps::get(address, "/metrics", &[]).await.unwrap();
        total += bulkhead_tests::metrics::sum_of(&reply.body, name, labels);
    }
    total
}

async fn control_pods(cluster: &Cluster) -> Vec<Pod> {
    let pods: Api<Pod> = cluster.system().api();
    let control = ListParams::default().labels("app.kubernetes.io/name=bulkhead-control");
    pods.list(&control).await.unwrap().items
}

#[tokio::test]
async fn a_proxy_cannot_read_the_policy_of_another_pod() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let (web, other) = tokio::join!(
        server("web").start(&namespace),
        server("other").start(&namespace)
    );
    let (web, other) = (web.pod().await, other.pod().await);
    let certificate = issue(&cluster, &namespace, "default", &web).await;
    let address = service_address(&cluster, "bulkhead-control").await;
    let node = |pod: &Pod| format!("{}/{}", namespace.name(), pod.name_any());
    let mut proxy = Subscriber::connect(
        address,
        &control_identity(&cluster),
        &certificate.credentials(),
        &node(&web),
    )
    .await
    .unwrap();
    let kind = ResourceKind::Inbound;
    proxy.ask(kind, &node(&web)).await.unwrap();
    let own = proxy.told(kind, &node(&web)).await.unwrap();
    assert!(own.is_some(), "a proxy is told its own policy");
    let labels = ["reason=\"not_its_own\""];
    let refusals = "bulkhead_control_refusals_total";
    let before = counted_by_control(&cluster, refusals, &labels).await;
    proxy.ask(kind, &node(&other)).await.unwrap();
    let foreign = proxy.told(kind, &node(&other)).await.unwrap();
    assert_eq!(foreign, None);
    let after = counted_by_control(&cluster, refusals, &labels).await;
    assert!(after > before, "control counts what it refuses");
}

#[tokio::test]
async fn a_stranger_with_a_good_certificate_cannot_be_another_pods_proxy() {
    let cluster = beside_others().await;
    let (namespace, elsewhere) = (
        cluster.meshed_namespace().await,
        cluster.plain_namespace().await,
    );
    let (web, stranger) = tokio::join!(
        server("web").start(&namespace),
        server("stranger").start(&elsewhere)
    );
    let certificate = issue(&cluster, &elsewhere, "default", &stranger.pod().await).await;
    let address = service_address(&cluster, "bulkhead-control").await;
    let node = format!("{}/{}", namespace.name(), web.pod().await.name_any());
    let mut stranger = Subscriber::connect(
        address,
        &control_identity(&cluster),
        &certificate.credentials(),
        &node,
    )
    .await
    .unwrap();
    stranger.ask(ResourceKind::Inbound, &node).await.unwrap();
    let refusal = stranger.refusal().await;
    assert_eq!(refusal.code(), tonic::Code::PermissionDenied, "{refusal}");
}

/// Ends every replica of control for as long as `test` takes.
async fn without_control<T>(cluster: &Cluster, test: impl Future<Output = T>) -> T {
    let name = "bulkhead-control";
    let deployments: Api<Deployment> = cluster.system().api();
    let replicas = deployments.get(name).await.unwrap().spec.unwrap().replicas;
    let replicas = u32::try_from(replicas.unwrap()).unwrap();
    let without = async {
        scale(&deployments, name, 0).await;
        until("control is gone", async || {
            control_pods(cluster).await.is_empty().then_some(())
        })
        .await;
        test.await
    };
    let put_back = async {
        scale(&deployments, name, replicas).await;
        let is_ready = |deployment: Option<&Deployment>| {
            let status = deployment.and_then(|it| it.status.as_ref());
            status.and_then(|status| status.ready_replicas) == i32::try_from(replicas).ok()
        };
        becomes(&deployments, name, "ready again", is_ready).await;
    };
    afterwards(without, put_back).await
}

/// Whether a request that a client made went over mesh mTLS, as the server's
/// sidecar has it.
async fn over_mtls(web: &App<'_>) -> f64 {
    let labels = [
        "reporter=\"destination\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    sum(&web.pod().await, "istio_requests_total", &labels).await
}

#[tokio::test]
async fn with_control_away_proxies_keep_what_they_know_and_reach_what_they_do_not() {
    let cluster = alone().await;
    let strict = [("bulkhead.io/mtls-mode", "STRICT")];
    let namespace = cluster.meshed_namespace().await;
    let (known, unknown, client) = tokio::join!(
        server("known").annotations(&strict).start(&namespace),
        server("unknown").start(&namespace),
        server("client").start(&namespace)
    );
    let load = Load::start(&namespace, "load", &known.url("/")).await;
    assert_eq!(client.get(&known.url("/")).await.status, Some(200));
    let known_pod = known.pod().await;
    let address = SocketAddr::new(apps::ip(&known_pod), HTTP_PORT);
    without_control(&cluster, async {
        let before = over_mtls(&known).await;
        load.goes_on(50).await;
        until("requests to it are mTLS still", async || {
            (over_mtls(&known).await >= before + 50.0).then_some(())
        })
        .await;
        assert_eq!(client.get(&known.url("/")).await.status, Some(200));
        let refused = apps::get(address, "/", &[]).await.unwrap();
        assert_eq!(refused.status, Some(403), "it is STRICT still");
        // Nobody can say that it is in the mesh.
        let reply = client.get(&unknown.url("/")).await;
        assert_eq!(reply.status, Some(200), "{reply:?}");
    })
    .await;
    load.goes_on(50).await;
    load.has_not_failed().await;
}
