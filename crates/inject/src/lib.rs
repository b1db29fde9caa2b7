//! placeholder: the signatures that `webhook` and `cli` build against.

use std::collections::BTreeMap;

use bulkhead_core::sidecar::SidecarConfig;
use serde_json::Value;

/// What injection needs to know of the pod's namespace.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// The installation's settings: what a pod gets where neither it nor its
/// namespace says anything.
#[derive(Clone, Debug)]
pub struct Defaults {
    pub sidecar: SidecarConfig,
}

/// What to do with a pod.
#[derive(Clone, Debug)]
pub enum Decision {
    Inject(Injection),
    Skip(SkipReason),
    Refuse(Refusal),
}

/// An injection, and why it was made.
#[derive(Clone, Debug)]
pub struct Injection {
    pub reason: InjectReason,
    /// Empty where the pod already is as it should be.
    pub patch: json_patch::Patch,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InjectReason {
    NamespaceLabel,
}

impl InjectReason {
    /// The metric label, log field and Event reason.
    pub fn as_str(self) -> &'static str {
        "namespace_label"
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SkipReason {
    HostNetwork,
}

impl SkipReason {
    pub fn as_str(self) -> &'static str {
        "host_network"
    }
    /// Whether somebody who looks at the workload would want to know.
    pub fn is_surprising(self) -> bool {
        true
    }
}

/// Why a pod was refused: `reason` is the metric label, `message` is for people.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

/// Decides about a pod and makes the patch. `pod` is the object of an
/// AdmissionReview, or a pod template with `metadata` and `spec`.
pub fn inject(_pod: &Value, _namespace: &Namespace, _defaults: &Defaults) -> Decision {
    Decision::Skip(SkipReason::HostNetwork)
}
