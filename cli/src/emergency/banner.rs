//! What every answer begins with while a switch is on, so that nobody looks for
//! an hour for what somebody turned on purpose.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use bulkhead_crds::emergency::{Bypass, Ejection, InjectionStop, Level};
use kube::Api;
use kube::api::ListParams;
use tokio::time::timeout;

use super::scope;
use super::switch::Switch;
use super::terms::end;
use crate::cluster::Cluster;

/// How long an answer may be held up by this.
const WITHIN: Duration = Duration::from_secs(3);

/// A line for each switch that is on. None where the kinds are not installed or
/// may not be listed: whatever the command is for goes on.
pub async fn lines(cluster: &Cluster, now: SystemTime) -> Vec<String> {
    let all = async {
        let (stops, bypasses, ejections) = futures::join!(
            of::<InjectionStop>(cluster, now),
            of::<Bypass>(cluster, now),
            of::<Ejection>(cluster, now),
        );
        [stops, bypasses, ejections].concat()
    };
    timeout(WITHIN, all).await.unwrap_or_default()
}

/// Writes the lines to standard error, where no program takes them for a result.
pub async fn show(cluster: &Cluster, now: SystemTime) -> std::io::Result<()> {
    let lines = lines(cluster, now).await;
    let mut stderr = std::io::stderr().lock();
    for line in lines {
        writeln!(stderr, "!! {line}")?;
    }
    Ok(())
}

async fn of<K: Switch>(cluster: &Cluster, now: SystemTime) -> Vec<String> {
    let api: Api<K> = Api::all(cluster.client.clone());
    let found = api.list(&ListParams::default()).await;
    let switches = found.map(|found| found.items).unwrap_or_default();
    let is_on = |switch: &&K| switch.is_on(now);
    switches
        .iter()
        .filter(is_on)
        .map(|switch| line(switch, &cluster.system_namespace, now))
        .collect()
}

/// One switch: what is true, where, until when, who and why.
pub(crate) fn line<K: Switch>(switch: &K, system_namespace: &str, now: SystemTime) -> String {
    let what = match K::LEVEL {
        Level::Injection => "INJECTION IS OFF",
        Level::Bypass => "SIDECARS ARE BYPASSED",
        Level::Ejection => "SIDECARS ARE EJECTED",
    };
    let terms = switch.terms();
    format!(
        "{what} in {}, {}: {} ({})",
        scope::describe(switch, system_namespace),
        end(terms.until.as_ref(), now),
        terms.reason,
        terms.by.as_deref().unwrap_or("nobody knows who"),
    )
}
