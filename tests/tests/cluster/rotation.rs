//! Certificates that are renewed while they are in use.

use std::net::SocketAddr;

use bulkhead_tests::cluster::apps::{
    self, APP_CONTAINER, AppBuilder, Counts, TCP_ECHO_PORT, server,
};
use bulkhead_tests::cluster::{beside_others, until};
use bulkhead_tests::namespace::Namespace;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

/// Renewed within 72 seconds: the CA dates certificates back by another two
/// minutes, and the renewal is due before 80 % of all that is over.
const LIFETIME: &str = "2m";
const COUNTS_PORT: u16 = 9090;

/// Gives an application the sidecar that the webhook would give it, but for the
/// lifetime of its certificate, which no annotation says.
async fn with_short_lived_certificate(namespace: &Namespace, app: AppBuilder) -> AppBuilder {
    let mut asked = app.template();
    asked["metadata"]["name"] = json!("asked");
    asked["metadata"]["labels"]["bulkhead.io/inject"] = json!("enabled");
    let asked: Pod = serde_json::from_value(asked).unwrap();
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pods: Api<Pod> = namespace.api();
    let injected = pods.create(&dry_run, &asked).await.unwrap();
    let mut injected = serde_json::to_value(injected).unwrap();
    let init = injected["spec"]["initContainers"].as_array_mut().unwrap();
    let proxy = init
        .iter_mut()
        .find(|container| container["name"] == "bulkhead-proxy")
        .expect("it was injected");
    let variables = proxy["env"].as_array_mut().unwrap();
    variables.push(json!({"name": "BULKHEAD_CERTIFICATE_LIFETIME", "value": LIFETIME}));
    let spec = &injected["spec"];
    let sidecar = json!({"initContainers": spec["initContainers"], "volumes": spec["volumes"]});
    app.labels(&[("security.istio.io/tlsMode", "istio")])
        .spec(sidecar)
}

/// A load generator, as a pod of its own.
fn load(name: &str, arguments: &[&str]) -> AppBuilder {
    let port = COUNTS_PORT.to_string();
    let mut args: Vec<Value> = ["load", "--rate", "50", "--listen", &port]
        .map(Value::from)
        .into();
    args.extend(arguments.iter().map(|it| json!(it)));
    server(name).container(json!({
        "name": APP_CONTAINER, "args": args, "ports": [],
        "readinessProbe": {"httpGet": {"path": "/counts", "port": COUNTS_PORT}, "periodSeconds": 1},
    }))
}

async fn counts(pod: &Pod) -> Counts {
    let address = SocketAddr::new(apps::ip(pod), COUNTS_PORT);
    let reply = apps::get(address, "/counts", &[]).await.unwrap();
    serde_json::from_str(&reply.body).unwrap()
}

async fn certificates(pod: &Pod) -> f64 {
    let labels = ["outcome=\"success\""];
    apps::sum(pod, "bulkhead_certificate_renewals_total", &labels).await
}

/// Waits until the sidecar of a pod has its third certificate.
async fn renewed_twice(pod: &Pod) {
    for certificate in [1.0, 2.0, 3.0] {
        until("the next certificate is there", async || {
            (certificates(pod).await >= certificate).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn certificates_of_two_minutes_are_rotated_under_load_without_a_failed_request() {
    let cluster = beside_others().await;
    let namespace = cluster.plain_namespace().await;
    let web = with_short_lived_certificate(&namespace, server("web")).await;
    let web = web.start(&namespace).await;
    let tcp = format!("tcp://{}:{TCP_ECHO_PORT}", web.host());
    let url = web.url("/");
    let (kept, fresh) = (
        load("kept", &[&tcp]),
        load("fresh", &["--new-connections", &url]),
    );
    let kept = with_short_lived_certificate(&namespace, kept).await;
    let fresh = with_short_lived_certificate(&namespace, fresh).await;
    let (kept, fresh) = tokio::join!(kept.start(&namespace), fresh.start(&namespace));
    let (kept, fresh, web) = (kept.pod().await, fresh.pod().await, web.pod().await);
    tokio::join!(
        renewed_twice(&web),
        renewed_twice(&kept),
        renewed_twice(&fresh)
    );
    for pod in [&kept, &fresh] {
        let counted = counts(pod).await;
        assert_eq!(counted.failed, 0, "{counted:?}");
        assert!(counted.ok > 1_000, "{counted:?}");
    }
}
