//! What pods say to each other, and how it looks between them.

use std::net::SocketAddr;

use bulkhead_tests::cluster::apps::{self, App, GREETING_PORT, HTTP_PORT, server, sum};
use bulkhead_tests::cluster::capture::Capture;
use bulkhead_tests::cluster::{Cluster, beside_others, until};
use bulkhead_tests::namespace::Namespace;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::Value;

const STRICT: &[(&str, &str)] = &[("bulkhead.io/mtls-mode", "STRICT")];

/// How often the server's sidecar has served a request over mesh mTLS from this
/// namespace's `default` ServiceAccount.
async fn over_mtls(server: &Pod, from: &Namespace) -> f64 {
    let principal = format!(
        "source_principal=\"spiffe://cluster.local/ns/{}/sa/default\"",
        from.name()
    );
    let labels = [
        "reporter=\"destination\"",
        "connection_security_policy=\"mutual_tls\"",
        &principal,
    ];
    sum(server, "istio_requests_total", &labels).await
}

/// Asks, and sees to it that the answer came from the server over mesh mTLS.
async fn asks_over_mtls(namespace: &Namespace, client: &App<'_>, server: &App<'_>, url: &str) {
    let pods = server.pods().await;
    let counted = async || {
        let mut total = 0.0;
        for pod in &pods {
            total += over_mtls(pod, namespace).await;
        }
        total
    };
    let before = counted().await;
    let reply = client.get(url).await;
    assert_eq!(reply.status, Some(200), "{url}: {reply:?}");
    until("the server's sidecar counts the request", async || {
        (counted().await == before + 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_between_two_meshed_pods_is_mtls_1_3_on_the_wire() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let (web, client) = tokio::join!(
        server("web").start(&namespace),
        server("client").start(&namespace)
    );
    let capture = Capture::start().await;
    let secret = "the-body-that-nobody-may-read";
    let said = client
        .run(&["get", "--body", secret, &web.url("/echo")])
        .await;
    assert!(said.stdout.contains(secret), "{said:?}");
    // What is said without a sidecar is seen, so the capture sees what there is.
    let outside = SocketAddr::new(apps::ip(&web.pod().await), HTTP_PORT);
    let open = "the-path-that-everybody-may-read";
    apps::get(outside, &format!("/{open}"), &[]).await.unwrap();

    let packets = capture.stop().await;
    assert!(packets.contain(open.as_bytes()));
    assert!(!packets.contain(secret.as_bytes()), "the body was readable");
    // The list of the ClientHello (RFC 7301, 3.1), which is longer than a packet:
    // one of two neighbours is whole wherever it is cut.
    let ours = [&b"\x0eistio-http/1.1"[..], b"\x05istio\x08http/1.1"];
    assert!(
        ours.iter().any(|names| packets.contain(names)),
        "our ALPN was not offered"
    );
    // The ServerHello's extension supported_versions (RFC 8446, 4.2.1).
    let tls_1_3 = [0x00, 0x2b, 0x00, 0x02, 0x03, 0x04];
    assert!(packets.contain(&tls_1_3), "TLS 1.3 was not agreed on");

    until("the server's sidecar knows who asked", async || {
        (over_mtls(&web.pod().await, &namespace).await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_way_to_address_a_pod_is_mtls() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let (web, headless, client) = tokio::join!(
        server("web").start(&namespace),
        server("headless").headless().start(&namespace),
        server("client").start(&namespace)
    );
    // Port 80 of the Service leads to a port of the pod by its name.
    let named_port = web.url("/");
    let cluster_ip = format!("http://{}:{HTTP_PORT}/", web.host());
    let pod_ip = format!("http://{}:{HTTP_PORT}/", apps::ip(&web.pod().await));
    for url in [named_port, cluster_ip, pod_ip] {
        asks_over_mtls(&namespace, &client, &web, &url).await;
    }
    let url = format!("http://{}:{HTTP_PORT}/", headless.host());
    asks_over_mtls(&namespace, &client, &headless, &url).await;
}

#[tokio::test]
async fn a_pod_reaches_itself_through_its_service_and_its_address() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let web = server("web").start(&namespace).await;
    let pod_ip = format!("http://{}:{HTTP_PORT}/", apps::ip(&web.pod().await));
    for url in [
        web.url("/"),
        pod_ip,
        format!("http://127.0.0.1:{HTTP_PORT}/"),
    ] {
        let reply = web.get(&url).await;
        assert_eq!(reply.status, Some(200), "{url}: {reply:?}");
    }
}

#[tokio::test]
async fn requests_are_spread_over_the_pods_of_a_service() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let (web, client) = tokio::join!(
        server("web").replicas(2).start(&namespace),
        server("client").start(&namespace)
    );
    let url = web.url("/");
    let answered = client
        .run(&["load", "--rate", "100", "--seconds", "2", &url])
        .await;
    let last = answered
        .stdout
        .lines()
        .last()
        .expect("it prints its counts");
    let counts: Value = serde_json::from_str(last).expect("as JSON");
    for pod in web.pods().await {
        let share = counts["pods"][pod.name_any()].as_u64().unwrap_or_default();
        assert!(share > 20, "{} of 200 from {}", share, pod.name_any());
    }
}

#[tokio::test]
async fn a_client_without_a_sidecar_is_served_under_permissive_and_counted() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web").start(&namespace).await;
    let pod = web.pod().await;
    let address = SocketAddr::new(apps::ip(&pod), HTTP_PORT);
    let reply = apps::get(address, "/", &[]).await.unwrap();
    assert_eq!(reply.status, Some(200));
    until("the plaintext is counted", async || {
        let labels = [
            "reporter=\"destination\"",
            "connection_security_policy=\"none\"",
        ];
        (sum(&pod, "istio_requests_total", &labels).await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_client_without_a_sidecar_is_refused_under_strict_with_the_reason() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace_with(STRICT).await;
    let outside = cluster.plain_namespace().await;
    let (web, stranger) = tokio::join!(
        server("web").start(&namespace),
        server("stranger").start(&outside)
    );
    let reply = stranger.get(&web.url("/")).await;
    assert_eq!(reply.status, Some(403), "{reply:?}");
    assert_eq!(reply.headers["bulkhead-reason"], "plaintext_refused");
    assert!(reply.body.contains("STRICT"), "{}", reply.body);
}

#[tokio::test]
async fn a_meshed_client_reaches_a_server_without_a_sidecar() {
    let cluster = beside_others().await;
    let (namespace, outside) = (
        cluster.meshed_namespace().await,
        cluster.plain_namespace().await,
    );
    let (client, web) = tokio::join!(
        server("client").start(&namespace),
        server("web").start(&outside)
    );
    let reply = client.get(&web.url("/")).await;
    assert_eq!(reply.status, Some(200), "{reply:?}");
}

/// A server that speaks first is neither waited for nor cut off.
async fn greets(cluster: &Cluster, annotations: &[(&str, &str)]) -> u64 {
    let namespace = cluster.meshed_namespace_with(annotations).await;
    let (database, client) = tokio::join!(
        server("database").start(&namespace),
        server("client").start(&namespace)
    );
    let address = format!("{}:{GREETING_PORT}", database.host());
    let said = client.run(&["tcp", "--server-first", &address]).await;
    assert!(said.succeeded, "{said:?}");
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    said["greeting_ms"].as_u64().expect("the greeting came")
}

#[tokio::test]
async fn a_server_first_protocol_does_not_stall() {
    let cluster = beside_others().await;
    // Whether or not somebody said that the port is opaque.
    let greeting = GREETING_PORT.to_string();
    for annotations in [
        &[("bulkhead.io/opaque-ports", greeting.as_str())][..],
        STRICT,
    ] {
        let milliseconds = greets(&cluster, annotations).await;
        // The application's own timeout is 10 s; a stall would end there.
        assert!(milliseconds < 5_000, "{annotations:?}: {milliseconds} ms");
    }
}
