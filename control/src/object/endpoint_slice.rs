//! EndpointSlices.

use std::net::IpAddr;

use super::{Name, manifest};

/// Says whose slice it is.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What is kept of an EndpointSlice.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EndpointSlice {
    /// The Service, in the slice's namespace; empty where it is nobody's.
    pub service: Name,
    /// TCP ports: the Service's name for each, and its number in the pods.
    pub ports: Vec<(Name, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

/// One place that serves, or that may.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SliceEndpoint {
    pub ip: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Is leaving and serves still: for when there is no other, as kube-proxy
    /// has it.
    pub draining: bool,
    pub zone: Name,
    /// The pod, in the slice's namespace.
    pub pod: Option<Name>,
}

impl EndpointSlice {
    pub(super) fn read(manifest: &manifest::EndpointSlice) -> Self {
        let metadata = &manifest.metadata;
        let service = metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_LABEL));
        let ports = manifest.ports.iter().flatten().filter_map(|port| {
            let is_tcp = port.protocol.as_deref().is_none_or(|name| name == "TCP");
            let number = port.port.and_then(|number| u16::try_from(number).ok());
            let name = port.name.as_deref().unwrap_or_default();
            Some((name.into(), number.filter(|number| is_tcp && *number > 0)?))
        });
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let endpoints = manifest.endpoints.iter().flatten();
        Self {
            service: service.map_or("", String::as_str).into(),
            ports: ports.collect(),
            endpoints: endpoints
                .filter_map(|endpoint| SliceEndpoint::read(endpoint, namespace))
                .collect(),
        }
    }
}

impl SliceEndpoint {
    /// Nothing for what is no address, such as names (`addressType: FQDN`), and
    /// for what takes no connections.
    fn read(endpoint: &manifest::SliceEndpoint, namespace: &str) -> Option<Self> {
        // Of several addresses Kubernetes uses the first.
        let ip = endpoint.addresses.first()?.parse().ok()?;
        let conditions = endpoint.conditions.unwrap_or_default();
        // Nothing said of readiness means ready; whether unready addresses are
        // published, whoever wrote the slice has seen to.
        let ready = conditions.ready.unwrap_or(true);
        let draining = conditions.terminating == Some(true) && conditions.serving.unwrap_or(ready);
        if !(ready || draining) {
            return None;
        }
        let pod = endpoint.target_ref.as_ref().filter(|target| {
            target.kind.as_deref() == Some("Pod")
                && target
                    .namespace
                    .as_deref()
                    .is_none_or(|other| other == namespace)
        });
        Some(Self {
            ip,
            ready,
            draining,
            zone: endpoint.zone.as_deref().unwrap_or_default().into(),
            pod: pod.and_then(|pod| pod.name.as_deref()).map(Into::into),
        })
    }
}
