//! Values to messages.

use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use bulkhead_core::discovery::{
    Bypass, BypassPhase, Destination, Endpoint, Endpoints, Inbound, Route, ServicePort,
};
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;

use crate::generated::discovery as wire;

impl From<&Inbound> for wire::Inbound {
    fn from(inbound: &Inbound) -> Self {
        let policy = &inbound.policy;
        Self {
            policy: policy.name.clone(),
            mode: mode(policy.mode).into(),
            port_modes: policy
                .port_modes
                .iter()
                .map(|(port, &port_mode)| (u32::from(*port), mode(port_mode).into()))
                .collect(),
        }
    }
}

fn mode(mode: MtlsMode) -> wire::MtlsMode {
    match mode {
        MtlsMode::Strict => wire::MtlsMode::Strict,
        MtlsMode::Permissive => wire::MtlsMode::Permissive,
        MtlsMode::Disable => wire::MtlsMode::Disable,
    }
}

impl From<&Destination> for wire::Destination {
    fn from(destination: &Destination) -> Self {
        Self {
            service: destination.service.as_ref().map(Into::into),
            protocol: protocol(destination.protocol).into(),
            route: match &destination.route {
                Route::Unknown => None,
                Route::Endpoint(endpoint) => {
                    Some(wire::destination::Route::Endpoint(endpoint.into()))
                }
                Route::Endpoints(name) => {
                    Some(wire::destination::Route::Endpoints(name.to_string()))
                }
            },
        }
    }
}

fn protocol(protocol: Protocol) -> wire::Protocol {
    match protocol {
        Protocol::Auto => wire::Protocol::Auto,
        Protocol::Http1 => wire::Protocol::Http1,
        Protocol::Http2 => wire::Protocol::Http2,
        Protocol::Grpc => wire::Protocol::Grpc,
        Protocol::Opaque => wire::Protocol::Opaque,
    }
}

impl From<&ServicePort> for wire::ServicePort {
    fn from(service: &ServicePort) -> Self {
        Self {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            port: service.port.into(),
        }
    }
}

impl From<&Endpoints> for wire::Endpoints {
    fn from(endpoints: &Endpoints) -> Self {
        Self {
            endpoints: endpoints.endpoints.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Endpoint> for wire::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        let ip = match endpoint.address.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let identity = endpoint.identity.as_ref().map(ToString::to_string);
        Self {
            ip,
            port: endpoint.address.port().into(),
            ready: endpoint.ready,
            zone: endpoint.zone.clone(),
            workload: endpoint.workload.clone(),
            identity: identity.unwrap_or_default(),
        }
    }
}

impl From<&Bypass> for wire::Bypass {
    /// A time before 1970 is one that has passed: it is written as the first
    /// second, since 0 stands for no limit.
    fn from(bypass: &Bypass) -> Self {
        let phase = match bypass.phase {
            BypassPhase::Off => wire::bypass::Phase::Off,
            BypassPhase::Accept => wire::bypass::Phase::Accept,
            BypassPhase::Forward => wire::bypass::Phase::Forward,
        };
        let until = bypass.until.map(|until| {
            until
                .duration_since(UNIX_EPOCH)
                .map_or(1, |since| since.as_secs().max(1))
        });
        Self {
            phase: phase.into(),
            reason: bypass.reason.clone(),
            by: bypass.by.clone(),
            until: until.unwrap_or(0),
        }
    }
}
