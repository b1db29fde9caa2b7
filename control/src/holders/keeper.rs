//! Writes what this replica knows, and, where it holds the lease, the sum.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, CertificateAuthority, CertificateAuthorityStatus, NAME, Phase,
    Proxies,
};
use bulkhead_crds::lease;
use bulkhead_crds::owner::{Owner, Standing};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_workload::credentials::Latest;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource as _};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::report::Report;
use super::sum::{Expected, Holder, HolderKind, sum};
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::object::{Key, Kind, Name, Pod};

/// How often it is looked whether there is something to write.
const LOOK: Duration = Duration::from_secs(2);
/// How often the sum is made while nothing is being rotated.
const AT_REST: Duration = Duration::from_secs(5);
/// How often everything is written though it says the same: what is older
/// tells that control is away.
const REFRESH: Duration = Duration::from_secs(30);
/// The same while a root is rotated, which waits for a sum of after each step.
const REFRESH_UNDER_WAY: Duration = Duration::from_secs(5);
/// A report that is older is of a replica that is away, and its proxies have
/// gone to others. Half a minute of it is for clocks that disagree.
const FRESH: Duration = Duration::from_secs(90);
const DEADLINE: Duration = Duration::from_secs(5);
const FIELD_MANAGER: &str = "bulkhead-control";
const KEY: &str = "report.json";
const LABEL: (&str, &str) = ("bulkhead.io/component", "proxy-report");

/// Keeps the reports.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    /// The namespace of Bulkhead.
    pub(crate) namespace: String,
    /// This replica: its pod's name.
    pub(crate) instance: String,
    /// The ServiceAccount of all replicas.
    pub(crate) service_account: String,
    /// This replica's own certificate and trust bundle.
    pub(crate) credentials: Latest,
    /// What owns the report where this replica is no pod.
    pub(crate) owner: Owner,
    pub(crate) held: lease::Held,
    pub(crate) hub: Hub,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
}

/// What was written last, and when.
#[derive(Default)]
struct Written {
    report: Option<(Report, Instant)>,
    proxies: Option<(Proxies, Instant)>,
    /// When the sum is to be made next.
    sum_due: Option<Instant>,
    /// Whether the last look failed, so that it is said once.
    is_failing: bool,
}

