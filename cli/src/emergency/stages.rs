//! Level 2 in stages, so that nothing is refused in between: servers take
//! plaintext before any client sends it, and on the way back no client sends it
//! any more before servers refuse it.
//!
//! Control does this by itself while it runs. Where it does not answer, each
//! sidecar is told over the API server, and the kubelets bring the same order to
//! those that were not reached and to pods that come later.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use bulkhead_core::bypass::BypassOrder;
use bulkhead_core::discovery::{Bypass as Asked, BypassPhase};
use bulkhead_crds::emergency::{self, Bypass, Emergency as _};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tokio::time::{Instant, interval};

use super::order;
use super::scope::Scope;
use super::sidecars::{MeshPod, Missed, Presence, mesh_pods, order_all};
use crate::cluster::Cluster;
use crate::error;

/// How long control may take to be heard of.
const FIRST_WORD: Duration = Duration::from_millis(500);
/// How long it may take to bring all sidecars to forwarding.
const DONE: Duration = Duration::from_millis(1_500);
const POLL: Duration = Duration::from_millis(50);
/// How long a kubelet may take to refresh what it mounted: its period of a
/// minute with what it adds to it, and its cache.
const REFRESH: Duration = Duration::from_secs(150);
/// Between looks at sidecars that still have the old order.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Sidecars that are named; the rest is a number.
const NAMED: usize = 20;

/// Brings the sidecars of a bypass to forwarding.
pub(crate) async fn stand_aside(
    cluster: &Cluster,
    scope: &Scope,
    bypass: &Bypass,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let (pods, by_control) =
        futures::join!(mesh_pods(cluster, scope), told_by_control(cluster, bypass));
    let pods = pods?;
    let running: Vec<MeshPod> = pods
        .iter()
        .filter(|pod| pod.sidecar == Presence::Running)
        .cloned()
        .collect();
    let told = by_control.unwrap_or_default();
    if usize::try_from(told).is_ok_and(|told| told >= running.len()) && by_control.is_some() {
        writeln!(out, "control  told all {told} sidecars, and they forward")?;
        return Ok(());
    }
    match by_control {
        None => writeln!(
            out,
            "control  does not answer; each sidecar is told over the API server"
        )?,
        Some(told) => writeln!(
            out,
            "control  told {told} of {} sidecars; each is told over the API server as well",
            running.len()
        )?,
    }
    let mut missed = Vec::new();
    for (phase, name, enough) in [
        (BypassPhase::Accept, "accept ", &["accept", "forward"][..]),
        (BypassPhase::Forward, "forward", &["forward"][..]),
    ] {
        write_orders(cluster, &pods, bypass, phase, out).await?;
        let order = for_all(order::asked(bypass.terms(), phase)).to_json();
        missed = order_all(cluster, &running, &order, enough).await;
        let (reached, of) = (running.len() - missed.len(), running.len());
        let what = match phase {
            BypassPhase::Accept => "take plaintext as servers",
            _ => "hand bytes on untouched",
        };
        writeln!(out, "{name}  {reached} of {of} sidecars {what}")?;
        out.flush()?;
    }
    write_missed(out, &missed)?;
    if !missed.is_empty() {
        writeln!(
            out,
            "         They follow when their kubelets refresh what is mounted, within about \
             a minute and a half."
        )?;
    }
    Ok(())
}

/// How many sidecars control says that it has brought to forwarding; nothing
/// where it is not heard of, or not done in time.
async fn told_by_control(cluster: &Cluster, bypass: &Bypass) -> Option<u32> {
    let namespace = bypass.namespace()?;
    let api: Api<Bypass> = Api::namespaced(cluster.client.clone(), &namespace);
    let began = Instant::now();
    let mut polls = interval(POLL);
    loop {
        polls.tick().await;
        let status = api.get(&bypass.name_any()).await.ok()?.status;
        let phase = status.as_ref().and_then(|status| status.phase);
        match phase {
            Some(emergency::BypassPhase::Forwarding) => {
                return status.map(|status| status.proxies);
            }
            Some(emergency::BypassPhase::Accepting) if began.elapsed() < DONE => {}
            None if began.elapsed() < FIRST_WORD => {}
            _ => return None,
        }
    }
}

/// Writes the order into every namespace of the pods.
async fn write_orders(
    cluster: &Cluster,
    pods: &[MeshPod],
    bypass: &Bypass,
    phase: BypassPhase,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let all = bypasses(cluster, bypass).await;
    let with_sidecar = pods.iter().filter(|pod| pod.sidecar != Presence::Stopped);
    let namespaces: BTreeSet<_> = with_sidecar.map(|pod| pod.namespace.as_str()).collect();
    for namespace in namespaces {
        let system = &cluster.system_namespace;
        let Some(order) = order::of_namespace(&all, system, namespace, pods, phase) else {
            continue;
        };
        let owner = order::owner(cluster, bypass, namespace).await;
        if let Err(error) = order::write(cluster, namespace, &order, owner.as_ref()).await {
            // The sidecars that are reached need no file.
            writeln!(out, "file     {}", error::describe(&error))?;
        }
    }
    Ok(())
}

