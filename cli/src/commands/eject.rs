//! `bulkhead eject`: level 3 of the kill switch.

use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use bulkhead_core::duration;
use bulkhead_crds::emergency::{Bypass, Ejection, EjectionStatus, InjectionStop};
use bulkhead_runtime::clock::Clock;
use clap::Args;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::cluster::{Cluster, ClusterArgs, block_on};
use crate::emergency::{
    Outcome, Pace, Presence, Request, ScopeArgs, Switch, TermsArgs, Turned, find,
    is_obeyed_by_the_api_server, leave_out, manifest, mesh_pods, restart_all, sort, stand_aside,
    turn, write_turned,
};

/// EMERGENCY, level 3: restart workloads without their sidecars.
///
/// First it does what `off` and `bypass` do, so that pods with and without a
/// sidecar understand one another. Then Deployments, StatefulSets and DaemonSets
/// are restarted some at a time, each watched until it is healthy. It stops at
/// the first that is not; typed again, it goes on with what is left.
#[derive(Debug, Args)]
pub struct Eject {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    terms: TermsArgs,
    /// How many workloads are restarted at the same time
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=100))]
    parallel: u16,
    /// How long a workload may take to become healthy
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    patience: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Eject {
    pub(super) fn run(self) -> anyhow::Result<()> {
        block_on(self.turn())
    }

    async fn turn(self) -> anyhow::Result<()> {
        let clock = Clock::system();
        let cluster = self.cluster.connect().await?;
        let scope = self.scope.resolve(&cluster).await?;
        let request = self.terms.request(scope, clock.now());
        let mut out = std::io::stdout();
        if self.terms.dry_run {
            let output = self.terms.output;
            let stop = manifest::<InjectionStop>(&request, output)?;
            let bypass = manifest::<Bypass>(&request, output)?;
            // Applied, these two are all that an ejection is, but for the restarts.
            let then = "# then: kubectl rollout restart, one workload after the other";
            return Ok(write!(out, "{then}\n---\n{stop}---\n{bypass}")?);
        }
        let ejection = self.prepare(&cluster, &request, &mut out).await?;
        self.restart(&cluster, &request, &ejection, &mut out).await
    }

    /// Turns all three switches, or goes on with those that are on.
    async fn prepare(
        &self,
        cluster: &Cluster,
        request: &Request,
        out: &mut impl Write,
    ) -> anyhow::Result<Ejection> {
        let stop = turn_or_keep::<InjectionStop>(cluster, request).await?;
        if let Some(stop) = &stop.new {
            write_turned(out, cluster, request, "Injection is off", stop)?;
            if !is_obeyed_by_the_api_server(cluster).await? {
                leave_out(cluster, request.now).await?;
            }
        }
        let bypass = turn_or_keep::<Bypass>(cluster, request).await?;
        if let Some(bypass) = &bypass.new {
            write_turned(out, cluster, request, "Sidecars stand aside", bypass)?;
        }
        stand_aside(cluster, &request.scope, bypass.switch(), out).await?;
        let ejection = turn_or_keep::<Ejection>(cluster, request).await?;
        match &ejection.new {
            Some(new) => write_turned(out, cluster, request, "Sidecars are ejected", new)?,
            None => writeln!(
                out,
                "switch   ejection/{} goes on",
                ejection.switch().name_any()
            )?,
        }
        Ok(ejection.switch().clone())
    }

    async fn restart(
        &self,
        cluster: &Cluster,
        request: &Request,
        ejection: &Ejection,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let pods = mesh_pods(cluster, &request.scope).await?;
        let with_sidecar = pods.iter().filter(|pod| pod.sidecar != Presence::Stopped);
        let sorted = sort(cluster, &request.scope, with_sidecar).await?;
        let before = ejection.status.clone().unwrap_or_default().restarted;
        let count = u32::try_from(sorted.restartable.len()).unwrap_or(u32::MAX);
        let status = |outcome: &Outcome| EjectionStatus {
            workloads: before.saturating_add(count),
            restarted: before.saturating_add(outcome.restarted),
            stopped_at: outcome
                .stopped_at
                .as_ref()
                .map(|(workload, _)| workload.to_string()),
        };
        record(cluster, ejection, status(&Outcome::default())).await;
        let pace = Pace {
            parallel: usize::from(self.parallel),
            patience: self.patience,
        };
        let workloads = sorted.restartable.into_iter().collect();
        let outcome = restart_all(
            cluster,
            workloads,
            pace,
            request.now,
            out,
            async |outcome| {
                record(cluster, ejection, status(outcome)).await;
            },
        )
        .await?;
        let options = request.scope.options();
        for (namespace, name, owner) in &sorted.others {
            writeln!(
                out,
                "left     {namespace}/{name} ({owner}): delete it, or let it finish"
            )?;
        }
        if let Some((workload, why)) = outcome.stopped_at {
            bail!(
                "{workload} did not become healthy, and no other was begun: {why}. `kubectl \
                 rollout status` says more; when it is well, `bulkhead eject{options}` goes on"
            );
        }
        writeln!(
            out,
            "\n{} of {count} workloads run without sidecars.\n\
             \nThe way back: bulkhead on{options} --restart",
            outcome.restarted
        )?;
        Ok(())
    }
}

/// A switch that was turned now, or one that was on.
struct Kept<K> {
    new: Option<Turned<K>>,
    old: Option<K>,
}

impl<K> Kept<K> {
    fn switch(&self) -> &K {
        let new = self.new.as_ref().map(|turned| &turned.switch);
        new.or(self.old.as_ref())
            .expect("one of them was there when this was made")
    }
}

/// Turns a switch, unless one for exactly this scope is on, by an ejection that
/// was interrupted say.
async fn turn_or_keep<K: Switch>(cluster: &Cluster, request: &Request) -> anyhow::Result<Kept<K>> {
    let scope = &request.scope;
    let found = find::<K>(cluster, scope).await?;
    let is_same = |switch: &K| {
        switch.namespace().as_deref() == Some(scope.switch_namespace())
            && switch.terms().selector.as_ref() == scope.selector()
            && switch.terms().until == request.terms.until
            && switch.is_on(request.now)
    };
    match found.into_iter().find(is_same) {
        Some(old) => Ok(Kept {
            new: None,
            old: Some(old),
        }),
        None => Ok(Kept {
            new: Some(turn(cluster, request).await?),
            old: None,
        }),
    }
}

/// Writes down how far it has come, for `kubectl get`. The restarts go on
/// without it.
async fn record(cluster: &Cluster, ejection: &Ejection, status: EjectionStatus) {
    let namespace = ejection.namespace().unwrap_or_default();
    let api: Api<Ejection> = Api::namespaced(cluster.client.clone(), &namespace);
    // A merge removes what is null, and leaves what is absent.
    let patch = json!({"status": {
        "workloads": status.workloads,
        "restarted": status.restarted,
        "stoppedAt": status.stopped_at,
    }});
    let name = ejection.name_any();
    let _ = api
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
}
