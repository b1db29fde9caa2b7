//! Who may connect, as PeerAuthentication says it, to pods that run already.

use std::net::SocketAddr;

use bulkhead_crds::istio;
use bulkhead_tests::cluster::apps::{self, App, HTTP_PORT, Load, TCP_ECHO_PORT, server, sum};
use bulkhead_tests::cluster::{Cluster, SYSTEM_NAMESPACE, alone, beside_others, until};
use bulkhead_tests::namespace::Namespace;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::afterwards::afterwards;

async fn apply(cluster: &Cluster, namespace: &str, name: &str, spec: Value) {
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": istio::peer_authentication::KIND,
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    });
    cluster.apply(object).await;
}

async fn delete(cluster: &Cluster, namespace: &str, name: &str) {
    let kind = istio::peer_authentication::api_resource("v1");
    let policies: Api<DynamicObject> =
        Api::namespaced_with(cluster.client().clone(), namespace, &kind);
    policies
        .delete(name, &DeleteParams::default())
        .await
        .expect("the administrator may delete policies");
}

/// Whether a port of a pod serves a client without a sidecar.
async fn serves_plaintext(pod: &Pod, port: u16) -> bool {
    let address = SocketAddr::new(apps::ip(pod), port);
    if port == HTTP_PORT {
        // A connection that a policy no longer permits is ended, also with a request in hand.
        let reply = apps::get(address, "/", &[]).await;
        return reply.is_ok_and(|reply| reply.status == Some(200));
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = BufReader::new(stream);
    // Refused, it is closed or reset before or after these words.
    if stream.get_mut().write_all(b"hello\n").await.is_err() {
        return false;
    }
    let mut line = String::new();
    let read = stream.read_line(&mut line).await;
    read.is_ok() && line == "hello\n"
}

/// Waits until each of these ports serves plaintext, or refuses it.
async fn becomes(what: &str, expected: &[(&Pod, u16, bool)]) {
    for (pod, port, serves) in expected {
        let name = pod.name_any();
        let what = format!("{what}: {name}:{port} serves plaintext: {serves}");
        until(&what, async || {
            (serves_plaintext(pod, *port).await == *serves).then_some(())
        })
        .await;
    }
}

/// Which pods there are, and how often their containers were started again.
async fn lives(app: &App<'_>) -> Vec<(Option<String>, i32)> {
    let pods = app.pods().await;
    let life = |pod: &Pod| {
        let status = pod.status.as_ref().unwrap();
        let init = status.init_container_statuses.iter().flatten();
        let containers = init.chain(status.container_statuses.iter().flatten());
        (pod.uid(), containers.map(|it| it.restart_count).sum())
    };
    pods.iter().map(life).collect()
}

/// One connection over mesh mTLS that is kept, with a line every 20 ms.
async fn open_connection<'a>(namespace: &'a Namespace, server: &App<'_>) -> Load<'a> {
    let address = format!("tcp://{}:{TCP_ECHO_PORT}", server.host());
    Load::start(namespace, "kept", &address).await
}

#[tokio::test]
async fn the_policies_of_namespace_workload_and_port_overrule_each_other_on_running_pods() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let permissive = [("bulkhead.io/mtls-mode", "PERMISSIVE")];
    let (web, other) = tokio::join!(
        server("web").start(&namespace),
        server("other").annotations(&permissive).start(&namespace)
    );
    let open = open_connection(&namespace, &web).await;
    let before = (lives(&web).await, lives(&other).await);
    let (web_pod, other_pod) = (&web.pod().await, &other.pod().await);
    let name = namespace.name();
    becomes("nobody says anything", &[(web_pod, HTTP_PORT, true)]).await;

    let strict = json!({"mtls": {"mode": "STRICT"}});
    apply(&cluster, name, "default", strict).await;
    let everything_refuses = [
        (web_pod, HTTP_PORT, false),
        (web_pod, TCP_ECHO_PORT, false),
        // Though an annotation of its own says otherwise.
        (other_pod, HTTP_PORT, false),
    ];
    becomes("the namespace is STRICT", &everything_refuses).await;
    let address = SocketAddr::new(apps::ip(web_pod), HTTP_PORT);
    let refused = apps::get(address, "/", &[]).await.unwrap();
    assert_eq!(refused.headers["bulkhead-reason"], "plaintext_refused");

    let selector = json!({"matchLabels": {"app": "web"}});
    let workload = json!({"selector": selector, "mtls": {"mode": "PERMISSIVE"}});
    apply(&cluster, name, "web", workload).await;
    let one_workload_serves = [
        (web_pod, HTTP_PORT, true),
        (web_pod, TCP_ECHO_PORT, true),
        (other_pod, HTTP_PORT, false),
    ];
    becomes("the workload is PERMISSIVE", &one_workload_serves).await;

    let port = json!({
        "selector": selector, "mtls": {"mode": "PERMISSIVE"},
        "portLevelMtls": {HTTP_PORT.to_string(): {"mode": "STRICT"}},
    });
    apply(&cluster, name, "web", port).await;
    let one_port_refuses = [
        (web_pod, HTTP_PORT, false),
        (web_pod, TCP_ECHO_PORT, true),
        (other_pod, HTTP_PORT, false),
    ];
    becomes("one port is STRICT", &one_port_refuses).await;

    delete(&cluster, name, "web").await;
    becomes("only the namespace speaks again", &everything_refuses).await;
    delete(&cluster, name, "default").await;
    becomes("nobody says anything again", &[(web_pod, HTTP_PORT, true)]).await;

    open.goes_on(20).await;
    // A connection that was dropped would be counted.
    open.has_not_failed().await;
    assert_eq!((lives(&web).await, lives(&other).await), before);
}