/// This bypass, and those that are on beside it.
async fn bypasses(cluster: &Cluster, bypass: &Bypass) -> Vec<Bypass> {
    let api: Api<Bypass> = Api::all(cluster.client.clone());
    let found = api.list(&ListParams::default()).await;
    let mut all = found.map(|found| found.items).unwrap_or_default();
    if !all
        .iter()
        .any(|other| other.metadata.uid == bypass.metadata.uid)
    {
        all.push(bypass.clone());
    }
    all
}

/// Takes the sidecars of a scope back into the path, but for those that one of
/// `remaining` is for. The bypasses themselves are gone already.
pub(crate) async fn step_back(
    cluster: &Cluster,
    scope: &Scope,
    remaining: &[Bypass],
    now: SystemTime,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let system = cluster.system_namespace.as_str();
    let is_free = |pod: &MeshPod| {
        !remaining
            .iter()
            .any(|bypass| bypass.is_on(now) && bypass.covers(system, &pod.namespace, &pod.labels))
    };
    let pods = mesh_pods(cluster, scope).await?;
    let running: Vec<MeshPod> = pods
        .iter()
        .filter(|pod| pod.sidecar == Presence::Running && is_free(pod))
        .cloned()
        .collect();
    let on: Vec<Bypass> = remaining
        .iter()
        .filter(|bypass| bypass.is_on(now))
        .cloned()
        .collect();
    let files = order::namespaces(cluster, scope.namespace()).await?;
    for namespace in &files {
        if of_others(&on, system, namespace, &pods).is_none() {
            let accept = for_all(taken_back(BypassPhase::Accept));
            order::write(cluster, namespace, &accept, None).await?;
        }
    }
    let forwarding = settle(cluster, &running, BypassPhase::Accept, out).await?;
    write_missed(out, &forwarding)?;
    for namespace in &files {
        match of_others(&on, system, namespace, &pods) {
            Some(order) => order::write(cluster, namespace, &order, None).await?,
            None => order::withdraw(cluster, namespace).await?,
        }
    }
    let missed = settle(cluster, &running, BypassPhase::Off, out).await?;
    if missed.is_empty() {
        return Ok(());
    }
    write_missed(out, &missed)?;
    bail!(
        "{} of {} sidecars enforce no policy yet, though the bypass is over; `bulkhead on`, typed \
         again, goes on with them, and one that cannot be reached is right again once it is \
         connected to control or restarted",
        missed.len(),
        running.len()
    )
}

/// The order for a namespace by bypasses that stay on.
fn of_others(
    on: &[Bypass],
    system_namespace: &str,
    namespace: &str,
    pods: &[MeshPod],
) -> Option<BypassOrder> {
    order::of_namespace(on, system_namespace, namespace, pods, BypassPhase::Forward)
}

/// Tells every sidecar, and waits until none does more than `phase` any longer:
/// what the kubelet has mounted counts until it is refreshed. What control has
/// said is taken back, for it may be gone. Returns those that still do more.
async fn settle(
    cluster: &Cluster,
    running: &[MeshPod],
    phase: BypassPhase,
    out: &mut impl Write,
) -> anyhow::Result<Vec<Missed>> {
    let (name, what, enough) = match phase {
        BypassPhase::Off => ("enforce", "enforce policy again", &["off"][..]),
        _ => ("secure ", "send mTLS again", &["accept", "off"][..]),
    };
    let order = BypassOrder {
        takes_back: true,
        ..for_all(taken_back(phase))
    };
    let order = order.to_json();
    let deadline = Instant::now() + REFRESH;
    let mut looks = interval(LOOK_AGAIN);
    let mut waiting = running.to_vec();
    let mut said = usize::MAX;
    loop {
        looks.tick().await;
        let missed = order_all(cluster, &waiting, &order, enough).await;
        if missed.len() != said {
            said = missed.len();
            let done = running.len() - said;
            writeln!(out, "{name}  {done} of {} sidecars {what}", running.len())?;
            out.flush()?;
        }
        if missed.is_empty() || Instant::now() >= deadline {
            return Ok(missed);
        }
        waiting = missed.into_iter().map(|(pod, _)| pod).collect();
    }
}

fn taken_back(phase: BypassPhase) -> Asked {
    Asked {
        phase,
        reason: "the bypass was turned back".to_owned(),
        ..Asked::default()
    }
}

/// An order for all pods that are told it.
fn for_all(bypass: Asked) -> BypassOrder {
    BypassOrder {
        bypass,
        ..BypassOrder::default()
    }
}

fn write_missed(out: &mut impl Write, missed: &[Missed]) -> anyhow::Result<()> {
    for (pod, problem) in missed.iter().take(NAMED) {
        writeln!(out, "missed   {}/{}: {problem}", pod.namespace, pod.name)?;
    }
    if missed.len() > NAMED {
        writeln!(out, "missed   and {} more", missed.len() - NAMED)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
