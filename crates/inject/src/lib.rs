//! Pure injection: what to do with a pod, and the patch that does it. The
//! webhook and the command line both call it, so that both give the same pod.
//!
//! ```text
//!  pod, namespace, defaults ──▶ decision ──▶ Skip(reason) | Refuse(reason, message)
//!                                   │
//!                                   ▼
//!            annotations ──▶ settings ──▶ sidecar, probes ──▶ document ──▶ Inject(reason, patch)
//! ```

use std::collections::BTreeMap;

use bulkhead_core::pod_settings::PodSettings;
use serde_json::Value;

mod reason;

pub use reason::InjectReason;
pub use reason::RefuseReason;
pub use reason::SkipReason;

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
    /// What annotations can change, before they do.
    pub settings: PodSettings,
    /// Names of Secrets, added to the pod's own, with which the kubelet fetches
    /// the sidecar's image.
    pub image_pull_secrets: Vec<String>,
    /// Inject pods about which neither they nor their namespace say anything.
    pub inject_by_default: bool,
    /// The namespace in which Bulkhead itself runs.
    pub system_namespace: String,
}

impl Defaults {
    /// The defaults of an installation that was told nothing but these.
    pub fn new(settings: PodSettings) -> Self {
        Self {
            settings,
            image_pull_secrets: Vec::new(),
            inject_by_default: false,
            system_namespace: DEFAULT_SYSTEM_NAMESPACE.to_owned(),
        }
    }
}

/// The namespace in which Bulkhead runs where nobody chose another.
pub const DEFAULT_SYSTEM_NAMESPACE: &str = "bulkhead-system";

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
    /// RFC 6902; empty where the pod already is as it should be.
    pub patch: json_patch::Patch,
    /// The pod that the patch makes.
    pub pod: Value,
    /// What a person should know and nothing is refused for, such as another
    /// mesh's annotation that Bulkhead does not honour.
    pub warnings: Vec<String>,
}

/// Why a pod was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    pub reason: RefuseReason,
    /// For people: what is wrong, where, and what would be right.
    pub message: String,
}

/// Decides about a pod and makes the patch. `pod` is the object of an
/// AdmissionReview, or a pod template with `metadata` and `spec`.
pub fn inject(_pod: &Value, _namespace: &Namespace, _defaults: &Defaults) -> Decision {
    Decision::Skip(SkipReason::NotRequested)
}
