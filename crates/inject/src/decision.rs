//! Whether a pod is injected. Rules are asked in order and the first that
//! answers counts, so that there is one reason to give.

use bulkhead_core::annotation::INJECT_SOURCES;
use bulkhead_core::annotation::Place;
use bulkhead_core::annotation::parse_inject;
use serde_json::Value;

use crate::Defaults;
use crate::Namespace;
use crate::Refusal;
use crate::pod::Pod;
use crate::reason::InjectReason;
use crate::reason::RefuseReason;
use crate::reason::SkipReason;

/// The namespaces of Kubernetes itself, whose pods are never injected.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// The label that marks Bulkhead's own pods, and its value.
pub const OWN_POD_LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "bulkhead");

/// Containers by which another mesh is recognised.
pub(crate) const OTHER_MESHES: [&str; 4] = [
    "istio-proxy",
    "linkerd-proxy",
    "kuma-sidecar",
    "consul-dataplane",
];

/// The labels by which a pod asks for a node's operating system.
pub(crate) const WINDOWS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];

/// The answer to whether a pod is injected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Choice {
    Inject(InjectReason),
    Skip(SkipReason),
}

pub(crate) fn choose(
    pod: Pod<'_>,
    namespace: &Namespace,
    defaults: &Defaults,
) -> Result<Choice, Refusal> {
    if pod.spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        return Ok(Choice::Skip(SkipReason::HostNetwork));
    }
    if is_windows(pod) {
        return Ok(Choice::Skip(SkipReason::Windows));
    }
    if is_own(pod, namespace, defaults)? {
        return Ok(Choice::Skip(SkipReason::OwnPod));
    }
    if SYSTEM_NAMESPACES.contains(&namespace.name.as_str()) {
        return Ok(Choice::Skip(SkipReason::SystemNamespace));
    }
    let choice = match asked(pod, namespace)? {
        Some((place, true)) => Choice::Inject(inject_reason(place)),
        Some((place, false)) => Choice::Skip(skip_reason(place)),
        None if defaults.inject_by_default => Choice::Inject(InjectReason::Default),
        None => Choice::Skip(SkipReason::NotRequested),
    };
    if matches!(choice, Choice::Inject(_)) && carries_another_mesh(pod) {
        return Ok(Choice::Skip(SkipReason::OtherMesh));
    }
    Ok(choice)
}

fn is_windows(pod: Pod<'_>) -> bool {
    let is_windows = |value: Option<&Value>| value.and_then(Value::as_str) == Some("windows");
    let selector = pod.spec.get("nodeSelector");
    is_windows(pod.spec.get("os").and_then(|os| os.get("name")))
        || WINDOWS_LABELS
            .iter()
            .any(|label| is_windows(selector.and_then(|selector| selector.get(label))))
}

/// A part of Bulkhead is known by its label, in Bulkhead's own namespace only:
/// elsewhere the label would be a way to leave the mesh that no rule about
/// opting out sees.
fn is_own(pod: Pod<'_>, namespace: &Namespace, defaults: &Defaults) -> Result<bool, Refusal> {
    let (label, value) = OWN_POD_LABEL;
    Ok(namespace.name == defaults.system_namespace && pod.label(label)? == Some(value))
}

fn carries_another_mesh(pod: Pod<'_>) -> bool {
    pod.containers()
        .filter_map(|container| container.get("name")?.as_str())
        .any(|name| OTHER_MESHES.contains(&name))
}

/// Who says whether the pod is injected, and what.
fn asked(pod: Pod<'_>, namespace: &Namespace) -> Result<Option<(Place, bool)>, Refusal> {
    for source in INJECT_SOURCES {
        for name in source.names {
            let value = match source.place {
                Place::PodLabel => pod.label(name)?,
                Place::PodAnnotation => pod.annotation(name)?,
                Place::NamespaceLabel => namespace.labels.get(*name).map(String::as_str),
                Place::NamespaceAnnotation => namespace.annotations.get(*name).map(String::as_str),
            };
            if let Some(value) = value {
                return match parse_inject(name, value) {
                    Ok(answer) => Ok(Some((source.place, answer))),
                    Err(allowed) => Err(Refusal {
                        reason: RefuseReason::InvalidAnnotation,
                        message: format!(
                            "the {} {name} cannot have the value {:?}; {allowed}",
                            source.place.as_str(),
                            value.chars().take(64).collect::<String>(),
                        ),
                    }),
                };
            }
        }
    }
    Ok(None)
}

fn inject_reason(place: Place) -> InjectReason {
    match place {
        Place::PodLabel => InjectReason::PodLabel,
        Place::PodAnnotation => InjectReason::PodAnnotation,
        Place::NamespaceLabel => InjectReason::NamespaceLabel,
        Place::NamespaceAnnotation => InjectReason::NamespaceAnnotation,
    }
}

fn skip_reason(place: Place) -> SkipReason {
    match place {
        Place::PodLabel => SkipReason::PodLabel,
        Place::PodAnnotation => SkipReason::PodAnnotation,
        Place::NamespaceLabel => SkipReason::NamespaceLabel,
        Place::NamespaceAnnotation => SkipReason::NamespaceAnnotation,
    }
}
