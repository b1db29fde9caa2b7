//! The resources of discovery: bytes on the wire, values of
//! [`bulkhead_core::discovery`] on either side.
//!
//! Reading refuses whatever no control would write, because a proxy that took
//! half of a resource would act on half of a policy.

mod read;
mod write;

use bulkhead_core::discovery::{NameError, Resource, ResourceKind};
use bulkhead_core::identity::IdentityError;
use prost::Message;

use crate::generated::discovery as wire;

/// The longest text in a resource, in bytes: names of workloads, zones and
/// policies, and the words of whoever asked for a bypass.
pub const MAX_TEXT: usize = 1024;
/// The most endpoints that one resource may have: ten times what Kubernetes is
/// tested with in one Service.
pub const MAX_ENDPOINTS: usize = 50_000;
/// The most ports that a policy may name.
pub const MAX_PORT_MODES: usize = 1024;

/// A resource as its message's bytes. Equal resources are equal bytes.
pub fn encode(resource: &Resource) -> Vec<u8> {
    match resource {
        Resource::Inbound(inbound) => wire::Inbound::from(inbound).encode_to_vec(),
        Resource::Destination(destination) => wire::Destination::from(destination).encode_to_vec(),
        Resource::Endpoints(endpoints) => wire::Endpoints::from(endpoints).encode_to_vec(),
        Resource::Bypass(bypass) => wire::Bypass::from(bypass).encode_to_vec(),
    }
}

/// Reads the bytes of a resource of this kind.
pub fn decode(kind: ResourceKind, bytes: &[u8]) -> Result<Resource, ResourceError> {
    Ok(match kind {
        ResourceKind::Inbound => Resource::Inbound(wire::Inbound::decode(bytes)?.try_into()?),
        ResourceKind::Destination => {
            Resource::Destination(wire::Destination::decode(bytes)?.try_into()?)
        }
        ResourceKind::Endpoints => Resource::Endpoints(wire::Endpoints::decode(bytes)?.try_into()?),
        ResourceKind::Bypass => Resource::Bypass(wire::Bypass::decode(bytes)?.try_into()?),
    })
}

/// Why bytes are not a resource.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResourceError {
    #[error("the resource is not protobuf of its kind: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("{field} is {value}, which is no port")]
    Port { field: &'static str, value: u32 },
    #[error("{field} is {value}, which is no known value; is control newer than this proxy?")]
    Enum { field: &'static str, value: i32 },
    #[error("{field} has {length} bytes, and an IP address has 4 or 16")]
    Address { field: &'static str, length: usize },
    #[error("{field} has {length}; at most {limit} are read")]
    TooMuch {
        field: &'static str,
        length: usize,
        limit: usize,
    },
    #[error("an endpoint's identity: {0}")]
    Identity(#[from] IdentityError),
    #[error("a destination's endpoints: {0}")]
    Endpoints(#[from] NameError),
    #[error("until is {0} seconds after 1970, which no clock reaches")]
    Time(u64),
}

#[cfg(test)]
mod tests;
