//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use bulkhead_core::protocol::Protocol;
use bulkhead_inject::PROXY_CONTAINER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::{InjectionWish, Labels, Modes, Name, Namespace, Reading, injection, manifest};

/// Marks pods that take mesh mTLS, Istio's as well as ours.
const TLS_MODE_LABEL: (&str, &str) = ("security.istio.io/tlsMode", "istio");
/// Istio's proxy.
const ISTIO_CONTAINER: &str = "istio-proxy";
/// Kubernetes copies it from the node (1.35 and newer).
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// What a ReplicaSet's name has after its Deployment's.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// What is kept of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Its own addresses: none where it shares its node's, and none when it has
    /// finished, since others get them then.
    pub ips: Vec<IpAddr>,
    pub uid: Name,
    pub service_account: Name,
    pub labels: Labels,
    /// Whether somebody makes another one when it goes.
    pub has_controller: bool,
    /// The workload that made it, such as `cart`.
    pub workload: Name,
    /// Empty where nobody said.
    pub zone: Name,
    /// Whether it takes mesh mTLS.
    pub meshed: bool,
    /// Whether our proxy runs in it or is about to: it has an address, and it
    /// neither ends nor has ended.
    pub has_proxy: bool,
    pub modes: Modes,
    /// Ports whose names say what they speak.
    pub protocols: Vec<(u16, Protocol)>,
    /// Whether it is to have a sidecar and has none, as far as it says itself.
    pub missing: InjectionWish,
}

impl Pod {
    pub(super) fn read(manifest: manifest::Pod, reading: &Reading) -> Self {
        let (metadata, spec) = (&manifest.metadata, &manifest.spec);
        let has_finished = matches!(
            manifest.status.phase.as_deref(),
            Some("Succeeded" | "Failed")
        );
        let shares_its_nodes = spec.host_network == Some(true);
        let ips = if has_finished || shares_its_nodes {
            Vec::new()
        } else {
            ips(&manifest.status)
        };
        let carries = |name: &str| containers(spec).any(|container| container.name == name);
        let is_marked = metadata.labels.as_ref().is_some_and(|labels| {
            labels.get(TLS_MODE_LABEL.0).map(String::as_str) == Some(TLS_MODE_LABEL.1)
        });
        let meshed = is_marked
            && !shares_its_nodes
            && (carries(PROXY_CONTAINER) || carries(ISTIO_CONTAINER));
        let is_leaving = has_finished || metadata.deletion_timestamp.is_some();
        // Whatever its label says: the proxy has a certificate, and peers verify it.
        let has_proxy =
            carries(PROXY_CONTAINER) && !shares_its_nodes && !is_leaving && !ips.is_empty();
        let missing = if is_leaving || carries(PROXY_CONTAINER) {
            InjectionWish::Never
        } else {
            InjectionWish::of(&manifest, reading)
        };
        let label = |name: &str| metadata.labels.as_ref().and_then(|labels| labels.get(name));
        let account = spec.service_account_name.as_deref();
        Self {
            ips,
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            service_account: account
                .filter(|name| !name.is_empty())
                .unwrap_or("default")
                .into(),
            workload: workload(metadata).into(),
            has_controller: controller(metadata).is_some(),
            zone: label(ZONE_LABEL).map_or("", String::as_str).into(),
            meshed,
            has_proxy,
            modes: Modes::read(
                metadata.annotations.as_ref(),
                metadata.name.as_deref().unwrap_or_default(),
            ),
            protocols: protocols(spec),
            missing,
            labels: Arc::new(manifest.metadata.labels.unwrap_or_default()),
        }
    }

    /// What its ports are said to speak, by name.
    pub fn protocol(&self, port: u16) -> Option<Protocol> {
        let of_port = |(number, _): &&(u16, Protocol)| *number == port;
        Some(self.protocols.iter().find(of_port)?.1)
    }
}

impl Namespace {
    pub(super) fn read(manifest: manifest::Namespace, reading: &Reading) -> Self {
        let name = manifest.metadata.name.as_deref().unwrap_or_default();
        Self {
            modes: Modes::read(manifest.metadata.annotations.as_ref(), name),
            injects: injection::injects(&manifest, reading),
        }
    }
}

fn containers(spec: &manifest::PodSpec) -> impl Iterator<Item = &manifest::Container> {
    spec.containers
        .iter()
        .chain(&spec.init_containers)
        .flatten()
}

fn ips(status: &manifest::PodStatus) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut ips: Vec<IpAddr> = all
        .chain(status.pod_ip.as_deref())
        .filter_map(|ip| ip.parse().ok())
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

fn protocols(spec: &manifest::PodSpec) -> Vec<(u16, Protocol)> {
    containers(spec)
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| port.protocol.as_deref().is_none_or(|name| name == "TCP"))
        .filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((number, Protocol::from_port_name(port.name.as_deref()?)?))
        })
        .collect()
}

/// The name of the workload: its Deployment's, or whatever else controls it, or
/// its own.
fn workload(metadata: &ObjectMeta) -> String {
    let own = metadata.name.as_deref().unwrap_or_default();
    let Some(owner) = controller(metadata) else {
        return own.to_owned();
    };
    let hash = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(TEMPLATE_HASH_LABEL));
    match hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')) {
        Some(deployment) if owner.kind == "ReplicaSet" => deployment.to_owned(),
        _ => owner.name.clone(),
    }
}

fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    let mut owners = metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true))
}
