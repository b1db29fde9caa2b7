//! Level 2 without control: the order as the kubelet mounts it into every pod of
//! a namespace, and as each sidecar is told it.

use std::time::SystemTime;

use anyhow::Context as _;
use bulkhead_core::bypass::BypassOrder;
use bulkhead_core::discovery::{Bypass as Asked, BypassPhase};
use bulkhead_crds::emergency::{Bypass, Emergency as _, Terms};
use bulkhead_inject::{BYPASS_CONFIG_MAP, BYPASS_KEY};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Resource as _, ResourceExt};
use serde_json::json;

use super::sidecars::MeshPod;
use crate::cluster::Cluster;

/// Who the fields of the ConfigMap belong to.
const MANAGER: &str = "bulkhead-cli";
/// What takes the ConfigMaps of a mesh-wide bypass along when Bulkhead is
/// uninstalled.
const ROLE: &str = "bulkhead-emergency-bypass";

/// What sidecars are asked, by the terms of a switch.
pub(crate) fn asked(terms: &Terms, phase: BypassPhase) -> Asked {
    Asked {
        phase,
        reason: terms.reason.clone(),
        by: terms.by.clone().unwrap_or_default(),
        until: terms.until.as_ref().map(|until| SystemTime::from(until.0)),
    }
}

/// The order for a namespace by all bypasses that are on; nothing where none is
/// for it. There is one file, so of several bypasses the one that ends last
/// counts, and a bypass of some pods names them.
pub(crate) fn of_namespace(
    bypasses: &[Bypass],
    system_namespace: &str,
    namespace: &str,
    pods: &[MeshPod],
    phase: BypassPhase,
) -> Option<BypassOrder> {
    let is_meant = |bypass: &&Bypass| {
        let own = bypass.metadata.namespace.as_deref();
        own == Some(system_namespace) || own == Some(namespace)
    };
    let meant: Vec<&Bypass> = bypasses.iter().filter(is_meant).collect();
    let last = meant.iter().max_by_key(|bypass| {
        let until = bypass.terms().until.as_ref().map(|until| until.0);
        (until.is_none(), until)
    })?;
    let is_for_all = meant.iter().any(|bypass| bypass.terms().selector.is_none());
    let named = || {
        pods.iter()
            .filter(|pod| pod.namespace == namespace)
            .filter(|pod| {
                meant
                    .iter()
                    .any(|bypass| bypass.covers(system_namespace, namespace, &pod.labels))
            })
            .map(|pod| pod.name.clone())
            .collect()
    };
    Some(BypassOrder {
        bypass: asked(last.terms(), phase),
        pods: (!is_for_all).then(named),
        takes_back: false,
    })
}

/// Writes the order where the kubelets of a namespace's pods find it.
pub(crate) async fn write(
    cluster: &Cluster,
    namespace: &str,
    order: &BypassOrder,
    owner: Option<&OwnerReference>,
) -> anyhow::Result<()> {
    let config_map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": BYPASS_CONFIG_MAP,
            "labels": {"app.kubernetes.io/part-of": "bulkhead"},
            "ownerReferences": owner.into_iter().collect::<Vec<_>>(),
        },
        "data": {BYPASS_KEY: order.to_json()},
    });
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let parameters = PatchParams::apply(MANAGER).force();
    api.patch(BYPASS_CONFIG_MAP, &parameters, &Patch::Apply(config_map))
        .await
        .with_context(|| format!("writing ConfigMap {BYPASS_CONFIG_MAP} in {namespace} failed"))?;
    Ok(())
}

/// Removes the order of a namespace.
pub(crate) async fn withdraw(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    match api
        .delete(BYPASS_CONFIG_MAP, &DeleteParams::default())
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| {
            format!("removing ConfigMap {BYPASS_CONFIG_MAP} in {namespace} failed")
        }),
    }
}

/// The namespaces that have an order.
pub(crate) async fn namespaces(
    cluster: &Cluster,
    namespace: Option<&str>,
) -> anyhow::Result<Vec<String>> {
    let api: Api<ConfigMap> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let named = ListParams::default().fields(&format!("metadata.name={BYPASS_CONFIG_MAP}"));
    let found = api
        .list(&named)
        .await
        .with_context(|| format!("looking for ConfigMaps {BYPASS_CONFIG_MAP} failed"))?;
    Ok(found.iter().filter_map(ResourceExt::namespace).collect())
}

/// Whether a bypass left an order behind, in this namespace or in any. Whoever
/// may not look has written none.
pub(crate) async fn has_orders(cluster: &Cluster, namespace: Option<&str>) -> bool {
    let found = namespaces(cluster, namespace).await;
    found.is_ok_and(|found| !found.is_empty())
}

/// Who takes a namespace's order along when it goes: the bypass itself in its
/// own namespace, a role of the release elsewhere, because an owner is found in
/// the same namespace or in none.
pub(crate) async fn owner(
    cluster: &Cluster,
    bypass: &Bypass,
    namespace: &str,
) -> Option<OwnerReference> {
    let owner = if bypass.metadata.namespace.as_deref() == Some(namespace) {
        bypass.owner_ref(&())
    } else {
        let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
        roles.get(ROLE).await.ok()?.owner_ref(&())
    };
    owner.map(|owner| OwnerReference {
        controller: None,
        block_owner_deletion: Some(false),
        ..owner
    })
}
