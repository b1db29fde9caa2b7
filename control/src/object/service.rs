//! Services.

use std::net::IpAddr;

use bulkhead_core::protocol::{OPAQUE_PORTS, Protocol};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Name, manifest};

/// What is kept of a Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    /// Its cluster IPs, of each family; none where it is headless or a name for
    /// something outside.
    pub ips: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// Empty where there is only one.
    pub name: Name,
    pub port: u16,
    pub protocol: Protocol,
}

impl Service {
    pub(super) fn read(manifest: &manifest::Service) -> Self {
        let spec = &manifest.spec;
        if spec.type_.as_deref() == Some("ExternalName") {
            return Self::default();
        }
        let texts = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        // A headless Service says `None`.
        let mut ips: Vec<IpAddr> = texts.filter_map(|ip| ip.parse().ok()).collect();
        ips.sort_unstable();
        ips.dedup();
        let ports = spec.ports.iter().flatten();
        Self {
            ips,
            ports: ports.filter_map(ServicePort::read).collect(),
        }
    }

    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }

    pub fn port_named(&self, name: &str) -> Option<&ServicePort> {
        self.ports.iter().find(|port| &*port.name == name)
    }
}

impl ServicePort {
    fn read(port: &manifest::ServicePort) -> Option<Self> {
        if port.protocol.as_deref().is_some_and(|name| name != "TCP") {
            return None;
        }
        let number = u16::try_from(port.port).ok().filter(|number| *number > 0)?;
        let target = match &port.target_port {
            Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
            Some(IntOrString::String(_)) | None => None,
        };
        let name = port.name.as_deref().unwrap_or_default();
        let is_opaque = OPAQUE_PORTS.contains(&number)
            || target.is_some_and(|target| OPAQUE_PORTS.contains(&target));
        let said = port
            .app_protocol
            .as_deref()
            .and_then(Protocol::from_app_protocol);
        let protocol = said
            .or_else(|| Protocol::from_port_name(name))
            .or_else(|| is_opaque.then_some(Protocol::Opaque));
        Some(Self {
            name: name.into(),
            port: number,
            protocol: protocol.unwrap_or_default(),
        })
    }
}
