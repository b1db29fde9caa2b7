//! Following the records of all replicas, of those too that are made meanwhile.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bulkhead_runtime::clock::Clock;
use futures::stream::FuturesUnordered;
use futures::{AsyncBufReadExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, ResourceExt as _};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::{CONTAINER, Filter, Record, is_since, parameters};
use crate::authority::replicas;
use crate::cluster::Cluster;
use crate::error;

/// How long a record is held back, so that those of several replicas come in
/// their order.
const MERGE: Duration = Duration::from_millis(250);
/// Records that may be held back.
const HELD: usize = 1024;
/// How often it is looked for other pods, and for containers that run again.
const LOOK: Duration = Duration::from_secs(2);

/// One pod's log, as far as it has been read.
struct Followed {
    pod: String,
    uid: String,
    /// From when on it is still to be read.
    since: SystemTime,
    problem: Option<String>,
}

/// Hands over records as they are written, in the order of their times as far as
/// that can be had, for as long as the pods can be listed.
pub async fn follow(
    cluster: &Cluster,
    filter: &Filter,
    since: SystemTime,
    now: SystemTime,
    mut write: impl FnMut(&Record) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (sender, mut arrived) = mpsc::channel(HELD);
    let follows = follow_all(cluster, since, now, &sender);
    let merge = async {
        let mut ticks = interval(MERGE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut held: Vec<Record> = Vec::new();
        loop {
            tokio::select! {
                Some(record) = arrived.recv() => {
                    if filter.accepts(&record) && is_since(&record, since) {
                        held.push(record);
                    }
                }
                _ = ticks.tick() => flush(&mut held, &mut write)?,
            }
        }
    };
    tokio::select! {
        ended = follows => ended,
        ended = merge => ended,
    }
}

/// Follows every pod of the CA that there is or comes to be.
async fn follow_all(
    cluster: &Cluster,
    since: SystemTime,
    now: SystemTime,
    sender: &mpsc::Sender<Record>,
) -> anyhow::Result<()> {
    let clock = Clock::system();
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.system_namespace);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut follows = FuturesUnordered::new();
    let mut known = Known::new(since);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                for pod in replicas::pods(cluster).await? {
                    if let Some(followed) = known.takes_up(&pod) {
                        let now = clock.now().max(now);
                        follows.push(follow_one(&api, followed, now, sender));
                    }
                }
            }
            Some(followed) = follows.next() => {
                if let Some(problem) = known.gives_up(&followed) {
                    writeln!(std::io::stderr(), "not read: {problem}")?;
                }
            }
        }
    }
}

/// Which pods are followed, and what was said of those that cannot be.
struct Known {
    /// From when on a pod is read that was never seen before.
    since: SystemTime,
    now: HashSet<String>,
    /// Those that were followed and are not now, and from when on they would be.
    before: HashMap<String, SystemTime>,
    told: HashSet<String>,
}

impl Known {
    fn new(since: SystemTime) -> Self {
        Self {
            since,
            now: HashSet::new(),
            before: HashMap::new(),
            told: HashSet::new(),
        }
    }

    /// The pod, where it is to be followed and is not: its container may have been
    /// started again.
    fn takes_up(&mut self, pod: &Pod) -> Option<Followed> {
        let uid = pod.uid().unwrap_or_default();
        let statuses = pod.status.iter().flat_map(|it| &it.container_statuses);
        let runs = statuses.flatten().any(|container| {
            let state = container.state.as_ref();
            container.name == CONTAINER && state.is_some_and(|state| state.running.is_some())
        });
        if !runs || !self.now.insert(uid.clone()) {
            return None;
        }
        Some(Followed {
            pod: pod.name_any(),
            since: self.before.get(&uid).copied().unwrap_or(self.since),
            uid,
            problem: None,
        })
    }

    /// Notes that a log has ended, and returns what is to be said of it.
    fn gives_up(&mut self, followed: &Followed) -> Option<String> {
        self.now.remove(&followed.uid);
        self.before.insert(followed.uid.clone(), followed.since);
        let problem = format!("{}: {}", followed.pod, followed.problem.as_ref()?);
        self.told.insert(problem.clone()).then_some(problem)
    }
}

async fn follow_one(
    api: &Api<Pod>,
    mut followed: Followed,
    now: SystemTime,
    sender: &mpsc::Sender<Record>,
) -> Followed {
    let parameters = LogParams {
        follow: true,
        ..parameters(followed.since, now)
    };
    let read = read_one(api, &mut followed, &parameters, sender).await;
    Followed {
        problem: read.err().map(|error| error::describe(&error)),
        ..followed
    }
}

async fn read_one(
    api: &Api<Pod>,
    followed: &mut Followed,
    parameters: &LogParams,
    sender: &mpsc::Sender<Record>,
) -> anyhow::Result<()> {
    let log = api.log_stream(&followed.pod, parameters).await;
    let mut lines = log.context("reading its log failed")?.lines();
    while let Some(line) = lines.next().await {
        let line = line.context("its log broke off")?;
        if let Some(record) = Record::parse(&followed.pod, &line)
            && is_since(&record, followed.since)
        {
            followed.since = SystemTime::from(record.at) + Duration::from_nanos(1);
            if sender.send(record).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn flush(
    held: &mut Vec<Record>,
    write: &mut impl FnMut(&Record) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    held.sort_by_key(|record| record.at);
    held.drain(..).try_for_each(|record| write(&record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, state: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": format!("ca-{uid}"), "uid": uid},
            "status": {"containerStatuses": [{
                "name": "ca", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {state: {}},
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn a_replica_that_is_made_while_its_log_is_followed_is_followed_too() {
        let (begin, later) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LOOK);
        let mut known = Known::new(begin);
        let mut first = known.takes_up(&pod("a", "running")).expect("it is new");
        assert!(known.takes_up(&pod("a", "running")).is_none(), "once");
        assert!(known.takes_up(&pod("b", "waiting")).is_none(), "not yet");
        assert!(known.takes_up(&pod("b", "running")).is_some());
        // Its container was started again: what was read is not read again.
        assert_eq!(first.since, begin);
        first.since = later;
        assert_eq!(known.gives_up(&first), None);
        let again = known.takes_up(&pod("a", "running")).expect("it runs again");
        assert_eq!(again.since, later);
    }

    #[test]
    fn a_log_that_cannot_be_read_is_tried_again_and_named_once() {
        let mut known = Known::new(SystemTime::UNIX_EPOCH);
        for told in [true, false] {
            let followed = known.takes_up(&pod("a", "running")).unwrap();
            assert_eq!(followed.since, SystemTime::UNIX_EPOCH);
            let failed = Followed {
                problem: Some("forbidden".to_owned()),
                ..followed
            };
            let said = known.gives_up(&failed);
            assert_eq!(said.is_some(), told);
        }
    }

    #[test]
    fn records_of_several_replicas_come_in_the_order_of_their_times() {
        let record = |at: &str| {
            let line = json!({"timestamp": at, "target": bulkhead_ca::audit::TARGET});
            Record::parse("ca-1", &line.to_string()).unwrap()
        };
        let mut held = vec![
            record("2026-11-21T15:00:01Z"),
            record("2026-11-21T15:00:00Z"),
        ];
        let mut written = Vec::new();
        flush(&mut held, &mut |record| {
            written.push(record.at);
            Ok(())
        })
        .unwrap();
        assert!(written.is_sorted());
        assert_eq!(written.len(), 2);
        assert!(held.is_empty());
    }
}
