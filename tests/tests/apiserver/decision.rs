//! Whether a pod is injected, row by row, as the API server stores it.

use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use serde_json::{Value, json};

use crate::cluster::{Cluster, SYSTEM_NAMESPACE, injects_into};

type Pairs = &'static [(&'static str, &'static str)];

/// Who says what about one pod.
#[derive(Default)]
struct Row {
    what: &'static str,
    namespace_labels: Pairs,
    namespace_annotations: Pairs,
    labels: Pairs,
    annotations: Pairs,
    spec: Value,
}

const ON: Pairs = &[("bulkhead.io/inject", "enabled")];
const OFF: Pairs = &[("bulkhead.io/inject", "disabled")];

async fn assert_rows(injected: bool, rows: Vec<Row>) {
    let client = Cluster::shared().await.client().await;
    for row in rows {
        let namespace =
            Namespace::create(&client, row.namespace_labels, row.namespace_annotations).await;
        if !row.namespace_annotations.is_empty() {
            // Selectors do not see them, so the webhook has to list the
            // namespace first.
            injects_into(&namespace).await;
        }
        let pod = a_pod("pod")
            .labels(row.labels)
            .annotations(row.annotations)
            .spec(row.spec);
        let stored = namespace.create_pod(&pod.build()).await;
        let stored = stored.unwrap_or_else(|error| panic!("{}: {error}", row.what));
        assert_eq!(is_injected(&stored), injected, "{}", row.what);
    }
}

#[tokio::test]
async fn pods_that_no_sidecar_could_serve_are_left_alone() {
    let host_network = || json!({"hostNetwork": true});
    assert_rows(
        false,
        vec![
            Row {
                what: "host network in a namespace that asks",
                namespace_labels: ON,
                spec: host_network(),
                ..Row::default()
            },
            Row {
                what: "host network and a pod that asks",
                labels: ON,
                spec: host_network(),
                ..Row::default()
            },
            Row {
                what: "Windows by its operating system",
                namespace_labels: ON,
                spec: json!({"os": {"name": "windows"}}),
                ..Row::default()
            },
            Row {
                what: "Windows by its node selector",
                labels: ON,
                spec: json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
                ..Row::default()
            },
        ],
    )
    .await;
}

#[tokio::test]
async fn a_pods_label_decides_before_anything_else() {
    assert_rows(
        true,
        vec![
            Row {
                what: "enabled, and nobody else says anything",
                labels: ON,
                ..Row::default()
            },
            Row {
                what: "true",
                labels: &[("bulkhead.io/inject", "true")],
                ..Row::default()
            },
            Row {
                what: "enabled against the annotation and the namespace",
                namespace_labels: OFF,
                labels: ON,
                annotations: OFF,
                ..Row::default()
            },
            Row {
                what: "Istio's label",
                labels: &[("sidecar.istio.io/inject", "true")],
                ..Row::default()
            },
        ],
    )
    .await;
    assert_rows(
        false,
        vec![
            Row {
                what: "disabled against the annotation and the namespace",
                namespace_labels: ON,
                labels: OFF,
                annotations: ON,
                ..Row::default()
            },
            Row {
                what: "false",
                namespace_labels: ON,
                labels: &[("bulkhead.io/inject", "false")],
                ..Row::default()
            },
            Row {
                what: "Istio's label",
                namespace_labels: ON,
                labels: &[("sidecar.istio.io/inject", "false")],
                ..Row::default()
            },
            Row {
                what: "our label against Istio's",
                namespace_labels: ON,
                labels: &[
                    ("bulkhead.io/inject", "disabled"),
                    ("sidecar.istio.io/inject", "true"),
                ],
                ..Row::default()
            },
        ],
    )
    .await;
}

