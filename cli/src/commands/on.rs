//! `bulkhead on`: the way back from every level of the kill switch.

use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use bulkhead_core::duration;
use bulkhead_crds::emergency::{Bypass, Ejection, InjectionStop};
use bulkhead_runtime::clock::Clock;
use clap::Args;
use kube::Api;
use kube::api::ListParams;

use crate::cluster::{Cluster, ClusterArgs, block_on};
use crate::emergency::{
    Pace, Presence, Scope, ScopeArgs, Switch, banner, find, has_orders, is_forbidden,
    is_obeyed_by_the_api_server, leave_out, mesh_pods, remove, restart_all, sort, step_back,
};
use crate::error;

/// The way back from off, bypass and eject.
///
/// Turns back every switch of the scope, whoever turned it; without a scope,
/// every switch of the cluster. Pods that were created without a sidecar go on
/// without until they are replaced, which --restart does.
#[derive(Debug, Args)]
pub struct On {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Restart the workloads whose pods have no sidecar because of a switch
    #[arg(long)]
    restart: bool,
    /// How many workloads are restarted at the same time
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=100))]
    parallel: u16,
    /// How long a workload may take to become healthy
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    patience: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl On {
    pub(super) fn run(self) -> anyhow::Result<()> {
        block_on(self.turn_back())
    }

    async fn turn_back(self) -> anyhow::Result<()> {
        let clock = Clock::system();
        let cluster = self.cluster.connect().await?;
        let scope = self.scope.resolve(&cluster).await?;
        let mut out = std::io::stdout();
        let ejections = remove_all::<Ejection>(&cluster, &scope, &clock, &mut out).await?;
        let stops = remove_all::<InjectionStop>(&cluster, &scope, &clock, &mut out).await?;
        if stops > 0 && !is_obeyed_by_the_api_server(&cluster).await? {
            leave_out(&cluster, clock.now()).await?;
        }
        // Pods get their sidecars before anybody insists on mTLS again.
        self.restart_all(&cluster, &scope, &clock, &mut out).await?;
        let bypasses = remove_all::<Bypass>(&cluster, &scope, &clock, &mut out).await?;
        if bypasses > 0 || has_orders(&cluster, scope.namespace()).await {
            let all: Api<Bypass> = Api::all(cluster.client.clone());
            let remaining = all.list(&ListParams::default()).await;
            let remaining = remaining.map(|found| found.items).unwrap_or_default();
            step_back(&cluster, &scope, &remaining, clock.now(), &mut out).await?;
        }
        if ejections + stops + bypasses == 0 {
            writeln!(
                out,
                "No switch is on in {scope}, of those that you may see."
            )?;
        }
        Ok(banner::show(&cluster, clock.now()).await?)
    }

    /// Says which pods have no sidecar because of a switch, and restarts their
    /// workloads where that is asked for.
    async fn restart_all(
        &self,
        cluster: &Cluster,
        scope: &Scope,
        clock: &Clock,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let pods = match mesh_pods(cluster, scope).await {
            Ok(pods) => pods,
            // Whoever may turn injection off and on need not see pods.
            Err(error) if !self.restart => {
                writeln!(out, "unseen   {}", error::describe(&error))?;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let without = pods.iter().filter(|pod| pod.sidecar == Presence::Stopped);
        let count = without.clone().count();
        if count == 0 {
            return Ok(());
        }
        let sorted = sort(cluster, scope, without).await?;
        writeln!(
            out,
            "without  {count} pods have no sidecar because of a switch"
        )?;
        for (namespace, name, owner) in &sorted.others {
            writeln!(
                out,
                "left     {namespace}/{name} ({owner}): delete it, or let it finish"
            )?;
        }
        if !self.restart {
            writeln!(
                out,
                "         where STRICT is set, calls from them are refused until they are replaced:"
            )?;
            for workload in &sorted.restartable {
                let (kind, name) = (workload.kind.as_str(), &workload.name);
                let namespace = &workload.namespace;
                writeln!(
                    out,
                    "then     kubectl -n {namespace} rollout restart {kind}/{name}"
                )?;
            }
            let options = scope.options();
            writeln!(
                out,
                "or       bulkhead on{options} --restart   (one after the other)"
            )?;
            return Ok(());
        }
        let pace = Pace {
            parallel: usize::from(self.parallel),
            patience: self.patience,
        };
        let workloads = sorted.restartable.into_iter().collect();
        let nobody = async |_: &_| {};
        let outcome = restart_all(cluster, workloads, pace, clock.now(), out, nobody).await?;
        match outcome.stopped_at {
            None => Ok(()),
            Some((workload, why)) => bail!(
                "{workload} did not become healthy with its sidecar, and no other was begun: \
                 {why}. A bypass that is on was left on; when all is well, `bulkhead on --restart` \
                 goes on"
            ),
        }
    }
}

/// Removes the switches of a kind, and returns how many there were. Who may not
/// see a kind has the others turned back.
async fn remove_all<K: Switch>(
    cluster: &Cluster,
    scope: &Scope,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<usize> {
    let switches = match find::<K>(cluster, scope).await {
        Ok(switches) => switches,
        Err(error) if is_forbidden(&error) => {
            writeln!(out, "unseen   {}", error::describe(&error))?;
            return Ok(0);
        }
        Err(error) => return Err(error),
    };
    for switch in &switches {
        remove(cluster, switch).await?;
        let line = banner::line(switch, &cluster.system_namespace, clock.now());
        writeln!(out, "back     {line}")?;
    }
    Ok(switches.len())
}
