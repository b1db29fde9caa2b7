//! Switches whose time nobody keeps: those that were applied as YAML, whose
//! author could not know the Job's UID. They are given their Job; and what is
//! over is deleted, should Kubernetes' controllers be late. What is on is shown
//! in the metrics.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bulkhead_crds::emergency::{Bypass, Ejection, Emergency, InjectionStop, Level, time_limit};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use crate::metrics::Metrics;

/// How often the switches are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long one look may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// The longest name of a Job, whose pods carry it as a label.
const MAX_JOB_NAME: usize = 63;

/// Keeps time limits.
pub(crate) struct TimeLimits {
    client: Client,
    clock: Clock,
    /// Set while somebody has stopped injection, or has sidecars taken out: no
    /// time to restart pods so that they get one.
    no_injection: Arc<AtomicBool>,
    metrics: Metrics,
    shown: BTreeMap<Level, On>,
}

/// How many switches of a level are on, by the namespace they are in.
type On = BTreeMap<String, usize>;

impl TimeLimits {
    pub(crate) fn new(
        client: Client,
        clock: Clock,
        no_injection: Arc<AtomicBool>,
        metrics: Metrics,
    ) -> Self {
        Self {
            client,
            clock,
            no_injection,
            metrics,
            shown: BTreeMap::new(),
        }
    }

    /// Looks at the switches until the drain starts.
    pub(crate) async fn run(mut self, mut drain: drain::Watch) {
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

    async fn look(&mut self) {
        let bypasses = self.keep::<Bypass>("Bypass").await;
        let stops = self.keep::<InjectionStop>("InjectionStop").await;
        let ejections = self.keep::<Ejection>("Ejection").await;
        // What cannot be seen may be there.
        let may_be_on = |on: &Option<On>| on.as_ref().is_none_or(|on| !on.is_empty());
        let is_on = may_be_on(&stops) || may_be_on(&ejections);
        self.no_injection.store(is_on, Ordering::Relaxed);
        self.show(Level::Bypass, bypasses);
        self.show(Level::Injection, stops);
        self.show(Level::Ejection, ejections);
    }

    /// What cannot be seen is shown as it was.
    fn show(&mut self, level: Level, on: Option<On>) {
        let Some(on) = on else {
            return;
        };
        for (namespace, count) in &on {
            self.metrics.switches(level, namespace, *count);
        }
        for (namespace, _) in self.shown.insert(level, on.clone()).unwrap_or_default() {
            if !on.contains_key(&namespace) {
                self.metrics.switches(level, &namespace, 0);
            }
        }
    }

    /// Keeps the time of one kind; says which are on, and nothing where that
    /// cannot be seen.
    async fn keep<K>(&self, kind: &'static str) -> Option<On>
    where
        K: Emergency + Clone + Debug + DeserializeOwned,
    {
        let api = Api::<K>::all(self.client.clone());
        let listed = match api.list(&ListParams::default()).await {
            Ok(listed) => listed,
            // Not served: there is none.
            Err(kube::Error::Api(status)) if status.code == 404 => return Some(On::new()),
            Err(error) => {
                tracing::warn!(%error, kind, "listing the kill switch's objects failed");
                return None;
            }
        };
        let now = self.clock.now();
        let mut on = On::new();
        for switch in listed {
            if switch.is_on(now) {
                *on.entry(switch.namespace().unwrap_or_default())
                    .or_default() += 1;
            }
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
        Some(on)
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