#[tokio::test]
async fn the_meshs_policy_holds_where_no_namespace_says_otherwise() {
    let cluster = alone().await;
    let (quiet, outspoken) = (
        cluster.meshed_namespace().await,
        cluster.meshed_namespace().await,
    );
    let (web, other) = tokio::join!(
        server("web").start(&quiet),
        server("other").start(&outspoken)
    );
    let open = open_connection(&quiet, &web).await;
    let (web_pod, other_pod) = (&web.pod().await, &other.pod().await);
    let mesh = "whole-mesh";
    let policies = async {
        let strict = json!({"mtls": {"mode": "STRICT"}});
        apply(&cluster, SYSTEM_NAMESPACE, mesh, strict).await;
        let both_refuse = [(web_pod, HTTP_PORT, false), (other_pod, HTTP_PORT, false)];
        becomes("the mesh is STRICT", &both_refuse).await;
        let permissive = json!({"mtls": {"mode": "PERMISSIVE"}});
        apply(&cluster, outspoken.name(), "default", permissive).await;
        let one_serves = [(other_pod, HTTP_PORT, true), (web_pod, HTTP_PORT, false)];
        becomes("one namespace is PERMISSIVE", &one_serves).await;
        let unset = json!({"mtls": {"mode": "UNSET"}});
        apply(&cluster, outspoken.name(), "default", unset).await;
        becomes("it inherits again", &both_refuse).await;
    };
    afterwards(policies, delete(&cluster, SYSTEM_NAMESPACE, mesh)).await;
    becomes("nobody says anything again", &[(web_pod, HTTP_PORT, true)]).await;
    open.goes_on(20).await;
    open.has_not_failed().await;
}

#[tokio::test]
async fn clients_of_a_port_that_is_disabled_speak_plaintext_to_it() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web").start(&namespace).await;
    let load = Load::start(&namespace, "load", &web.url("/")).await;
    let pod = web.pod().await;
    let served = async |security: &str| {
        let security = format!("connection_security_policy=\"{security}\"");
        let labels = ["reporter=\"destination\"", &security];
        sum(&pod, "istio_requests_total", &labels).await
    };
    until("the load is mTLS", async || {
        (served("mutual_tls").await > 0.0).then_some(())
    })
    .await;
    assert_eq!(served("none").await, 0.0);
    let disabled = json!({
        "selector": {"matchLabels": {"app": "web"}},
        "portLevelMtls": {HTTP_PORT.to_string(): {"mode": "DISABLE"}},
    });
    apply(&cluster, namespace.name(), "web", disabled).await;
    until("the load is plaintext", async || {
        (served("none").await > 50.0).then_some(())
    })
    .await;
    load.has_not_failed().await;
}
