//! A pod with a real Envoy, set up as Istio's sidecar, under the root of this
//! mesh: a peer of our sidecars, as client and as server.
//!
//! ```text
//!  client ─ our sidecar ══mTLS══▶ :8080 envoy ─▶ :18080 workload
//!  web ◀─ our sidecar ◀══mTLS══ envoy :15080 ◀─ workload
//! ```

use std::net::SocketAddr;
use std::path::Path;

use bulkhead_tests::cluster::apps::{self, App, AppBuilder, HTTP_PORT, server, sum};
use bulkhead_tests::cluster::{Cluster, beside_others, until};
use bulkhead_tests::envoy::sidecar::{Files, Sidecar, UPSTREAM_PEER, UPSTREAM_TLS_VERSION};
use bulkhead_tests::namespace::Namespace;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::certificate::issue;

const ENVOY_IMAGE: &str = concat!("ghcr.io/bulkhead/envoy:", env!("CARGO_PKG_VERSION"));
/// Where Envoy finds its settings and its certificate.
const DIRECTORY: &str = "/etc/istio";
pub(crate) const SETTINGS: &str = "config.json";
pub(crate) const KEY: &str = "key.pem";
pub(crate) const CHAIN: &str = "cert-chain.pem";
pub(crate) const ROOTS: &str = "root-cert.pem";
pub(crate) const ACCOUNT: &str = "istio";
/// Where the application is behind Envoy.
const APP_PORT: u16 = 18080;
/// Where Envoy takes the application's HTTP/1.1 and HTTP/2 requests and bytes.
const OUTBOUND_PORTS: [u16; 3] = [15080, 15081, 15082];

/// A pod with Envoy in it, which finds its settings and its certificate in a volume
/// from this source.
pub(crate) fn envoy(source: Value) -> AppBuilder {
    let mut volume = source;
    volume["name"] = json!("istio");
    let envoy = json!({
        "name": "istio-proxy", "image": ENVOY_IMAGE, "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "args": [
            "--config-path", format!("{DIRECTORY}/{SETTINGS}"),
            "--disable-hot-restart", "--concurrency", "1",
        ],
        "volumeMounts": [{"name": "istio", "mountPath": DIRECTORY}],
    });
    server("istio")
        .labels(&[
            ("bulkhead.io/inject", "disabled"),
            ("security.istio.io/tlsMode", "istio"),
        ])
        .container(json!({
            "args": ["serve", "--http", APP_PORT.to_string()],
            "readinessProbe": {"tcpSocket": {"port": HTTP_PORT}, "periodSeconds": 1},
        }))
        .spec(json!({
            "serviceAccountName": ACCOUNT,
            "initContainers": [envoy],
            "volumes": [volume],
        }))
}

/// Starts it with a certificate that it was given, and with this pod of ours as
/// its only way out.
async fn start_envoy<'a>(cluster: &Cluster, namespace: &'a Namespace, upstream: &Pod) -> App<'a> {
    namespace.create_service_account(ACCOUNT).await;
    let source = json!({"secret": {"secretName": "istio"}});
    let app = envoy(source).create(namespace).await;
    // Only a pod that is there can have a token, and with it a certificate. It
    // starts when the Secret is there.
    let pod = until("the Deployment makes its pod", async || {
        app.pods().await.pop()
    })
    .await;
    let certificate = issue(cluster, namespace, ACCOUNT, &pod).await;
    let settings = settings(namespace, upstream).to_string();
    let content = [
        (SETTINGS, settings.as_str()),
        (KEY, &certificate.key),
        (CHAIN, &certificate.chain),
        (ROOTS, &certificate.roots),
    ];
    create_secret(namespace, "istio", &content).await;
    app.ready().await;
    app
}

/// Whom Envoy speaks to, and who may speak to it.
fn our_identity(namespace: &Namespace) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/default", namespace.name())
}

fn istios_identity(namespace: &Namespace) -> String {
    format!(
        "spiffe://cluster.local/ns/{}/sa/{ACCOUNT}",
        namespace.name()
    )
}

/// What Envoy is told, with this pod of ours as its only way out.
pub(crate) fn settings(namespace: &Namespace, upstream: &Pod) -> Value {
    let upstream = (apps::ip(upstream), HTTP_PORT).into();
    let file = |name: &str| Path::new(DIRECTORY).join(name);
    let files = Files {
        key: file(KEY),
        chain: file(CHAIN),
        roots: file(ROOTS),
    };
    let sidecar = Sidecar::new(files, &our_identity(namespace));
    let everywhere = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
    let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let inbound = sidecar.inbound(everywhere(HTTP_PORT), loopback(APP_PORT));
    let outbound = sidecar.outbound(OUTBOUND_PORTS.map(loopback), upstream);
    let all = |one: &Value, other: &Value| -> Vec<Value> {
        let items = [one, other].map(|list| list.as_array().unwrap().clone());
        items.concat()
    };
    json!({"static_resources": {
        "listeners": all(&inbound.0, &outbound.0),
        "clusters": all(&inbound.1, &outbound.1),
    }})
}

pub(crate) async fn create_secret(namespace: &Namespace, name: &str, content: &[(&str, &str)]) {
    let content = content.iter().map(|(key, value)| (*key, json!(value)));
    let content: Value = content.collect();
    let secret = json!({"metadata": {"name": name}, "stringData": content});
    let secret: Secret = serde_json::from_value(secret).unwrap();
    namespace
        .api()
        .create(&PostParams::default(), &secret)
        .await
        .expect("the administrator may create Secrets");
}

/// Waits until the sidecar of a pod has counted a request over mesh mTLS.
async fn counts(pod: &Pod, label: &str) {
    let security = "connection_security_policy=\"mutual_tls\"";
    until("our sidecar counts the request", async || {
        let labels = [security, label, "response_code=\"200\""];
        (sum(pod, "istio_requests_total", &labels).await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_with_istios_envoy_is_a_peer_as_server_and_as_client() {
    let cluster = beside_others().await;
    let strict = [("bulkhead.io/mtls-mode", "STRICT")];
    let namespace = cluster.meshed_namespace_with(&strict).await;
    let (web, client) = tokio::join!(
        server("web").start(&namespace),
        server("client").start(&namespace)
    );
    let istio = start_envoy(&cluster, &namespace, &web.pod().await).await;
    talk_both_ways(&namespace, [&web, &client], &istio).await;
}

/// A client and a server of ours have mTLS with Envoy, and each side knows whom it
/// talks to.
pub(crate) async fn talk_both_ways(namespace: &Namespace, ours: [&App<'_>; 2], istio: &App<'_>) {
    let [web, client] = ours;
    let (ours, theirs) = (our_identity(namespace), istios_identity(namespace));

    // Envoy tells its application who called; it lets in nobody without mTLS.
    let reply = client.get(&istio.url("/")).await;
    assert_eq!(reply.status, Some(200), "{reply:?}");
    assert!(reply.body.contains(&format!("URI={ours}")), "{reply:?}");
    let destination = format!("destination_principal=\"{theirs}\"");
    counts(&client.pod().await, &destination).await;

    // It tells its application whom it called.
    let [http1, _, _] = OUTBOUND_PORTS;
    let reply = istio.get(&format!("http://127.0.0.1:{http1}/")).await;
    assert_eq!(reply.status, Some(200), "{reply:?}");
    assert_eq!(reply.headers[UPSTREAM_PEER], ours);
    assert_eq!(reply.headers[UPSTREAM_TLS_VERSION], "TLSv1.3");
    counts(&web.pod().await, &format!("source_principal=\"{theirs}\"")).await;
}
