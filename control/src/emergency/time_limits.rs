//! Switches whose time nobody keeps: those that were applied as YAML, whose
//! author could not know the Job's UID. They are given their Job; and what is
//! over is deleted, should Kubernetes' controllers be late.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bulkhead_crds::emergency::{Bypass, Ejection, Emergency, InjectionStop, time_limit};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

/// How often the switches are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long one look may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// The longest name of a Job, whose pods carry it as a label.
const MAX_JOB_NAME: usize = 63;

/// Keeps time limits.
pub(crate) struct TimeLimits {
    pub(crate) client: Client,
    pub(crate) clock: Clock,
    /// Set while somebody has stopped injection, or has sidecars taken out: no
    /// time to restart pods so that they get one.
    pub(crate) no_injection: Arc<AtomicBool>,
}

impl TimeLimits {
    /// Looks at the switches until the drain starts.
    pub(crate) async fn run(self, mut drain: drain::Watch) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = drain.started() => return,
            }
            if timeout(DEADLINE, self.look()).await.is_err() {
                tracing::warn!("looking at the kill switch's objects took too long");
            }
        }
    }

    async fn look(&self) {
        let bypasses = self.keep::<Bypass>("Bypass").await;
        let stops = self.keep::<InjectionStop>("InjectionStop").await;
        let ejections = self.keep::<Ejection>("Ejection").await;
        let looked = [bypasses, stops, ejections];
        // What cannot be seen may be there.
        let is_on = looked[1..].iter().any(|on| on.unwrap_or(true));
        self.no_injection.store(is_on, Ordering::Relaxed);
    }

    /// Keeps the time of one kind; says whether any is on, and nothing where that
    /// cannot be seen.
    async fn keep<K>(&self, kind: &'static str) -> Option<bool>
    where
        K: Emergency + Clone + Debug + DeserializeOwned,
    {
        let api = Api::<K>::all(self.client.clone());
        let listed = match api.list(&ListParams::default()).await {
            Ok(listed) => listed,
            // Not served: there is none.
            Err(kube::Error::Api(status)) if status.code == 404 => return Some(false),
            Err(error) => {
                tracing::warn!(%error, kind, "listing the kill switch's objects failed");
                return None;
            }
        };
        let now = self.clock.now();
        let mut any_on = false;
        for switch in listed {
            any_on |= switch.is_on(now);
            if let Err(error) = self.keep_one(&switch, now).await {
                tracing::warn!(
                    %error,
                    kind,
                    namespace = switch.namespace(),
                    name = switch.name_any(),
                    "keeping the time limit of a switch failed; this is tried again"
                );
            }
        }
        Some(any_on)
    }

    async fn keep_one<K>(&self, switch: &K, now: SystemTime) -> kube::Result<()>
    where
        K: Emergency + Clone + Debug + DeserializeOwned,
    {
        let Some(until) = &switch.terms().until else {
            return Ok(());
        };
        if switch.meta().deletion_timestamp.is_some() {
            return Ok(());
        }
        let namespace = switch.namespace().unwrap_or_default();
        let name = switch.name_any();
        let api = Api::<K>::namespaced(self.client.clone(), &namespace);
        if SystemTime::from(until.0) <= now {
            // This one, and not another that has been given its name.
            let parameters = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: switch.uid(),
                    resource_version: switch.resource_version(),
                }),
                ..DeleteParams::default()
            };
            return match api.delete(&name, &parameters).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                deleted => deleted.map(drop),
            };
        }
        if !time_limit::is_missing(switch) {
            return Ok(());
        }
        let job_name = job_name::<K>(&name);
        let wanted = time_limit::job::<K>(&namespace, &job_name, until, now);
        let jobs = Api::<Job>::namespaced(self.client.clone(), &namespace);
        let job = match jobs.create(&PostParams::default(), &wanted).await {
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => jobs.get(&job_name).await?,
            created => created?,
        };
        if !job.labels().contains_key(time_limit::LABEL) {
            return Ok(());
        }
        let mut owners = switch.owner_references().to_vec();
        owners.extend(time_limit::owner(&job));
        let patch = json!({ "metadata": {
            "ownerReferences": owners,
            "resourceVersion": switch.resource_version(),
        }});
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            // It has changed, and will be looked at again.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            patched => {
                patched?;
                tracing::info!(
                    namespace,
                    name,
                    job = job_name,
                    "a switch was given the Job that ends it"
                );
                Ok(())
            }
        }
    }
}

/// Two switches of different kinds may have one name.
fn job_name<K: Emergency>(switch: &str) -> String {
    let suffix = format!("-{}", K::LEVEL.as_str());
    let room = MAX_JOB_NAME - suffix.len();
    // Names are ASCII.
    let stem = switch
        .get(..room)
        .unwrap_or(switch)
        .trim_end_matches(['-', '.']);
    format!("{stem}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_different_kinds_do_not_share_a_name_and_long_names_fit() {
        assert_eq!(job_name::<Bypass>("incident-7"), "incident-7-bypass");
        assert_ne!(job_name::<Bypass>("a"), job_name::<InjectionStop>("a"));
        assert!(job_name::<Ejection>(&"a".repeat(253)).len() <= MAX_JOB_NAME);
    }
}
