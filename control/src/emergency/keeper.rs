//! Brings bypasses forward, and writes into their objects how far they are.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_core::discovery::BypassPhase;
use bulkhead_crds::emergency::{self, Bypass, BypassStatus, ReplicaCount};
use bulkhead_runtime::drain;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::switches::Switch;
use crate::hub::{BypassCount, Hub};
use crate::object::Key;

/// The longest sleep before the wall clock is looked at again: a machine that
/// was suspended must not sleep past a time limit.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// How often statuses are written at most.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// How long the API server may take for one.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// How bypasses stand.
type Standing = Vec<(Key, Switch, BypassCount)>;

/// Brings bypasses forward until the drain starts.
pub(crate) async fn advance(hub: Hub, standing: watch::Sender<Standing>, mut drain: drain::Watch) {
    loop {
        let (next, now_standing) = hub.advance_bypasses();
        standing.send_replace(now_standing);
        let latest = Instant::now() + LONGEST_SLEEP;
        tokio::select! {
            () = tokio::time::sleep_until(next.map_or(latest, |next| next.min(latest))) => {}
            () = hub.bypass_news() => {}
            () = drain.started() => return,
        }
    }
}

/// Writes statuses.
pub(crate) struct Writer {
    pub(crate) client: Client,
    /// The namespace of Bulkhead, in which the replicas are.
    pub(crate) namespace: String,
    /// This replica.
    pub(crate) instance: String,
    pub(crate) hub: Hub,
}

impl Writer {
    /// Writes whatever changes until the drain starts.
    pub(crate) async fn run(
        self,
        mut standing: watch::Receiver<Standing>,
        mut drain: drain::Watch,
    ) {
        loop {
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return },
                () = drain.started() => return,
            }
            let now_standing = standing.borrow_and_update().clone();
            for (key, switch, count) in now_standing {
                self.write(&key, &switch, count).await;
            }
            tokio::time::sleep(WRITE_EVERY).await;
        }
    }

    async fn write(&self, key: &Key, switch: &Switch, count: BypassCount) {
        let before = switch.object.status.clone().unwrap_or_default();
        let replicas = self.replicas(&before, count);
        let status = merged(&before, replicas, switch.stage.phase());
        if status == before {
            return;
        }
        let api = Api::<Bypass>::namespaced(self.client.clone(), &key.namespace);
        let gone = before
            .replicas
            .keys()
            .filter(|name| !status.replicas.contains_key(*name));
        let mut patch = json!({ "status": status });
        for name in gone {
            patch["status"]["replicas"][name] = serde_json::Value::Null;
        }
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
        let write = api.patch_status(&key.name, &parameters, &patch);
        let problem = match timeout(WRITE_DEADLINE, write).await {
            Ok(Ok(_)) => return,
            // Somebody has turned it off.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {WRITE_DEADLINE:?}"),
        };
        tracing::warn!(
            bypass = %key,
            error = problem,
            "writing how far a bypass is failed; the bypass itself goes on"
        );
    }

    /// What each replica that is there has counted.
    fn replicas(
        &self,
        before: &BypassStatus,
        count: BypassCount,
    ) -> BTreeMap<String, ReplicaCount> {
        let is_there = |name: &str| {
            let key = Key::new(&self.namespace, name);
            self.hub.read(|index| index.pod(&key).is_some())
        };
        let others = before.replicas.iter().filter(|(name, _)| is_there(name));
        let mut replicas: BTreeMap<_, _> =
            others.map(|(name, count)| (name.clone(), *count)).collect();
        let own = ReplicaCount {
            proxies: count.proxies,
            forwarding: count.forwarding,
        };
        replicas.insert(self.instance.clone(), own);
        replicas
    }
}

/// The status by what each replica has counted. A replica that is behind does
/// not take back what another has reached.
fn merged(
    before: &BypassStatus,
    replicas: BTreeMap<String, ReplicaCount>,
    phase: BypassPhase,
) -> BypassStatus {
    let forwards =
        phase == BypassPhase::Forward || before.phase == Some(emergency::BypassPhase::Forwarding);
    BypassStatus {
        phase: Some(if forwards {
            emergency::BypassPhase::Forwarding
        } else {
            emergency::BypassPhase::Accepting
        }),
        proxies: replicas.values().map(|count| count.proxies).sum(),
        forwarding: replicas.values().map(|count| count.forwarding).sum(),
        replicas,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(proxies: u32, forwarding: u32) -> ReplicaCount {
        ReplicaCount {
            proxies,
            forwarding,
        }
    }

    #[test]
    fn replicas_add_up() {
        let replicas = [("a", count(3, 2)), ("b", count(4, 4))];
        let replicas = replicas
            .map(|(name, count)| (name.to_owned(), count))
            .into();
        let status = merged(&BypassStatus::default(), replicas, BypassPhase::Accept);
        assert_eq!((status.proxies, status.forwarding), (7, 6));
        assert_eq!(status.phase, Some(emergency::BypassPhase::Accepting));
    }

    #[test]
    fn a_replica_that_is_behind_takes_nothing_back() {
        let before = BypassStatus {
            phase: Some(emergency::BypassPhase::Forwarding),
            ..BypassStatus::default()
        };
        let status = merged(&before, BTreeMap::new(), BypassPhase::Accept);
        assert_eq!(status.phase, Some(emergency::BypassPhase::Forwarding));
    }
}
