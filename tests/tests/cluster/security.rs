//! What a cluster demands of pods, and what it is told of those that lack their
//! sidecar.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use bulkhead::check::check;
use bulkhead::check::finding::Finding;
use bulkhead_core::ports::{CONTROL_PLANE, MONITORING};
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::cluster::apps::{self, HTTP_PORT, TCP_ECHO_PORT, WORKLOAD_IMAGE, server, sum};
use bulkhead_tests::cluster::{Cluster, SYSTEM_NAMESPACE, alone, becomes, beside_others, until};
use bulkhead_tests::metrics::sum_of;
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::afterwards::afterwards;

/// What Kubernetes' level `restricted` wants of a container.
fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "runAsNonRoot": true,
        "runAsUser": 65532,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// A namespace as docs/install.md says.
async fn restricted_namespace(cluster: &Cluster) -> Namespace {
    let labels = [
        ("bulkhead.io/inject", "enabled"),
        ("pod-security.kubernetes.io/enforce", "privileged"),
        ("pod-security.kubernetes.io/warn", "restricted"),
        ("pod-security.bulkhead.io/enforce", "restricted"),
    ];
    cluster.namespace(&labels, &[]).await
}

#[tokio::test]
async fn meshed_pods_run_where_pod_security_restricted_is_enforced_as_the_chart_does_it() {
    let cluster = beside_others().await;
    let namespace = restricted_namespace(&cluster).await;
    let secure = json!({"securityContext": restricted()});
    let (web, client) = tokio::join!(
        server("web").container(secure.clone()).start(&namespace),
        server("client").container(secure.clone()).start(&namespace)
    );
    assert!(is_injected(&web.pod().await));
    let reply = client.get(&web.url("/")).await;
    assert_eq!(reply.status, Some(200), "{reply:?}");
}

#[tokio::test]
async fn an_ordinary_pod_with_net_admin_is_refused_there() {
    let cluster = beside_others().await;
    let namespace = restricted_namespace(&cluster).await;
    let mut net_admin = restricted();
    net_admin["capabilities"]["add"] = json!(["NET_ADMIN"]);
    let container = |name: &str, security: &Value| json!({"name": name, "image": WORKLOAD_IMAGE, "securityContext": security});
    let app = container("app", &restricted());
    let ordinary = json!({"containers": [container("app", &net_admin)]});
    // The name of the exception does not help where the image is another.
    let borrowed_name = json!({
        "containers": [app], "initContainers": [container("bulkhead-init", &net_admin)],
    });
    let (meshed, out) = ("enabled", "disabled");
    for (name, inject, spec) in [
        ("meshed", meshed, &ordinary),
        ("not-meshed", out, &ordinary),
        ("borrowed-name", out, &borrowed_name),
    ] {
        let pod = a_pod(name).labels(&[("bulkhead.io/inject", inject)]);
        let refused = namespace.create_pod(&pod.spec(spec.clone()).build()).await;
        let refused = refused.expect_err("it is refused").to_string();
        let rule = "pod-security.bulkhead.io/enforce";
        assert!(
            refused.contains(rule) && refused.contains("capabilities"),
            "{name}: {refused}"
        );
    }
    // Nothing but the capability was wrong with them.
    let harmless = a_pod("harmless").spec(json!({"containers": [app]})).build();
    namespace.create_pod(&harmless).await.unwrap();
}

/// Drops what pods send each other but what was let through, until it goes.
struct DefaultDeny;

/// The table's name in nftables.
const TABLE: &str = "bulkhead-tests-default-deny";

impl DefaultDeny {
    /// Lets through what the NetworkPolicies of docs/install.md do (the CA and
    /// control, DNS), and these ports of every pod.
    fn except(control_plane: &[IpAddr], ports: &[u16]) -> Self {
        let list = |items: Vec<String>| items.join(", ");
        let ours = list(control_plane.iter().map(IpAddr::to_string).collect());
        let ports = list(ports.iter().map(u16::to_string).collect());
        let rules = format!(
            "table inet {TABLE} {{
                chain forward {{
                    type filter hook forward priority 0; policy drop;
                    ct state established,related accept
                    meta l4proto {{ tcp, udp }} th dport 53 accept
                    ip daddr {{ {ours} }} tcp dport {CONTROL_PLANE} accept
                    tcp dport {{ {ports} }} accept
                }}
            }}"
        );
        let nft = Command::new("nft").arg(&rules).status();
        assert!(nft.expect("nft can be run").success(), "{rules}");
        Self
    }
}

impl Drop for DefaultDeny {
    fn drop(&mut self) {
        let deleted = Command::new("nft")
            .args(["delete", "table", "inet", TABLE])
            .status();
        let is_gone = deleted.is_ok_and(|status| status.success());
        // A second panic would hide the first.
        assert!(
            is_gone || std::thread::panicking(),
            "{TABLE} is still there"
        );
    }
}

#[tokio::test]
async fn where_everything_is_denied_but_what_the_policies_allow_the_mesh_works() {
    let cluster = alone().await;
    let strict = [("bulkhead.io/mtls-mode", "STRICT")];
    let namespace = cluster.meshed_namespace_with(&strict).await;
    let pods: Api<Pod> = cluster.system().api();
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=bulkhead");
    let ours = pods.list(&ours).await.unwrap().items;
    let ours: Vec<_> = ours.iter().map(apps::ip).collect();
    let denied = DefaultDeny::except(&ours, &[HTTP_PORT]);
    // They get certificates and learn of each other with the rules in force.
    let (web, client) = tokio::join!(
        server("web").start(&namespace),
        server("client").start(&namespace)
    );
    let reply = client.get(&web.url("/")).await;
    assert_eq!(reply.status, Some(200), "{reply:?}");
    let pod = web.pod().await;
    until("the request was mTLS", async || {
        let labels = [
            "reporter=\"destination\"",
            "connection_security_policy=\"mutual_tls\"",
        ];
        (sum(&pod, "istio_requests_total", &labels).await >= 1.0).then_some(())
    })
    .await;
    // What nobody allowed is dropped, so it is the rules that let this through.
    let echo = format!("{}:{TCP_ECHO_PORT}", apps::ip(&pod));
    let talk = ["tcp", "--timeout", "2", &echo];
    let said = client.run(&talk).await;
    assert!(!said.succeeded, "{said:?}");
    drop(denied);
    let said = client.run(&talk).await;
    assert!(said.succeeded, "{said:?}");
}

