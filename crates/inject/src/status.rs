//! The annotation that says what was injected: for people, and for undoing it
//! exactly.
//!
//! Anybody can write it, so little is believed of it. What is removed from a pod
//! is found by names that are fixed in this crate. The status only says which of
//! those things injection made, and which would have been there without it; and
//! only in a pod that does carry our container.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;

use crate::pod;
use crate::workload_api;

/// What an injection did.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    pub(crate) version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) init_containers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) containers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) image_pull_secrets: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// What we asked for where others may have changed it since: a registry
    /// mirror the image, a LimitRange the resources.
    pub(crate) image: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(crate) resources: Value,
    /// The containers that were shown the way to the Workload API.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) workload_api: workload_api::ByContainer<workload_api::Change>,
    /// Parents that injection made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) absent: Vec<Parent>,
    /// Parents that were there, as null.
    #[serde(rename = "null", skip_serializing_if = "Vec::is_empty")]
    pub(crate) was_null: Vec<Parent>,
}

/// A map or list of a pod that injection puts something into.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Parent {
    Labels,
    Annotations,
    Metadata,
    InitContainers,
    Volumes,
    ImagePullSecrets,
}

impl Parent {
    /// All of them, those inside others first.
    const ALL: [Self; 6] = [
        Self::Labels,
        Self::Annotations,
        Self::Metadata,
        Self::InitContainers,
        Self::Volumes,
        Self::ImagePullSecrets,
    ];

    /// The field of the document, and the field in that where it is deeper.
    fn fields(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Metadata => ("metadata", None),
            Self::Labels => ("metadata", Some("labels")),
            Self::Annotations => ("metadata", Some("annotations")),
            Self::InitContainers => ("spec", Some("initContainers")),
            Self::Volumes => ("spec", Some("volumes")),
            Self::ImagePullSecrets => ("spec", Some("imagePullSecrets")),
        }
    }

    fn empty(self) -> Value {
        match self {
            Self::Metadata | Self::Labels | Self::Annotations => Value::Object(Map::new()),
            Self::InitContainers | Self::Volumes | Self::ImagePullSecrets => {
                Value::Array(Vec::new())
            }
        }
    }
}

impl Status {
    /// The map or list itself, made where it is absent, which is noted.
    pub(crate) fn ensure<'a>(&mut self, parent: Parent, pod: &'a mut Value) -> &'a mut Value {
        let (first, second) = parent.fields();
        match second {
            None => self.ensure_field(parent, pod, first),
            Some(second) if first == "metadata" => {
                let metadata = self.ensure(Parent::Metadata, pod);
                self.ensure_field(parent, metadata, second)
            }
            Some(second) => self.ensure_field(parent, &mut pod[first], second),
        }
    }

    fn ensure_field<'a>(
        &mut self,
        parent: Parent,
        owner: &'a mut Value,
        field: &str,
    ) -> &'a mut Value {
        match owner.get(field) {
            None => self.absent.push(parent),
            Some(Value::Null) => self.was_null.push(parent),
            Some(_) => return &mut owner[field],
        }
        owner[field] = parent.empty();
        &mut owner[field]
    }

    /// Remembers what an earlier injection made and others have since put
    /// something into.
    pub(crate) fn inherit_parents(&mut self, before: &Self) {
        for (now, before) in [
            (&mut self.absent, &before.absent),
            (&mut self.was_null, &before.was_null),
        ] {
            now.extend(before);
            now.sort_unstable();
            now.dedup();
        }
    }

    /// Takes back what [`Self::ensure`] made, where nothing is left in it.
    pub(crate) fn undo_parents(&self, pod: &mut Value) {
        for parent in Parent::ALL {
            let (first, second) = parent.fields();
            let (owner, field) = match second {
                None => (Some(&mut *pod), first),
                Some(second) => (pod.get_mut(first), second),
            };
            let Some(owner) = owner.and_then(Value::as_object_mut) else {
                continue;
            };
            if owner.get(field) != Some(&parent.empty()) {
                continue;
            }
            if self.absent.contains(&parent) {
                pod::remove(owner, field);
            } else if self.was_null.contains(&parent) {
                owner.insert(field.to_owned(), Value::Null);
            }
        }
    }
}
