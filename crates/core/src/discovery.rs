//! What control tells a proxy, and the names that a proxy asks by.
//!
//! ```text
//!  name                      resource
//!  <namespace>/<pod>         Inbound       what the proxy's own pod accepts
//!  <ip>:<port>               Destination   what an address is that was dialled
//!  <namespace>/<svc>:<port>  Endpoints     where a Service's connections may go
//!  <namespace>/<pod>         Bypass        whether the proxy is to stand aside
//! ```

mod name;

use std::net::SocketAddr;
use std::time::SystemTime;

pub use name::{EndpointsName, MAX_NAME_LENGTH, NameError, PodName, ResourceKind, ResourceName};

use crate::identity::SpiffeId;
use crate::policy::InboundPolicy;
use crate::protocol::Protocol;

/// What the proxy's own pod accepts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Inbound {
    pub policy: InboundPolicy,
}

/// What an address is that the application dialled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Destination {
    /// The Service that the address belongs to, for metrics and logs.
    pub service: Option<ServicePort>,
    /// What is spoken there, where somebody said so.
    pub protocol: Protocol,
    pub route: Route,
}

/// A port of a Service.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct ServicePort {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

/// Where connections to an address go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Route {
    /// No Service and no pod: to where they were going, as they are.
    #[default]
    Unknown,
    /// One pod, dialled by its own address, as with headless Services.
    Endpoint(Endpoint),
    /// A cluster IP: the proxy chooses among the endpoints of this name.
    Endpoints(EndpointsName),
}

/// Where the connections to one port of a Service may go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Endpoints {
    pub endpoints: Vec<Endpoint>,
}

/// One place that serves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Whether new connections are to go there while others can.
    pub ready: bool,
    /// The topology zone of its node; empty where nobody said.
    pub zone: String,
    /// The workload, such as `checkout`, for metrics; empty where unknown.
    pub workload: String,
    /// Present where the endpoint is in the mesh and its port is not DISABLE:
    /// mesh mTLS is to be spoken to it, and it must prove this identity.
    pub identity: Option<SpiffeId>,
}

/// Whether a proxy is to stand aside, and who said so.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bypass {
    pub phase: BypassPhase,
    /// Why, in the words of whoever asked for it.
    pub reason: String,
    /// Who asked for it.
    pub by: String,
    /// When it ends by itself.
    pub until: Option<SystemTime>,
}

/// How far a proxy stands aside. The order is that of strength.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum BypassPhase {
    /// Not at all.
    #[default]
    Off,
    /// As a server it accepts plaintext, and policy is off.
    Accept,
    /// As a client it sends plaintext as well: bytes pass untouched.
    Forward,
}

impl BypassPhase {
    pub const ALL: [Self; 3] = [Self::Off, Self::Accept, Self::Forward];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Accept => "accept",
            Self::Forward => "forward",
        }
    }
}

/// One resource of any kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Resource {
    Inbound(Inbound),
    Destination(Destination),
    Endpoints(Endpoints),
    Bypass(Bypass),
}

impl Resource {
    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Inbound(_) => ResourceKind::Inbound,
            Self::Destination(_) => ResourceKind::Destination,
            Self::Endpoints(_) => ResourceKind::Endpoints,
            Self::Bypass(_) => ResourceKind::Bypass,
        }
    }
}
