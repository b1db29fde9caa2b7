//! The kill switch: three kinds of object, one for each level. That such an
//! object exists is the whole switch; that it is gone is the way back.
//!
//! | kind | level | what it says |
//! |---|---|---|
//! | [`InjectionStop`] | 1 | new pods get no sidecar |
//! | [`Bypass`] | 2 | sidecars that run hand bytes on untouched |
//! | [`Ejection`] | 3 | workloads are restarted without their sidecars |
//!
//! Where an object is says what it is for: in Bulkhead's own namespace the whole
//! mesh, elsewhere that namespace; with a selector, only pods with those labels.
//! Each kind is a resource of its own, so that RBAC says who may use which.
//!
//! A time limit needs none of our programs: the object is owned by a Job that is
//! complete from the start and that Kubernetes deletes after its time
//! ([`time_limit`]); the garbage collector takes the object with it. Whoever is
//! alive honours [`Terms::until`] by the clock as well.

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod match_condition;
pub mod time_limit;

pub use match_condition::{NAME as MATCH_CONDITION, match_condition};

/// The API group of all three kinds.
pub const GROUP: &str = "emergency.bulkhead.io";
/// The version that is served and stored.
pub const VERSION: &str = "v1alpha1";

/// What all three kinds say.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// Why. Everybody who finds the switch on reads this.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Who turned the switch: the user that the API server authenticated. It is
    /// filled in at admission and cannot be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When the switch turns itself back. Without it, when somebody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// Which pods are meant; all of the namespace or the mesh where there is no
    /// selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<PodSelector>,
    /// The workload that the selector was taken from, such as
    /// deployment/checkout. It is for people; the selector decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
}

/// Pods by their labels.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSelector {
    /// Labels that a pod must have, each with this value.
    #[schemars(extend("minProperties" = 1))]
    pub match_labels: BTreeMap<String, String>,
}

/// Level 1: pods that are created while this exists get no sidecar. The API
/// server itself sees to it, with every pod of Bulkhead dead.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "emergency.bulkhead.io",
    version = "v1alpha1",
    kind = "InjectionStop",
    plural = "injectionstops",
    namespaced,
    category = "emergency",
    derive = "PartialEq",
    doc = "New pods get no sidecar while this exists",
    printcolumn = r#"{"name":"Workload","type":"string","jsonPath":".spec.workload"}"#,
    printcolumn = r#"{"name":"By","type":"string","jsonPath":".spec.by"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".spec.reason"}"#,
    printcolumn = r#"{"name":"Until","type":"string","jsonPath":".spec.until"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct InjectionStopSpec {
    #[serde(flatten)]
    pub terms: Terms,
}

/// Level 2: sidecars that run hand bytes on untouched, without a restart.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "emergency.bulkhead.io",
    version = "v1alpha1",
    kind = "Bypass",
    plural = "bypasses",
    namespaced,
    category = "emergency",
    status = "BypassStatus",
    derive = "PartialEq",
    doc = "Sidecars hand bytes on untouched while this exists",
    printcolumn = r#"{"name":"Workload","type":"string","jsonPath":".spec.workload"}"#,
    printcolumn = r#"{"name":"By","type":"string","jsonPath":".spec.by"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".spec.reason"}"#,
    printcolumn = r#"{"name":"Until","type":"string","jsonPath":".spec.until"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct BypassSpec {
    #[serde(flatten)]
    pub terms: Terms,
}

/// How far control has brought a bypass.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BypassStatus {
    /// What the connected sidecars in scope were last told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<BypassPhase>,
    /// Sidecars in scope that are connected to control.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub proxies: u32,
    /// Those of them that confirmed that they forward.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub forwarding: u32,
    /// What each replica of control counted; the above are the sums.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replicas: BTreeMap<String, ReplicaCount>,
}

/// The sidecars in scope that are connected to one replica of control.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct ReplicaCount {
    /// All of them.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub proxies: u32,
    /// Those of them that confirmed that they forward.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub forwarding: u32,
}

