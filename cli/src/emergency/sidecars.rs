//! The sidecars that run, and how each is reached over the API server alone:
//! through the kubelet of its node, to its admin port on loopback.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bulkhead_core::ports;
use bulkhead_inject::PROXY_CONTAINER;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde::Deserialize;

use super::scope::Scope;
use crate::cluster::Cluster;
use crate::{admin, error};

/// Pods of one page of a list.
const PAGE: u32 = 500;

/// A pod that has a sidecar, or should have one.
#[derive(Clone, Debug)]
pub(crate) struct MeshPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) owner: Option<OwnerReference>,
    pub(crate) sidecar: Presence,
}

/// Whether a pod has a sidecar.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Presence {
    Running,
    /// It has one that does not run yet, or no more.
    Idle,
    /// A switch kept it away.
    Stopped,
}

/// What a sidecar says is in force.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct InForce {
    pub(crate) phase: String,
}

/// A sidecar that did not do what it was asked, and why.
pub(crate) type Missed = (MeshPod, String);

/// The pods of a scope that have a sidecar or were created without one by a
/// switch. Those that have finished are left out.
pub(crate) async fn mesh_pods(cluster: &Cluster, scope: &Scope) -> anyhow::Result<Vec<MeshPod>> {
    let api: Api<Pod> = match scope.namespace() {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let mut page = ListParams::default().limit(PAGE);
    if let Some(selector) = scope.selector() {
        let labels = selector.match_labels.iter();
        let terms: Vec<_> = labels
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        page = page.labels(&terms.join(","));
    }
    let mut found = Vec::new();
    loop {
        let pods = api
            .list(&page)
            .await
            .with_context(|| format!("listing the pods of {scope} failed"))?;
        found.extend(pods.items.into_iter().filter_map(mesh_pod));
        match pods.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn mesh_pod(pod: Pod) -> Option<MeshPod> {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.iter().flatten();
    let has_sidecar = init
        .chain(&spec.containers)
        .any(|container| container.name == PROXY_CONTAINER);
    let runs = status.is_some_and(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
            .filter(|container| container.name == PROXY_CONTAINER)
            .any(|container| {
                let state = container.state.as_ref();
                state.is_some_and(|state| state.running.is_some())
            })
    });
    let is_stopped = pod.annotations().contains_key(super::STOPPED_ANNOTATION);
    let sidecar = match (has_sidecar, runs) {
        (true, true) => Presence::Running,
        (true, false) => Presence::Idle,
        (false, _) if is_stopped => Presence::Stopped,
        (false, _) => return None,
    };
    let mut owners = pod.owner_references().iter();
    Some(MeshPod {
        namespace: pod.namespace()?,
        name: pod.name_any(),
        labels: pod.labels().clone(),
        owner: owners.find(|owner| owner.controller == Some(true)).cloned(),
        sidecar,
    })
}

/// Gives an order to every sidecar, and returns those that did not come to one
/// of these phases, each with what was in the way.
pub(crate) async fn order_all(
    cluster: &Cluster,
    pods: &[MeshPod],
    order: &str,
    phases: &[&str],
) -> Vec<Missed> {
    let asked = pods.iter().map(|pod| async move {
        let of = (pod.namespace.as_str(), pod.name.as_str());
        let answer = admin::post(cluster, of, ports::PROXY_ADMIN, "/bypass", order).await;
        let answer: anyhow::Result<InForce> = answer;
        let problem = match answer {
            Ok(in_force) if phases.contains(&in_force.phase.as_str()) => return None,
            Ok(in_force) => format!("it is told to {} by somebody else", in_force.phase),
            Err(error) => error::describe(&error),
        };
        Some((pod.clone(), problem))
    });
    futures::stream::iter(asked)
        .buffer_unordered(admin::AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}
