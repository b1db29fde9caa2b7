//! A pod as injection reads it: the few fields that matter, each checked where
//! it is taken from the document. Everything else is nobody's business here and
//! stays as it is.

use serde_json::Map;
use serde_json::Value;

use crate::Refusal;
use crate::reason::RefuseReason;

/// The most containers that a pod may have, init containers included. Nothing
/// that runs has a tenth of it.
pub(crate) const MAX_CONTAINERS: usize = 512;

/// The lists of a pod spec that hold containers.
pub(crate) const CONTAINER_LISTS: [&str; 2] = ["initContainers", "containers"];

/// A document that has the shape of a pod or pod template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod<'a> {
    metadata: Option<&'a Map<String, Value>>,
    pub(crate) spec: &'a Map<String, Value>,
}

impl<'a> Pod<'a> {
    /// Checks the shape of whatever injection will touch.
    pub(crate) fn new(document: &'a Value) -> Result<Self, Refusal> {
        let document = document
            .as_object()
            .ok_or_else(|| malformed("it is not an object"))?;
        let metadata = optional_object(document, "metadata", "metadata")?;
        let spec = optional_object(document, "spec", "spec")?
            .ok_or_else(|| malformed("it has no spec"))?;
        if let Some(metadata) = metadata {
            optional_object(metadata, "labels", "metadata.labels")?;
            optional_object(metadata, "annotations", "metadata.annotations")?;
        }
        optional_list(spec, "volumes")?;
        optional_list(spec, "imagePullSecrets")?;
        let pod = Self { metadata, spec };
        pod.check_containers()?;
        Ok(pod)
    }

    fn check_containers(&self) -> Result<(), Refusal> {
        let mut count = 0;
        for list in CONTAINER_LISTS {
            let containers = optional_list(self.spec, list)?;
            count += containers.len();
            if count > MAX_CONTAINERS {
                return Err(Refusal {
                    reason: RefuseReason::TooLarge,
                    message: format!(
                        "the pod has more than {MAX_CONTAINERS} containers, and no node runs that \
                         many"
                    ),
                });
            }
            for (index, container) in containers.iter().enumerate() {
                if name(container).is_none_or(str::is_empty) {
                    return Err(malformed(&format!("spec.{list}[{index}] has no name")));
                }
            }
        }
        if list(self.spec, "containers").is_empty() {
            return Err(malformed("it has no containers (spec.containers)"));
        }
        Ok(())
    }

    /// The value of a label.
    pub(crate) fn label(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.text("labels", "label", name)
    }

    /// The value of an annotation.
    pub(crate) fn annotation(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.text("annotations", "annotation", name)
    }

    fn text(&self, field: &str, kind: &str, name: &str) -> Result<Option<&'a str>, Refusal> {
        let value = self
            .metadata
            .and_then(|metadata| metadata.get(field)?.get(name));
        match value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(malformed(&format!(
                "the {kind} {name} is not a string; put its value in quotes"
            ))),
        }
    }

    /// All annotations; those that are not strings are left out.
    pub(crate) fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.metadata
            .and_then(|metadata| metadata.get("annotations")?.as_object())
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value))
    }

    /// A field of the metadata, such as the name.
    pub(crate) fn metadata(&self, field: &str) -> Option<&'a Value> {
        self.metadata?.get(field)
    }

    /// All containers, init containers first.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &'a Map<String, Value>> {
        let spec = self.spec;
        CONTAINER_LISTS
            .into_iter()
            .flat_map(move |field| list(spec, field))
            .filter_map(Value::as_object)
    }
}

/// The items of a list that may be absent or null.
pub(crate) fn list<'a>(parent: &'a Map<String, Value>, field: &str) -> &'a [Value] {
    parent
        .get(field)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The name of a container, volume or other named item.
pub(crate) fn name(item: &Value) -> Option<&str> {
    item.get("name")?.as_str()
}

/// Takes a field out of an object, and leaves the others in their order (where
/// they have one, `Map::remove` may put the last in the place of the one taken).
pub(crate) fn remove(object: &mut Map<String, Value>, field: &str) -> Option<Value> {
    let value = object.get_mut(field)?.take();
    object.retain(|name, _| name != field);
    Some(value)
}

/// A port number, which JSON writes as any number.
pub(crate) fn port_number(value: &Value) -> Option<u16> {
    value
        .as_u64()
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0)
}

fn optional_object<'a>(
    parent: &'a Map<String, Value>,
    field: &str,
    path: &str,
) -> Result<Option<&'a Map<String, Value>>, Refusal> {
    match parent.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(malformed(&format!("{path} is not an object"))),
    }
}

fn optional_list<'a>(spec: &'a Map<String, Value>, field: &str) -> Result<&'a [Value], Refusal> {
    match spec.get(field) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => Ok(items),
        Some(_) => Err(malformed(&format!("spec.{field} is not a list of objects"))),
    }
}

pub(crate) fn malformed(problem: &str) -> Refusal {
    Refusal {
        reason: RefuseReason::MalformedPod,
        message: format!("the document is not a pod: {problem}"),
    }
}