impl Keeper {
    /// Keeps them until the drain starts.
    pub(crate) async fn run(self, mut drain: drain::Watch) {
        let mut written = Written::default();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = drain.started() => return,
            }
            // Pods that nobody has told us of would not be missing.
            if !self.hub.has_listed(&[Kind::Pod]) {
                continue;
            }
            let problem = match timeout(DEADLINE, self.look(&mut written)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some(format!("no answer within {DEADLINE:?}")),
            };
            if let Some(error) = &problem
                && !written.is_failing
            {
                tracing::warn!(
                    error,
                    "writing which proxies hold the trust bundle failed and is tried again; a \
                     rotation of the root waits meanwhile"
                );
            }
            written.is_failing = problem.is_some();
        }
    }

    async fn look(&self, written: &mut Written) -> anyhow::Result<()> {
        let mut holders = self.hub.holders();
        let held = self.credentials.get().map(|current| current.held());
        holders.push((self.replica().uid, held));
        let own = Report::new(self.clock.now(), &holders);
        let is_known = written
            .report
            .as_ref()
            .is_some_and(|(report, at)| report.says_the_same_as(&own) && at.elapsed() < REFRESH);
        if !is_known {
            self.write_report(&own).await?;
            written.report = Some((own, Instant::now()));
        }
        if !self.held.is_held() {
            *written = Written {
                proxies: None,
                sum_due: None,
                ..std::mem::take(written)
            };
            self.metrics.no_holders();
            return Ok(());
        }
        if written.sum_due.is_some_and(|due| Instant::now() < due) {
            return Ok(());
        }
        self.sum_up(written).await
    }

    /// Sums up over all replicas, and writes what is new.
    async fn sum_up(&self, written: &mut Written) -> anyhow::Result<()> {
        let authorities: Api<CertificateAuthority> = self.api();
        let found = authorities.get_opt(NAME).await;
        let status = found
            .context("reading the CertificateAuthority failed")?
            .and_then(|authority| authority.status)
            .unwrap_or_default();
        let is_at_rest = matches!(status.phase, None | Some(Phase::Settled));
        let (pause, refresh) = match is_at_rest {
            true => (AT_REST, REFRESH),
            false => (LOOK, REFRESH_UNDER_WAY),
        };
        written.sum_due = Some(Instant::now() + pause);
        let Some(expected) = expected(&status) else {
            self.metrics.no_holders();
            return Ok(());
        };
        let now = self.clock.now();
        let reports = self.reports(now).await?;
        let proxies = sum(self.holders(), &reports, &expected, now);
        self.metrics.holders(&proxies);
        let is_known = written.proxies.as_ref().is_some_and(|(before, at)| {
            let same = Proxies {
                at: before.at.clone(),
                ..proxies.clone()
            };
            *before == same && at.elapsed() < refresh
        });
        if !is_known {
            let status = json!({
                "apiVersion": CertificateAuthority::api_version(&()),
                "kind": CertificateAuthority::kind(&()),
                "status": { "proxies": proxies },
            });
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            authorities
                .patch_status(NAME, &parameters, &Patch::Apply(status))
                .await
                .context("writing the status of the CertificateAuthority failed")?;
            written.proxies = Some((proxies, Instant::now()));
        }
        Ok(())
    }

    /// Whose certificates others verify: all proxies, and all replicas of control.
    /// While one of these shows a certificate of an old root, proxies need that
    /// root.
    fn holders(&self) -> Vec<Holder> {
        let mut holders = self.hub.read(|index| {
            let holder = |(key, pod): (&Key, &Pod), kind| Holder {
                pod: key.clone(),
                uid: Name::clone(&pod.uid),
                kind,
            };
            let proxies = index.proxies().map(|pod| holder(pod, HolderKind::Proxy));
            let replicas = index
                .running_as(&self.namespace, &self.service_account)
                .filter(|(_, pod)| !pod.has_proxy);
            let replicas = replicas.map(|pod| holder(pod, HolderKind::Control));
            proxies.chain(replicas).collect::<Vec<_>>()
        });
        let replica = self.replica();
        if !holders.iter().any(|holder| holder.uid == replica.uid) {
            holders.push(replica);
        }
        holders
    }

    /// This replica, which may be no pod.
    fn replica(&self) -> Holder {
        let pod = Key::new(&self.namespace, &self.instance);
        let uid = self
            .hub
            .read(|index| Some(Name::clone(&index.pod(&pod)?.uid)));
        Holder {
            uid: uid.unwrap_or_else(|| self.instance.as_str().into()),
            pod,
            kind: HolderKind::Control,
        }
    }

    /// What all replicas have written that are there.
    async fn reports(&self, now: SystemTime) -> anyhow::Result<Vec<Report>> {
        let ours = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let written = self.api::<ConfigMap>().list(&ours).await;
        let written = written.context("reading the reports of all replicas failed")?;
        let reports = written.items.into_iter().filter_map(|config_map| {
            let text = config_map.data?.remove(KEY)?;
            serde_json::from_str::<Report>(&text).ok()
        });
        Ok(reports
            .filter(|report| is_fresh(report.at(), now))
            .collect())
    }

    async fn write_report(&self, report: &Report) -> anyhow::Result<()> {
        let name = format!("bulkhead-proxies-{}", self.instance);
        let Some(owners) = self.owners().await? else {
            return Ok(());
        };
        let text = serde_json::to_string(report)?;
        let config_map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())])),
                owner_references: Some(owners).filter(|owners| !owners.is_empty()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), text)])),
            ..ConfigMap::default()
        };
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        self.api::<ConfigMap>()
            .patch(&name, &parameters, &Patch::Apply(&config_map))
            .await
            .with_context(|| format!("writing the ConfigMap {name} failed"))?;
        Ok(())
    }

    /// The pod that this replica is, with which its report goes; none while
    /// Bulkhead is being uninstalled.
    async fn owners(&self) -> anyhow::Result<Option<Vec<OwnerReference>>> {
        let pod = Key::new(&self.namespace, &self.instance);
        let uid = self
            .hub
            .read(|index| Some(Name::clone(&index.pod(&pod)?.uid)));
        if let Some(uid) = uid {
            return Ok(Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: self.instance.clone(),
                uid: uid.to_string(),
                ..OwnerReference::default()
            }]));
        }
        let standing = self.owner.standing().await;
        Ok(
            match standing.context("reading our own ClusterRole failed")? {
                Standing::Owned(owners) => Some(owners),
                Standing::Uninstalling => None,
            },
        )
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// Whether a report is of now: one that is as far in the future as it may be old
/// is of a clock that nobody can tell its age by.
fn is_fresh(at: SystemTime, now: SystemTime) -> bool {
    let off = now.duration_since(at);
    off.unwrap_or_else(|ahead| ahead.duration()) < FRESH
}

/// What proxies are to hold, as far as the CA has said.
fn expected(status: &CertificateAuthorityStatus) -> Option<Expected> {
    let signs = |kind, state| kind == AuthorityKind::Root && state == AuthorityState::Active;
    let root = status
        .authorities
        .iter()
        .find(|authority| signs(authority.kind, authority.state))?;
    Some(Expected {
        bundle: status.trust_bundle.as_ref()?.id.clone(),
        signing_root: root.fingerprint.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn a_report_of_a_clock_that_is_far_ahead_or_behind_counts_for_nothing() {
        let now = UNIX_EPOCH + 1000 * FRESH;
        let second = Duration::from_secs(1);
        for near in [now, now - FRESH + second, now + FRESH - second] {
            assert!(is_fresh(near, now), "{near:?}");
        }
        for far in [now - FRESH, now + FRESH, now + 100 * FRESH] {
            assert!(!is_fresh(far, now), "{far:?}");
        }
    }
}
