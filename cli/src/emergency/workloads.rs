//! The workloads that pods belong to: those that can be restarted, and those
//! that only their owners can.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use super::scope::{Scope, WorkloadKind, WorkloadName};
use super::sidecars::MeshPod;
use crate::cluster::Cluster;

/// A workload whose controller makes new pods in place of old ones, at a pace
/// that its owner chose.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) kind: WorkloadKind,
    pub(crate) name: String,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.kind.as_str(), self.name)
    }
}

/// Pods by what can be done about them.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    pub(crate) restartable: BTreeSet<Workload>,
    /// Pods of Jobs, of other controllers, and of nobody: namespace, name, and
    /// whose they are.
    pub(crate) others: Vec<(String, String, String)>,
}

/// Finds out whose the pods are.
pub(crate) async fn sort<'a>(
    cluster: &Cluster,
    scope: &Scope,
    pods: impl Iterator<Item = &'a MeshPod>,
) -> anyhow::Result<Sorted> {
    let deployments = deployments(cluster, scope).await?;
    let mut sorted = Sorted::default();
    for pod in pods {
        let found = pod.owner.as_ref().and_then(|owner| {
            let key = (pod.namespace.clone(), owner.name.clone());
            let (kind, name) = match owner.kind.as_str() {
                "ReplicaSet" => (WorkloadKind::Deployment, deployments.get(&key)?.clone()),
                "StatefulSet" => (WorkloadKind::StatefulSet, owner.name.clone()),
                "DaemonSet" => (WorkloadKind::DaemonSet, owner.name.clone()),
                _ => return None,
            };
            Some(WorkloadName { kind, name })
        });
        match found {
            Some(WorkloadName { kind, name }) => {
                sorted.restartable.insert(Workload {
                    namespace: pod.namespace.clone(),
                    kind,
                    name,
                });
            }
            None => {
                let owner = pod.owner.as_ref();
                let owner = owner.map_or("of nobody".to_owned(), |owner| {
                    format!("of {} {}", owner.kind, owner.name)
                });
                let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
                sorted.others.push((namespace, name, owner));
            }
        }
    }
    Ok(sorted)
}

/// The Deployment of each ReplicaSet, by namespace and name.
async fn deployments(
    cluster: &Cluster,
    scope: &Scope,
) -> anyhow::Result<BTreeMap<(String, String), String>> {
    let api: Api<ReplicaSet> = match scope.namespace() {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let sets = api
        .list_metadata(&ListParams::default())
        .await
        .with_context(|| format!("listing the ReplicaSets of {scope} failed"))?;
    let owned = sets.iter().filter_map(|set| {
        let mut owners = set.owner_references().iter();
        let owner = owners.find(|owner| owner.kind == "Deployment")?;
        Some(((set.namespace()?, set.name_any()), owner.name.clone()))
    });
    Ok(owned.collect())
}
