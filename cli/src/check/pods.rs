//! Pods without the sidecar that they should have, as the webhook decides, and
//! pods whose sidecar is of another version.

use std::collections::{BTreeMap, HashMap};

use bulkhead_core::annotation::STATUS;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_inject::{Decision, Defaults, Namespace, PROXY_CONTAINER, inject};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use serde_json::Value;

use super::finding::Finding;
use super::{Look, a_few, list, registration};

const CHECK: &str = "pods";
/// What the API server notes on a pod that it created while injection was off.
const STOPPED: &str = "bulkhead.io/injection-stopped";
/// The entry of the registration for pods that nobody said anything about.
const BY_DEFAULT: &str = "default.inject.bulkhead.io";

/// What is wrong with a pod.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Fault {
    /// It asks for a sidecar and has none.
    Missing,
    /// It was created while injection was off.
    Stopped,
    /// It would be refused if it were created now.
    Refused(String),
    /// Its sidecar is of this version.
    OtherVersion(String),
}

/// The pods of one owner that have the same fault.
type Groups = BTreeMap<(Fault, String, String), Vec<String>>;

/// Finds them.
pub(super) async fn pods(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    let webhooks = registration::webhooks(look).await?.unwrap_or_default();
    let defaults = Defaults {
        inject_by_default: webhooks.iter().any(|webhook| webhook.name == BY_DEFAULT),
        system_namespace: look.cluster.system_namespace.clone(),
        // Of a pod as it would be only whether it has a sidecar is looked at.
        ..Defaults::new(PodSettings::new(
            default_trust_domain(),
            "unused".to_owned(),
        ))
    };
    let namespaces: HashMap<String, Namespace> = look
        .namespaces
        .iter()
        .map(|found| (found.name_any(), namespace(found)))
        .collect();
    let all = list(Api::<Pod>::all(look.cluster.client.clone())).await?;
    let (mut groups, mut with_sidecar) = (Groups::new(), 0);
    for pod in all.iter().filter(|pod| runs(pod)) {
        let own = pod.namespace().unwrap_or_default();
        let fault = match namespaces.get(&own) {
            Some(_) if is_injected(pod) => {
                with_sidecar += 1;
                version(pod)
                    .filter(|version| version != env!("CARGO_PKG_VERSION"))
                    .map(Fault::OtherVersion)
            }
            Some(namespace) => fault(pod, namespace, &defaults),
            None => None,
        };
        if let Some(fault) = fault {
            let group = groups.entry((fault, own, owner(pod))).or_default();
            group.push(pod.name_any());
        }
    }
    let mut findings: Vec<_> = groups.into_iter().map(finding).collect();
    if !findings.iter().any(Finding::is_problem) {
        let message = format!("no pod lacks its sidecar; {with_sidecar} have one");
        findings.push(Finding::ok(CHECK, message));
    }
    Ok(findings)
}

fn fault(pod: &Pod, namespace: &Namespace, defaults: &Defaults) -> Option<Fault> {
    let annotations = pod.annotations();
    if annotations.contains_key(STOPPED) {
        return Some(Fault::Stopped);
    }
    let document = serde_json::to_value(pod).ok()?;
    match inject(&document, namespace, defaults) {
        Decision::Inject(_) => Some(Fault::Missing),
        Decision::Refuse(refusal) => Some(Fault::Refused(refusal.message)),
        Decision::Skip(_) => None,
    }
}

fn finding(((fault, namespace, owner), pods): ((Fault, String, String), Vec<String>)) -> Finding {
    let count = pods.len();
    let who = format!("{namespace}: {count} of {owner} ({})", a_few(&pods));
    let restart = restart(&namespace, &owner);
    match fault {
        Fault::Missing => Finding::failed(CHECK, format!("{who} should have a sidecar and do not"))
            .remedy(restart),
        Fault::Stopped => {
            let message =
                format!("{who} have no sidecar: injection was off when they were created");
            let once_on = format!("once injection is on again (`bulkhead on`): {restart}");
            Finding::failed(CHECK, message).remedy(once_on)
        }
        Fault::Refused(why) => {
            let message = format!("{who} have no sidecar, and would be refused now: {why}");
            Finding::failed(CHECK, message).remedy(format!("mend the workload, then {restart}"))
        }
        Fault::OtherVersion(version) => {
            let message = format!("{who} have a sidecar of version {version}");
            Finding::notice(CHECK, message).remedy(restart)
        }
    }
}