/// Has the webhook gone with its registration for as long as `test` takes, as
/// on the worst of days.
async fn without_webhook<T>(cluster: &Cluster, test: impl Future<Output = T>) -> T {
    let name = "bulkhead-webhook";
    let deployments: Api<Deployment> = cluster.system().api();
    let replicas = deployments.get(name).await.unwrap().spec.unwrap().replicas;
    let scaled = |replicas| Patch::Merge(json!({"spec": {"replicas": replicas}}));
    let parameters = PatchParams::default();
    let registrations: Api<MutatingWebhookConfiguration> = Api::all(cluster.client().clone());
    let registration = "bulkhead-injector";
    let without = async {
        let down = scaled(Some(0));
        deployments.patch(name, &parameters, &down).await.unwrap();
        let pods: Api<Pod> = cluster.system().api();
        let webhook = ListParams::default().labels("app.kubernetes.io/name=bulkhead-webhook");
        until("the webhook is gone", async || {
            let pods = pods.list(&webhook).await.unwrap();
            pods.items.is_empty().then_some(())
        })
        .await;
        let deletion = DeleteParams::default();
        registrations.delete(registration, &deletion).await.unwrap();
        test.await
    };
    let put_back = async {
        let up = scaled(replicas);
        deployments.patch(name, &parameters, &up).await.unwrap();
        let is_ready = |deployment: Option<&Deployment>| {
            let status = deployment.and_then(|it| it.status.as_ref());
            status.and_then(|status| status.ready_replicas) == replicas
        };
        becomes(&deployments, name, "ready again", is_ready).await;
        let is_there = |found: Option<&MutatingWebhookConfiguration>| found.is_some();
        becomes(&registrations, registration, "written again", is_there).await;
    };
    afterwards(without, put_back).await
}

/// What `kubectl` says when it stores a pod that does nothing.
fn kubectl_creates_pod(namespace: &Namespace, name: &str) -> String {
    let kubectl = Command::new("kubectl")
        .args(["--namespace", namespace.name(), "run", name])
        .args(["--image", WORKLOAD_IMAGE, "--", "serve", "--http", "8080"])
        .stdin(Stdio::null())
        .output()
        .expect("scripts/cluster has kubectl in the PATH");
    let said = String::from_utf8_lossy(&kubectl.stderr).into_owned();
    assert!(kubectl.status.success(), "{said}");
    said
}

/// What `bulkhead check` finds about pods.
async fn findings(cluster: &Cluster) -> Vec<Finding> {
    let asked = bulkhead::cluster::Cluster {
        client: cluster.client().clone(),
        system_namespace: SYSTEM_NAMESPACE.to_owned(),
    };
    let report = check(&asked, None, Clock::system().now()).await;
    let findings = report.findings.into_iter();
    findings.filter(|found| found.check == "pods").collect()
}

/// How many pods of a namespace lack their sidecar, as the replica of control
/// counts that leads.
async fn missing(cluster: &Cluster, namespace: &Namespace) -> f64 {
    let pods: Api<Pod> = cluster.system().api();
    let control = ListParams::default().labels("app.kubernetes.io/name=bulkhead-control");
    let mut most = 0.0_f64;
    for pod in pods.list(&control).await.unwrap() {
        let address = (apps::ip(&pod), MONITORING).into();
        let reply = apps::get(address, "/metrics", &[]).await.unwrap();
        let label = format!("namespace=\"{}\"", namespace.name());
        most = most.max(sum_of(
            &reply.body,
            "bulkhead_pods_missing_sidecar",
            &[&label],
        ));
    }
    most
}

#[tokio::test]
async fn a_pod_stored_without_its_sidecar_draws_a_warning_is_counted_and_named() {
    let cluster = alone().await;
    let namespace = cluster.meshed_namespace().await;
    let name = "lacks-its-sidecar";
    let said = without_webhook(&cluster, async { kubectl_creates_pod(&namespace, name) }).await;
    assert!(
        said.contains("Warning:") && said.contains("stored without one"),
        "{said}"
    );
    let pods: Api<Pod> = namespace.api();
    assert!(!is_injected(&pods.get(name).await.unwrap()));
    until("control counts it", async || {
        (missing(&cluster, &namespace).await == 1.0).then_some(())
    })
    .await;
    let found = findings(&cluster).await;
    let named = found
        .iter()
        .find(|found| found.message.contains(name))
        .unwrap_or_else(|| panic!("it is not named: {found:#?}"));
    assert!(named.is_problem() && named.remedy.is_some(), "{named:?}");

    // Deleted and made again, it is what it should be, and nobody warns.
    let old = pods.get(name).await.unwrap();
    namespace.delete_pod(&old).await;
    let said = kubectl_creates_pod(&namespace, name);
    assert!(!said.contains("Warning:"), "{said}");
    assert!(is_injected(&pods.get(name).await.unwrap()));
    until("control counts it no more", async || {
        (missing(&cluster, &namespace).await == 0.0).then_some(())
    })
    .await;
}
