//! The decision as the API server makes it by itself: in CEL, over a pod as
//! `object` and its namespace as `namespaceObject`. The webhook's registration
//! and the chart's policies are made of this.

use bulkhead_core::annotation::INJECT_SOURCES;
use bulkhead_core::annotation::Place;

use crate::decision::OTHER_MESHES;
use crate::decision::WINDOWS_LABELS;

/// The values that say: do not inject. Every other value asks for a sidecar,
/// also one that nobody understands, because it is refused and not ignored.
pub const OUT: [&str; 2] = ["disabled", "false"];

/// What is true of a pod that a sidecar can serve, whatever anybody says of it;
/// each with a name.
pub fn can_be_served() -> [(&'static str, String); 2] {
    let labels = list(&WINDOWS_LABELS);
    [
        (
            "not-host-network",
            "!has(object.spec.hostNetwork) || !object.spec.hostNetwork".to_owned(),
        ),
        (
            "not-windows",
            format!(
                "(!has(object.spec.os) || object.spec.os.name != 'windows') && \
                 (!has(object.spec.nodeSelector) || \
                 !{labels}.exists(label, \
                 label in object.spec.nodeSelector && object.spec.nodeSelector[label] == 'windows'))"
            ),
        ),
    ]
}

/// Whether another mesh's sidecar is in the pod, which is then left to it.
pub fn carries_another_mesh() -> String {
    let names = list(&OTHER_MESHES);
    format!(
        "object.spec.containers.exists(container, container.name in {names}) || \
         (has(object.spec.initContainers) && \
         object.spec.initContainers.exists(container, container.name in {names}))"
    )
}

/// Whether somebody asks for a sidecar: the pod, or its namespace, and
/// `otherwise` (an expression) where neither says anything.
pub fn asks_for_a_sidecar(otherwise: &str) -> String {
    INJECT_SOURCES
        .iter()
        .rev()
        .fold(otherwise.to_owned(), |rest, source| {
            says_inject(field(source.place), source.names, &rest)
        })
}

/// What the first of `names` says that `map` has, and `otherwise` (an
/// expression) where it has none of them.
pub fn says_inject(map: &str, names: &[&str], otherwise: &str) -> String {
    let out = list(&OUT);
    names.iter().rev().fold(otherwise.to_owned(), |rest, name| {
        format!("(has({map}) && '{name}' in {map} ? !({map}['{name}'] in {out}) : {rest})")
    })
}

/// The labels or annotations of a place.
fn field(place: Place) -> &'static str {
    match place {
        Place::PodLabel => "object.metadata.labels",
        Place::PodAnnotation => "object.metadata.annotations",
        Place::NamespaceLabel => "namespaceObject.metadata.labels",
        Place::NamespaceAnnotation => "namespaceObject.metadata.annotations",
    }
}

fn list(items: &[&str]) -> String {
    let quoted: Vec<_> = items.iter().map(|item| format!("'{item}'")).collect();
    format!("[{}]", quoted.join(", "))
}
