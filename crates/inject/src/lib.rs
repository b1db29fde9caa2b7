//! Pure injection: what to do with a pod, and the patch that does it. The
//! webhook and the command line both call it, so that both give the same pod.
//!
//! ```text
//!  pod, namespace, defaults ──▶ decision ──▶ Skip(reason)
//!                                  │
//!            annotations ──▶ PodSettings ──▶ Refuse(reason, message)
//!                                  │
//!       strip ──▶ probe, sidecar, overlay ──▶ difference ──▶ Inject(reason, patch)
//! ```
//!
//! A pod stays a JSON document throughout, so that fields of a Kubernetes newer
//! than this code pass through untouched; what is added to it is made of typed
//! objects. Injecting an injected pod changes nothing, and [`uninject`] gives
//! back what went in.
//!
//! In reading order: `decision` (whether), [`expression`] (the same for the API
//! server), `pod` (the few fields that are read),
//! `patch` (how), `sidecar` (what is added), `probe` (what is rewritten),
//! `status` and `strip` (how it is undone), `overlay` (how a second injection
//! keeps what others did to the first), `difference` (the patch).

use std::collections::BTreeMap;

use bulkhead_core::annotation;
use bulkhead_core::annotation::AnnotationError;
use bulkhead_core::identity::IdentityError;
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::ports;
use bulkhead_core::resources::Level;
use serde_json::Value;

mod decision;
mod difference;
pub mod expression;
mod overlay;
mod patch;
mod pod;
mod probe;
mod reason;
mod sidecar;
mod status;
mod strip;
mod warning;
mod workload;
mod workload_api;

pub use decision::OWN_POD_LABEL;
pub use decision::SYSTEM_NAMESPACES;
pub use reason::InjectReason;
pub use reason::RefuseReason;
pub use reason::SkipReason;
pub use sidecar::BYPASS_CONFIG_MAP;
pub use sidecar::BYPASS_KEY;
pub use sidecar::INIT_CONTAINER;
pub use sidecar::PROXY_CONTAINER;
pub use sidecar::TOKEN_VOLUME;
pub use sidecar::TRUST_BUNDLE_CONFIG_MAP;
pub use sidecar::TRUST_BUNDLE_VOLUME;

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

    /// The defaults of an installation in this namespace, whose CA and control
    /// are found there.
    ///
    /// # Errors
    /// The namespace has no name that an identity can hold.
    pub fn installed_in(namespace: &str, mut settings: PodSettings) -> Result<Self, IdentityError> {
        let address = |service: &str| format!("{service}.{namespace}.svc:{}", ports::CONTROL_PLANE);
        let sidecar = &mut settings.sidecar;
        sidecar.ca_address = address("bulkhead-ca");
        sidecar.control_address = address(CONTROL);
        sidecar.control_identity = SpiffeId::workload(&sidecar.trust_domain, namespace, CONTROL)?;
        Ok(Self {
            system_namespace: namespace.to_owned(),
            ..Self::new(settings)
        })
    }
}

/// Control's Service and ServiceAccount.
const CONTROL: &str = "bulkhead-control";

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
pub fn inject(pod: &Value, namespace: &Namespace, defaults: &Defaults) -> Decision {
    match plan(pod, namespace, defaults) {
        Ok(Plan::Inject(planned)) => Decision::Inject(Injection {
            reason: planned.reason,
            patch: difference::difference(pod, planned.pod),
            warnings: planned.warnings,
        }),
        Ok(Plan::Skip(reason)) => Decision::Skip(reason),
        Err(refusal) => Decision::Refuse(refusal),
    }
}

/// Like [`inject`], and makes the pod what the patch would.
pub fn inject_in_place(pod: &mut Value, namespace: &Namespace, defaults: &Defaults) -> Decision {
    match plan(pod, namespace, defaults) {
        Ok(Plan::Inject(planned)) => {
            let before = std::mem::replace(pod, planned.pod);
            Decision::Inject(Injection {
                reason: planned.reason,
                patch: difference::difference(&before, pod.clone()),
                warnings: planned.warnings,
            })
        }
        Ok(Plan::Skip(reason)) => Decision::Skip(reason),
        Err(refusal) => Decision::Refuse(refusal),
    }
}

/// What is going to be done with a pod that nothing speaks against.
enum Plan {
    Inject(Planned),
    Skip(SkipReason),
}

struct Planned {
    reason: InjectReason,
    /// The pod as it should be.
    pod: Value,
    warnings: Vec<String>,
}

fn plan(document: &Value, namespace: &Namespace, defaults: &Defaults) -> Result<Plan, Refusal> {
    let pod = pod::Pod::new(document)?;
    let reason = match decision::choose(pod, namespace, defaults)? {
        decision::Choice::Inject(reason) => reason,
        decision::Choice::Skip(reason) => return Ok(Plan::Skip(reason)),
    };
    let settings = settings(pod, namespace, defaults)?;
    let warnings = warning::warnings(pod, &settings);
    let pod = patch::injected(document, settings, &defaults.image_pull_secrets)?;
    Ok(Plan::Inject(Planned {
        reason,
        pod,
        warnings,
    }))
}

/// The installation's settings with what the namespace and the pod say.
fn settings(
    pod: pod::Pod<'_>,
    namespace: &Namespace,
    defaults: &Defaults,
) -> Result<PodSettings, Refusal> {
    let mut settings = defaults.settings.clone();
    let of_pod: Vec<_> = pod
        .annotations()
        .filter_map(|(name, value)| match value {
            Value::String(text) => Some(Ok((name, text.as_str()))),
            _ if annotation::is_relevant(name) => Some(Err(pod::malformed(&format!(
                "the annotation {name} is not a string; put its value in quotes"
            )))),
            _ => None,
        })
        .collect::<Result<_, Refusal>>()?;
    let of_namespace = namespace
        .annotations
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    annotation::apply(&mut settings, of_namespace, Level::Namespace)
        .map_err(|errors| wrong_annotations(&errors))?;
    annotation::apply(&mut settings, of_pod, Level::Pod)
        .map_err(|errors| wrong_annotations(&errors))?;
    settings.resources.reconcile().map_err(|error| Refusal {
        reason: RefuseReason::InvalidAnnotation,
        message: error.to_string(),
    })?;
    Ok(settings)
}

/// All of them in one message. Where any value is wrong that is the reason.
fn wrong_annotations(errors: &[AnnotationError]) -> Refusal {
    let reason = if errors.iter().all(AnnotationError::is_unknown) {
        RefuseReason::UnknownAnnotation
    } else {
        RefuseReason::InvalidAnnotation
    };
    let messages: Vec<_> = errors.iter().map(AnnotationError::to_string).collect();
    Refusal {
        reason,
        message: messages.join("; "),
    }
}

/// The pod as it was before it was injected. A pod that was not stays as it is,
/// and so does anything that is no pod.
pub fn uninject(mut pod: Value) -> Value {
    if pod::Pod::new(&pod).is_ok() {
        strip::strip(&mut pod);
    }
    pod
}

#[cfg(test)]
mod tests;