#[tokio::test]
async fn a_pods_annotation_decides_before_its_namespace() {
    assert_rows(
        true,
        vec![
            Row {
                what: "enabled, and nobody else says anything",
                annotations: ON,
                ..Row::default()
            },
            Row {
                what: "enabled against the namespace",
                namespace_labels: OFF,
                annotations: ON,
                ..Row::default()
            },
            Row {
                what: "Istio's annotation",
                annotations: &[("sidecar.istio.io/inject", "true")],
                ..Row::default()
            },
            Row {
                what: "Linkerd's annotation",
                annotations: &[("linkerd.io/inject", "enabled")],
                ..Row::default()
            },
            Row {
                what: "Linkerd's third value",
                annotations: &[("linkerd.io/inject", "ingress")],
                ..Row::default()
            },
        ],
    )
    .await;
    assert_rows(
        false,
        vec![
            Row {
                what: "disabled against the namespace",
                namespace_labels: ON,
                annotations: OFF,
                ..Row::default()
            },
            Row {
                what: "Istio's annotation against Istio's label of the namespace",
                namespace_labels: &[("istio-injection", "enabled")],
                annotations: &[("sidecar.istio.io/inject", "false")],
                ..Row::default()
            },
            Row {
                what: "our annotation against Linkerd's",
                annotations: &[
                    ("bulkhead.io/inject", "disabled"),
                    ("linkerd.io/inject", "enabled"),
                ],
                ..Row::default()
            },
        ],
    )
    .await;
}

#[tokio::test]
async fn a_namespaces_label_decides_where_its_pods_say_nothing() {
    assert_rows(
        true,
        vec![
            Row {
                what: "enabled",
                namespace_labels: ON,
                ..Row::default()
            },
            Row {
                what: "Istio's label",
                namespace_labels: &[("istio-injection", "enabled")],
                ..Row::default()
            },
            Row {
                what: "Linkerd's name as a label",
                namespace_labels: &[("linkerd.io/inject", "enabled")],
                ..Row::default()
            },
            Row {
                what: "our label against Istio's",
                namespace_labels: &[
                    ("bulkhead.io/inject", "enabled"),
                    ("istio-injection", "disabled"),
                ],
                ..Row::default()
            },
        ],
    )
    .await;
    assert_rows(
        false,
        vec![
            Row {
                what: "disabled",
                namespace_labels: OFF,
                ..Row::default()
            },
            Row {
                what: "our label against Istio's",
                namespace_labels: &[
                    ("bulkhead.io/inject", "disabled"),
                    ("istio-injection", "enabled"),
                ],
                ..Row::default()
            },
        ],
    )
    .await;
}

#[tokio::test]
async fn a_namespaces_annotation_decides_where_nothing_else_does() {
    assert_rows(
        true,
        vec![
            Row {
                what: "enabled",
                namespace_annotations: ON,
                ..Row::default()
            },
            Row {
                what: "Linkerd's annotation",
                namespace_annotations: &[("linkerd.io/inject", "enabled")],
                ..Row::default()
            },
        ],
    )
    .await;
    assert_rows(
        false,
        vec![Row {
            what: "disabled by the pod",
            namespace_annotations: ON,
            labels: OFF,
            ..Row::default()
        }],
    )
    .await;
}

#[tokio::test]
async fn where_nobody_says_anything_nothing_is_injected() {
    assert_rows(
        false,
        vec![Row {
            what: "silence",
            ..Row::default()
        }],
    )
    .await;
}

#[tokio::test]
async fn what_is_kubernetes_own_or_ours_is_left_alone_even_if_it_asks() {
    let client = Cluster::shared().await.client().await;
    for name in ["kube-system", "kube-public", "kube-node-lease"] {
        let namespace = Namespace::existing(&client, name);
        namespace.ready().await;
        let pod = a_pod("asks").labels(ON).annotations(ON).build();
        let stored = namespace.create_pod(&pod).await.unwrap();
        assert!(!is_injected(&stored), "{name}");
    }

    let namespace = Namespace::existing(&client, SYSTEM_NAMESPACE);
    let own = &[
        ("app.kubernetes.io/part-of", "bulkhead"),
        ("bulkhead.io/inject", "enabled"),
    ];
    let pod = a_pod("control").labels(own).build();
    let stored = namespace.create_pod(&pod).await.unwrap();
    assert!(!is_injected(&stored), "a pod of Bulkhead itself");
}
