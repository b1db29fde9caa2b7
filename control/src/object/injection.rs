//! Whether a pod should have a sidecar, as far as can be said when it arrives.
//!
//! The decision is that of `bulkhead_inject`, asked twice: once as if the
//! namespace did not want sidecars and once as if it did. What differs between
//! the two is the namespace's to say, and a namespace may say it later.

use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_inject::{Decision, Defaults};
use serde_json::json;

use super::{Reading, manifest};

/// Whether a pod is to have a sidecar.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum InjectionWish {
    /// Whatever its namespace says, and also where it could not be injected.
    #[default]
    Never,
    /// Whatever its namespace says.
    Always,
    /// As its namespace says.
    AsNamespace,
}

impl InjectionWish {
    pub fn is_wanted(self, namespace_injects: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::AsNamespace => namespace_injects,
        }
    }

    pub(super) fn of(pod: &manifest::Pod, reading: &Reading) -> Self {
        let Ok(document) = serde_json::to_value(pod) else {
            return Self::Never;
        };
        let namespace = bulkhead_inject::Namespace {
            name: pod.metadata.namespace.clone().unwrap_or_default(),
            ..Default::default()
        };
        let is_injected = |by_default| {
            let defaults = defaults(reading, by_default);
            matches!(
                bulkhead_inject::inject(&document, &namespace, &defaults),
                Decision::Inject(_)
            )
        };
        match (is_injected(false), is_injected(true)) {
            (true, _) => Self::Always,
            (false, true) => Self::AsNamespace,
            (false, false) => Self::Never,
        }
    }
}

/// Whether a pod that says nothing gets a sidecar in this namespace.
pub(super) fn injects(namespace: &manifest::Namespace, reading: &Reading) -> bool {
    let metadata = &namespace.metadata;
    let namespace = bulkhead_inject::Namespace {
        name: metadata.name.clone().unwrap_or_default(),
        labels: metadata.labels.clone().unwrap_or_default(),
        annotations: metadata.annotations.clone().unwrap_or_default(),
    };
    let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "app"}]}});
    let defaults = defaults(reading, reading.inject_by_default);
    matches!(
        bulkhead_inject::inject(&pod, &namespace, &defaults),
        Decision::Inject(_)
    )
}

fn defaults(reading: &Reading, inject_by_default: bool) -> Defaults {
    let settings = PodSettings::new(default_trust_domain(), "sidecar".to_owned());
    Defaults {
        inject_by_default,
        system_namespace: reading.system_namespace.clone(),
        ..Defaults::new(settings)
    }
}
