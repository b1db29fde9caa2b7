//! The CertificateAuthority of a cluster.

use anyhow::{Context as _, bail};
use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, CertificateAuthority, CertificateAuthorityStatus, NAME,
};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;

/// Who changed an object, as its managed fields say.
const FIELD_MANAGER: &str = "bulkhead-cli";

/// The object's API, in Bulkhead's own namespace.
pub fn api(cluster: &Cluster) -> Api<CertificateAuthority> {
    Api::namespaced(cluster.client.clone(), &cluster.system_namespace)
}

/// Reads it; `None` where the kind is not served or no CA has made one yet.
pub async fn find(cluster: &Cluster) -> kube::Result<Option<CertificateAuthority>> {
    match api(cluster).get(NAME).await {
        Ok(found) => Ok(Some(found)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads it, for whoever cannot go on without.
pub async fn read(cluster: &Cluster) -> anyhow::Result<CertificateAuthority> {
    let found = find(cluster).await;
    let namespace = &cluster.system_namespace;
    let found = found
        .with_context(|| format!("reading certificateauthority/{NAME} in {namespace} failed"))?;
    match found {
        Some(authority) => Ok(authority),
        None => bail!(
            "there is no certificateauthority/{NAME} in {namespace}: a CA that runs makes it. \
             `bulkhead check` says what is missing; is Bulkhead's namespace another \
             (--system-namespace)?"
        ),
    }
}

/// What is asked of the CA.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Order {
    /// The root that is to sign; `None` takes back what was asked for before, so
    /// that the root stays which signs.
    pub root: Option<u32>,
    /// Whether it may go on though proxies lack that root.
    pub force: bool,
}

impl Order {
    /// That this root is to sign, without force. A rotation that the CA began by
    /// itself gives way to a change of what people ask for, so that what is asked
    /// for already must be asked for otherwise.
    pub fn of(authority: &CertificateAuthority, root: u32) -> Self {
        let is_there = authority.spec.root_generation == Some(root);
        let active = status(authority).root_generation;
        Self {
            root: (!is_there || active != Some(root)).then_some(root),
            force: false,
        }
    }
}

/// Asks for it, if nobody has changed the object since it was read. Says whether
/// that was so.
pub async fn order(
    cluster: &Cluster,
    read: &CertificateAuthority,
    order: Order,
) -> anyhow::Result<bool> {
    let mut spec = json!({ "rootGeneration": order.root });
    if order.force {
        spec["forceGeneration"] = order.root.into();
    }
    let patch = json!({
        "metadata": { "resourceVersion": read.metadata.resource_version },
        "spec": spec,
    });
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patched = api(cluster)
        .patch(NAME, &parameters, &Patch::Merge(&patch))
        .await;
    match patched {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error).with_context(|| {
            format!(
                "changing certificateauthority/{NAME} failed; the ClusterRole \
                 bulkhead-ca-rotate permits it"
            )
        }),
    }
}

/// The status; empty where the CA has said nothing yet.
pub(crate) fn status(authority: &CertificateAuthority) -> CertificateAuthorityStatus {
    authority.status.clone().unwrap_or_default()
}

/// The generations of the roots that are not retired.
pub(crate) fn live_roots(status: &CertificateAuthorityStatus) -> Vec<u32> {
    let authorities = status.authorities.iter();
    let mut roots: Vec<_> = authorities
        .filter(|authority| authority.kind == AuthorityKind::Root)
        .filter(|authority| authority.state != AuthorityState::Retired)
        .map(|authority| authority.generation)
        .collect();
    roots.sort_unstable();
    roots.dedup();
    roots
}