/// Servers take plaintext before any client sends it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum BypassPhase {
    /// Sidecars take plaintext whatever their mode is, and decide nothing.
    Accepting,
    /// They also send plaintext: bytes pass untouched.
    Forwarding,
}

/// Level 3: workloads are restarted without their sidecars, at a pace that keeps
/// them serving. The command does it; this is its record, by which it resumes.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "emergency.bulkhead.io",
    version = "v1alpha1",
    kind = "Ejection",
    plural = "ejections",
    namespaced,
    category = "emergency",
    status = "EjectionStatus",
    derive = "PartialEq",
    doc = "Workloads are restarted without their sidecars",
    printcolumn = r#"{"name":"Workload","type":"string","jsonPath":".spec.workload"}"#,
    printcolumn = r#"{"name":"By","type":"string","jsonPath":".spec.by"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".spec.reason"}"#,
    printcolumn = r#"{"name":"Until","type":"string","jsonPath":".spec.until"}"#,
    printcolumn = r#"{"name":"Done","type":"integer","jsonPath":".status.restarted"}"#,
    printcolumn = r#"{"name":"Of","type":"integer","jsonPath":".status.workloads"}"#,
    printcolumn = r#"{"name":"Stopped At","type":"string","jsonPath":".status.stoppedAt"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct EjectionSpec {
    #[serde(flatten)]
    pub terms: Terms,
}

/// How far an ejection has come.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EjectionStatus {
    /// Workloads that had pods with sidecars when it began.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub workloads: u32,
    /// Those of them that run without.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub restarted: u32,
    /// The workload that did not become healthy, at which it stopped:
    /// namespace/kind/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<String>,
}

/// The levels of the kill switch.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    Injection,
    Bypass,
    Ejection,
}

impl Level {
    /// The value of the metrics' label `level`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Injection => "injection",
            Self::Bypass => "bypass",
            Self::Ejection => "ejection",
        }
    }
}

/// What is common to the three kinds.
pub trait Emergency: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Sized {
    const LEVEL: Level;

    /// A switch with this name and these terms; the namespace is where it is
    /// stored.
    fn with_terms(name: &str, terms: Terms) -> Self;

    fn terms(&self) -> &Terms;

    /// Whether the switch is on at `now`: its time is not over, and nobody has
    /// turned it back.
    fn is_on(&self, now: SystemTime) -> bool {
        let is_over = |until: &Time| SystemTime::from(until.0) <= now;
        self.meta().deletion_timestamp.is_none()
            && !self.terms().until.as_ref().is_some_and(is_over)
    }

    /// Whether a pod with these labels is meant.
    fn covers(
        &self,
        system_namespace: &str,
        pod_namespace: &str,
        pod_labels: &BTreeMap<String, String>,
    ) -> bool {
        let own = self.meta().namespace.as_ref();
        let is_here = own.is_some_and(|own| own == system_namespace)
            || own.is_some_and(|own| own == pod_namespace);
        is_here
            && self.terms().selector.as_ref().is_none_or(|selector| {
                let has = |(name, value): (&String, &String)| pod_labels.get(name) == Some(value);
                selector.match_labels.iter().all(has)
            })
    }
}

impl Emergency for InjectionStop {
    const LEVEL: Level = Level::Injection;

    fn with_terms(name: &str, terms: Terms) -> Self {
        Self::new(name, InjectionStopSpec { terms })
    }

    fn terms(&self) -> &Terms {
        &self.spec.terms
    }
}

impl Emergency for Bypass {
    const LEVEL: Level = Level::Bypass;

    fn with_terms(name: &str, terms: Terms) -> Self {
        Self::new(name, BypassSpec { terms })
    }

    fn terms(&self) -> &Terms {
        &self.spec.terms
    }
}

impl Emergency for Ejection {
    const LEVEL: Level = Level::Ejection;

    fn with_terms(name: &str, terms: Terms) -> Self {
        Self::new(name, EjectionSpec { terms })
    }

    fn terms(&self) -> &Terms {
        &self.spec.terms
    }
}