/// The command that makes the pods of an owner anew.
fn restart(namespace: &str, owner: &str) -> String {
    match owner.split_once('/') {
        Some(("deployment" | "statefulset" | "daemonset", _)) => {
            format!("`kubectl -n {namespace} rollout restart {owner}`")
        }
        Some(("replicaset" | "replicationcontroller", _)) => {
            format!("delete the pods of {owner} in {namespace}: it makes new ones")
        }
        _ => format!("delete {owner} in {namespace} and create it again"),
    }
}

/// Whose pod it is, as kubectl takes it. A Deployment owns by way of a
/// ReplicaSet, whose name is its own and the hash that is in the pod's labels.
fn owner(pod: &Pod) -> String {
    let references = pod.owner_references();
    let Some(owner) = references
        .iter()
        .find(|owner| owner.controller == Some(true))
    else {
        return format!("pod/{}", pod.name_any());
    };
    let kind = owner.kind.to_ascii_lowercase();
    let hash = pod.labels().get("pod-template-hash");
    match hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')) {
        Some(deployment) if kind == "replicaset" => format!("deployment/{deployment}"),
        _ => format!("{kind}/{}", owner.name),
    }
}

/// Whether a pod has not ended, and is not about to.
fn runs(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod has the sidecar.
pub(super) fn is_injected(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
    });
    containers
        .into_iter()
        .any(|container| container.name == PROXY_CONTAINER)
}

/// The version that injected a pod.
fn version(pod: &Pod) -> Option<String> {
    let status: Value = serde_json::from_str(pod.annotations().get(STATUS)?).ok()?;
    Some(status.get("version")?.as_str()?.to_owned())
}

fn namespace(found: &k8s_openapi::api::core::v1::Namespace) -> Namespace {
    Namespace {
        name: found.name_any(),
        labels: found.labels().clone(),
        annotations: found.annotations().clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(metadata: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": metadata,
            "spec": {"containers": [{"name": "app"}]},
        }))
        .expect("the test wrote a pod")
    }

    fn owned(kind: &str, name: &str, labels: Value) -> Pod {
        pod(json!({"name": "p", "labels": labels, "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true,
        }]}))
    }

    #[test]
    fn the_command_restarts_what_a_person_would_name() {
        let hash = json!({"pod-template-hash": "7f9c"});
        for (pod, command) in [
            (
                owned("ReplicaSet", "cart-7f9c", hash),
                "`kubectl -n shop rollout restart deployment/cart`",
            ),
            (
                owned("StatefulSet", "db", json!({})),
                "`kubectl -n shop rollout restart statefulset/db`",
            ),
            (
                owned("ReplicaSet", "bare", json!({})),
                "delete the pods of replicaset/bare in shop: it makes new ones",
            ),
            (
                pod(json!({"name": "alone"})),
                "delete pod/alone in shop and create it again",
            ),
        ] {
            assert_eq!(restart("shop", &owner(&pod)), command);
        }
    }

    #[test]
    fn a_pod_lacks_a_sidecar_where_the_webhook_would_give_it_one() {
        let settings = PodSettings::new(default_trust_domain(), "unused".to_owned());
        let defaults = Defaults::new(settings);
        let asking = Namespace {
            name: "shop".to_owned(),
            labels: [("bulkhead.io/inject".to_owned(), "enabled".to_owned())].into(),
            ..Namespace::default()
        };
        let silent = Namespace {
            labels: BTreeMap::new(),
            ..asking.clone()
        };
        let plain = pod(json!({"name": "p"}));
        assert_eq!(fault(&plain, &asking, &defaults), Some(Fault::Missing));
        assert_eq!(fault(&plain, &silent, &defaults), None);
        let out = pod(json!({"name": "p", "labels": {"bulkhead.io/inject": "disabled"}}));
        assert_eq!(fault(&out, &asking, &defaults), None);
        let stopped = pod(
            json!({"name": "p", "labels": {"bulkhead.io/inject": "disabled"},
            "annotations": {STOPPED: "alice: an incident"}}),
        );
        assert_eq!(fault(&stopped, &asking, &defaults), Some(Fault::Stopped));
        let wrong = pod(json!({"name": "p", "annotations": {"bulkhead.io/mtls-mode": "yes"}}));
        let refused = fault(&wrong, &asking, &defaults);
        assert!(matches!(refused, Some(Fault::Refused(_))), "{refused:?}");
    }
}
