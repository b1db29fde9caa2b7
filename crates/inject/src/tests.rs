//! What injection does, told by pods that go in and come out.

use bulkhead_core::sidecar::default_trust_domain;
use serde_json::json;

use super::*;

mod contents;
mod decisions;
mod inverse;
mod other_webhooks;
mod probes;
mod refusals;
mod workload_api;

fn defaults() -> Defaults {
    Defaults::new(PodSettings::new(
        default_trust_domain(),
        "registry.example/bulkhead:1".to_owned(),
    ))
}

/// A namespace of this label, or of none where it is empty.
fn namespace(label: &str) -> Namespace {
    let mut namespace = Namespace {
        name: "shop".to_owned(),
        ..Namespace::default()
    };
    if let Some((name, value)) = label.split_once('=') {
        namespace.labels.insert(name.to_owned(), value.to_owned());
    }
    namespace
}

fn enabled() -> Namespace {
    namespace("bulkhead.io/inject=enabled")
}

/// A pod of one container, which `container` adds to.
fn pod_with(container: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "cart"},
        "spec": {"containers": [{"name": "app", "image": "shop/cart:1"}]},
    });
    for (field, value) in container.as_object().into_iter().flatten() {
        pod["spec"]["containers"][0][field] = value.clone();
    }
    pod
}

fn pod() -> Value {
    pod_with(json!({}))
}

/// A pod of these annotations.
fn annotated(annotations: Value) -> Value {
    let mut pod = pod();
    pod["metadata"]["annotations"] = annotations;
    pod
}

fn injection(pod: &Value, namespace: &Namespace) -> Injection {
    match inject(pod, namespace, &defaults()) {
        Decision::Inject(injection) => injection,
        other => panic!("the pod is to be injected: {other:?}"),
    }
}

/// The pod that comes of it, and whether that took a patch.
fn injected_by(pod: &Value, namespace: &Namespace, defaults: &Defaults) -> (Value, bool) {
    let mut in_place = pod.clone();
    let decisions = (
        inject(pod, namespace, defaults),
        inject_in_place(&mut in_place, namespace, defaults),
    );
    let (Decision::Inject(injection), Decision::Inject(_)) = decisions else {
        panic!("the pod is to be injected: {decisions:?}");
    };
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &injection.patch).unwrap();
    assert_eq!(patched, in_place, "the patch makes the pod");
    (in_place, !injection.patch.0.is_empty())
}

fn injected(pod: &Value) -> Value {
    injected_by(pod, &enabled(), &defaults()).0
}

fn refusal(pod: &Value) -> Refusal {
    match inject(pod, &enabled(), &defaults()) {
        Decision::Refuse(refusal) => refusal,
        other => panic!("the pod is to be refused: {other:?}"),
    }
}

/// The container of this name, wherever it is.
fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| pod::list(pod["spec"].as_object().unwrap(), list))
        .find(|container| pod::name(container) == Some(name))
        .unwrap()
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    pod::list(pod["spec"].as_object().unwrap(), list)
        .iter()
        .map(|item| pod::name(item).unwrap().to_owned())
        .collect()
}

/// The value that a container of the pod gets from a variable.
fn variable(pod: &Value, container_name: &str, name: &str) -> Option<String> {
    pod::list(container(pod, container_name).as_object().unwrap(), "env")
        .iter()
        .find(|variable| pod::name(variable) == Some(name))
        .map(|variable| sidecar::unescape(variable["value"].as_str().unwrap()))
}

/// What the proxy of the pod reads when it starts.
fn sidecar_config(pod: &Value) -> bulkhead_core::sidecar::SidecarConfig {
    let lookup = |name: &str| match name {
        "BULKHEAD_NAMESPACE" => Some("shop".to_owned()),
        "BULKHEAD_SERVICE_ACCOUNT" => Some("cart".to_owned()),
        "BULKHEAD_POD_NAME" => Some("cart-0".to_owned()),
        "BULKHEAD_POD_IPS" => Some("192.0.2.1,2001:db8::1".to_owned()),
        _ => variable(pod, PROXY_CONTAINER, name),
    };
    bulkhead_core::sidecar::SidecarConfig::from_env(&lookup).unwrap()
}
