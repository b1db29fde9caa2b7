//! Messages to values, or to the reason why they are none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, UNIX_EPOCH};

use bulkhead_core::discovery::{
    Bypass, BypassPhase, Destination, Endpoint, Endpoints, Inbound, Route, ServicePort,
};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::{InboundPolicy, MtlsMode};
use bulkhead_core::protocol::Protocol;

use super::{MAX_ENDPOINTS, MAX_PORT_MODES, MAX_TEXT, ResourceError};
use crate::generated::discovery as wire;

impl TryFrom<wire::Inbound> for Inbound {
    type Error = ResourceError;

    fn try_from(inbound: wire::Inbound) -> Result<Self, Self::Error> {
        at_most("port_modes", inbound.port_modes.len(), MAX_PORT_MODES)?;
        let port_modes = inbound
            .port_modes
            .into_iter()
            .map(|(number, value)| {
                Ok((
                    port("port_modes", number)?,
                    mode("a mode of a port", value)?,
                ))
            })
            .collect::<Result<_, ResourceError>>()?;
        Ok(Self {
            policy: InboundPolicy {
                name: text("policy", inbound.policy)?,
                mode: mode("mode", inbound.mode)?,
                port_modes,
            },
        })
    }
}

/// An mTLS mode; one that is missing is refused, since every guess is wrong for
/// somebody.
fn mode(field: &'static str, value: i32) -> Result<MtlsMode, ResourceError> {
    match wire::MtlsMode::try_from(value) {
        Ok(wire::MtlsMode::Strict) => Ok(MtlsMode::Strict),
        Ok(wire::MtlsMode::Permissive) => Ok(MtlsMode::Permissive),
        Ok(wire::MtlsMode::Disable) => Ok(MtlsMode::Disable),
        Ok(wire::MtlsMode::Unspecified) | Err(_) => Err(ResourceError::Enum { field, value }),
    }
}

impl TryFrom<wire::Destination> for Destination {
    type Error = ResourceError;

    fn try_from(destination: wire::Destination) -> Result<Self, Self::Error> {
        let route = match destination.route {
            None => Route::Unknown,
            Some(wire::destination::Route::Endpoint(endpoint)) => {
                Route::Endpoint(endpoint.try_into()?)
            }
            Some(wire::destination::Route::Endpoints(name)) => Route::Endpoints(name.parse()?),
        };
        Ok(Self {
            service: destination.service.map(TryInto::try_into).transpose()?,
            protocol: protocol(destination.protocol)?,
            route,
        })
    }
}

fn protocol(value: i32) -> Result<Protocol, ResourceError> {
    match wire::Protocol::try_from(value) {
        Ok(wire::Protocol::Auto) => Ok(Protocol::Auto),
        Ok(wire::Protocol::Http1) => Ok(Protocol::Http1),
        Ok(wire::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(wire::Protocol::Grpc) => Ok(Protocol::Grpc),
        Ok(wire::Protocol::Opaque) => Ok(Protocol::Opaque),
        Err(_) => Err(ResourceError::Enum {
            field: "protocol",
            value,
        }),
    }
}

impl TryFrom<wire::ServicePort> for ServicePort {
    type Error = ResourceError;

    fn try_from(service: wire::ServicePort) -> Result<Self, Self::Error> {
        Ok(Self {
            namespace: text("a Service's namespace", service.namespace)?,
            name: text("a Service's name", service.name)?,
            port: port("a Service's port", service.port)?,
        })
    }
}

impl TryFrom<wire::Endpoints> for Endpoints {
    type Error = ResourceError;

    fn try_from(endpoints: wire::Endpoints) -> Result<Self, Self::Error> {
        at_most("endpoints", endpoints.endpoints.len(), MAX_ENDPOINTS)?;
        let endpoints = endpoints.endpoints.into_iter().map(TryInto::try_into);
        Ok(Self {
            endpoints: endpoints.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<wire::Endpoint> for Endpoint {
    type Error = ResourceError;

    fn try_from(endpoint: wire::Endpoint) -> Result<Self, Self::Error> {
        let ip = address("an endpoint's ip", &endpoint.ip)?;
        let port = port("an endpoint's port", endpoint.port)?;
        let identity = match endpoint.identity.as_str() {
            "" => None,
            identity => Some(SpiffeId::parse(identity)?),
        };
        Ok(Self {
            address: SocketAddr::new(ip, port),
            ready: endpoint.ready,
            zone: text("an endpoint's zone", endpoint.zone)?,
            workload: text("an endpoint's workload", endpoint.workload)?,
            identity,
        })
    }
}

impl TryFrom<wire::Bypass> for Bypass {
    type Error = ResourceError;

    fn try_from(bypass: wire::Bypass) -> Result<Self, Self::Error> {
        let phase = match wire::bypass::Phase::try_from(bypass.phase) {
            Ok(wire::bypass::Phase::Off) => BypassPhase::Off,
            Ok(wire::bypass::Phase::Accept) => BypassPhase::Accept,
            Ok(wire::bypass::Phase::Forward) => BypassPhase::Forward,
            Err(_) => {
                return Err(ResourceError::Enum {
                    field: "phase",
                    value: bypass.phase,
                });
            }
        };
        let until = match bypass.until {
            0 => None,
            seconds => Some(
                UNIX_EPOCH
                    .checked_add(Duration::from_secs(seconds))
                    .ok_or(ResourceError::Time(seconds))?,
            ),
        };
        Ok(Self {
            phase,
            reason: text("reason", bypass.reason)?,
            by: text("by", bypass.by)?,
            until,
        })
    }
}

fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, ResourceError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(|octets| Ipv6Addr::from(octets).into())
        .map_err(|_| ResourceError::Address {
            field,
            length: bytes.len(),
        })
}

fn port(field: &'static str, value: u32) -> Result<u16, ResourceError> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ResourceError::Port { field, value }),
    }
}

fn text(field: &'static str, text: String) -> Result<String, ResourceError> {
    at_most(field, text.len(), MAX_TEXT)?;
    Ok(text)
}

fn at_most(field: &'static str, length: usize, limit: usize) -> Result<(), ResourceError> {
    if length > limit {
        return Err(ResourceError::TooMuch {
            field,
            length,
            limit,
        });
    }
    Ok(())
}
