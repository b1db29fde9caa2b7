//! The time limit of a switch, kept by Kubernetes' own controllers.
//!
//! A Job with no completions is complete at once and makes no pod. The
//! controller of finished Jobs deletes it after its time to live, and the
//! garbage collector deletes what it owned: the switch.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile,
    SecurityContext,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::{Resource, ResourceExt};

use super::Emergency;

/// Marks the Jobs that are time limits, with the level as its value.
pub const LABEL: &str = "emergency.bulkhead.io/time-limit";

/// The Job that ends a switch at `until`, for a switch of this name in this
/// namespace.
///
/// The time to live is in whole seconds and counted from when the Job is
/// complete, which is a moment from now: it is rounded down, so that the switch
/// never outlives its time by more than the controllers take.
pub fn job<K: Emergency>(namespace: &str, name: &str, until: &Time, now: SystemTime) -> Job {
    let left = SystemTime::from(until.0)
        .duration_since(now)
        .unwrap_or(Duration::ZERO);
    Job {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(
                [
                    (LABEL, K::LEVEL.as_str()),
                    ("app.kubernetes.io/part-of", "bulkhead"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            completions: Some(0),
            parallelism: Some(0),
            ttl_seconds_after_finished: Some(i32::try_from(left.as_secs()).unwrap_or(i32::MAX)),
            template: template(),
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// That a Job owns a switch, for the switch's metadata. Nothing where the Job
/// has not been stored.
pub fn owner(job: &Job) -> Option<OwnerReference> {
    // It must not hold up the Job's own deletion: that would need a permission
    // more, and nobody waits for it.
    Some(OwnerReference {
        block_owner_deletion: Some(false),
        ..job.owner_ref(&())?
    })
}

/// Whether a switch has a time and no Job yet that keeps it: it was applied as
/// YAML, whose author could not know the Job's UID.
pub fn is_missing<K: Emergency>(switch: &K) -> bool {
    let is_time_limit = |owner: &OwnerReference| owner.kind == Job::kind(&());
    switch.terms().until.is_some() && !switch.owner_references().iter().any(is_time_limit)
}

/// A Job needs one, though no pod is ever made of it. It satisfies Pod Security
/// `restricted`, or the API server would warn of it.
fn template() -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: None,
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            automount_service_account_token: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![Container {
                name: "never-runs".to_owned(),
                image: Some("registry.k8s.io/pause:3.10".to_owned()),
                security_context: Some(SecurityContext {
                    allow_privilege_escalation: Some(false),
                    capabilities: Some(Capabilities {
                        drop: Some(vec!["ALL".to_owned()]),
                        ..Capabilities::default()
                    }),
                    ..SecurityContext::default()
                }),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
    }
}
