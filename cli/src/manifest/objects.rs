//! The objects of a document, and the pod or pod template in each.

use serde_json::Value;

/// Kinds that make pods, and where the pod is in them.
const WORKLOADS: &[(&str, &[&str])] = &[
    ("Pod", &[]),
    ("PodTemplate", &["template"]),
    ("CronJob", &["spec", "jobTemplate", "spec", "template"]),
    ("DaemonSet", &["spec", "template"]),
    ("Deployment", &["spec", "template"]),
    ("DeploymentConfig", &["spec", "template"]),
    ("Job", &["spec", "template"]),
    ("ReplicaSet", &["spec", "template"]),
    ("ReplicationController", &["spec", "template"]),
    ("StatefulSet", &["spec", "template"]),
];

/// One object of a document.
#[derive(Debug)]
pub struct Object<'a> {
    value: &'a mut Value,
}

/// The objects of a value: itself, or the items of a `List`.
pub fn objects(value: &mut Value) -> Vec<Object<'_>> {
    if text(value, "kind") != Some("List") {
        return vec![Object { value }];
    }
    match value.get_mut("items") {
        Some(Value::Array(items)) => items.iter_mut().map(|value| Object { value }).collect(),
        _ => Vec::new(),
    }
}

impl Object<'_> {
    /// The object as kubectl would name it, such as `deployment/cart`.
    pub fn reference(&self) -> String {
        let kind = text(self.value, "kind").unwrap_or("object");
        let name = self.name().or_else(|| {
            let metadata = self.value.get("metadata")?;
            text(metadata, "generateName")
        });
        format!("{}/{}", kind.to_lowercase(), name.unwrap_or("(no name)"))
    }

    pub fn name(&self) -> Option<&str> {
        text(self.value.get("metadata")?, "name")
    }

    pub fn namespace(&self) -> Option<&str> {
        text(self.value.get("metadata")?, "namespace")
    }

    /// Why there is no pod, where there is none: the kind has none, or it is
    /// half an object, for kustomize to complete.
    pub fn why_no_pod(&self) -> &'static str {
        match path_of(self.value) {
            Some(_) => "has no pod template",
            None => "makes no pods",
        }
    }

    /// The pod or pod template, where the object has one.
    pub fn pod_mut(&mut self) -> Option<&mut Value> {
        let mut value = &mut *self.value;
        for field in path_of(value)? {
            value = value.get_mut(*field)?;
        }
        Some(value)
    }

    /// Whether the object is a pod, rather than something that makes pods.
    pub fn is_pod(&self) -> bool {
        text(self.value, "kind") == Some("Pod")
    }
}

/// Where the pod is in an object of its kind; nothing where the kind has none.
fn path_of(value: &Value) -> Option<&'static [&'static str]> {
    let kind = text(value, "kind")?;
    let (_, path) = WORKLOADS.iter().find(|(workload, _)| *workload == kind)?;
    Some(path)
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field)?.as_str()
}
