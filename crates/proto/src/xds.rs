//! Incremental discovery (delta ADS): one stream, on which a proxy says what it
//! wants to know and control says what it is and when it changes.
//!
//! - [`Request`]: what a proxy says: names it wants or wants no more, or that
//!   it took or refused an answer.
//! - [`Response`]: what control says.
//! - `held`: what a proxy holds of the mesh's trust, beside its first request.

mod held;

use std::collections::BTreeMap;

use bulkhead_core::discovery::{MAX_NAME_LENGTH, Resource, ResourceKind};
use bulkhead_core::held::Held;

use crate::discovery::{self, ResourceError};
use crate::generated::xds as wire;

pub use wire::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
pub use wire::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
pub use wire::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// The longest request that control reads, in bytes.
pub const MAX_REQUEST: usize = 1024 * 1024;
/// The most names that one request may carry, over all of its lists.
pub const MAX_NAMES: usize = 10_000;
/// The longest answer that a proxy reads, in bytes: the greatest resource, and
/// room.
pub const MAX_RESPONSE: usize = 16 * 1024 * 1024;
/// The longest node id, version, nonce or complaint, in bytes.
const MAX_TOKEN: usize = 1024;

/// What a proxy says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// `<namespace>/<pod>`; the first request of a stream must have it.
    pub node: Option<String>,
    /// What the proxy holds of the mesh's trust: with the first request of a
    /// stream, and whenever it changes.
    pub held: Option<Held>,
    pub kind: ResourceKind,
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
    /// What a proxy that comes back has already: name to version.
    pub known: BTreeMap<String, String>,
    /// The answer that this replies to, where it replies to one.
    pub reply: Option<Reply>,
}

/// A proxy's reply to an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    pub nonce: String,
    /// Why the answer was refused (NACK); nothing where it was taken (ACK).
    pub refused: Option<String>,
}

impl Request {
    /// A request that wants nothing yet.
    pub fn new(kind: ResourceKind) -> Self {
        Self {
            node: None,
            held: None,
            kind,
            subscribe: Vec::new(),
            unsubscribe: Vec::new(),
            known: BTreeMap::new(),
            reply: None,
        }
    }
}

impl From<Request> for DeltaDiscoveryRequest {
    fn from(request: Request) -> Self {
        let (nonce, refused) = match request.reply {
            Some(reply) => (reply.nonce, reply.refused),
            None => (String::new(), None),
        };
        let says_something = request.node.is_some() || request.held.is_some();
        let node = says_something.then(|| wire::Node {
            id: request.node.unwrap_or_default(),
            metadata: request.held.as_ref().map(held::write),
            user_agent_name: "bulkhead-proxy".into(),
            ..Default::default()
        });
        Self {
            node,
            type_url: request.kind.type_url().into(),
            resource_names_subscribe: request.subscribe,
            resource_names_unsubscribe: request.unsubscribe,
            initial_resource_versions: request.known.into_iter().collect(),
            response_nonce: nonce,
            error_detail: refused.map(|message| wire::Status {
                // INVALID_ARGUMENT, as Envoy says it.
                code: 3,
                message,
            }),
        }
    }
}

impl TryFrom<DeltaDiscoveryRequest> for Request {
    type Error = MessageError;

    fn try_from(request: DeltaDiscoveryRequest) -> Result<Self, Self::Error> {
        let kind = kind(&request.type_url)?;
        let names = request
            .resource_names_subscribe
            .iter()
            .chain(&request.resource_names_unsubscribe)
            .chain(request.initial_resource_versions.keys());
        let mut count = 0_usize;
        for name in names {
            bounded("the name of a resource", name, MAX_NAME_LENGTH)?;
            count += 1;
        }
        if count > MAX_NAMES {
            return Err(MessageError::TooManyNames(count));
        }
        for version in request.initial_resource_versions.values() {
            bounded("a version", version, MAX_TOKEN)?;
        }
        let wire::Node {
            id: node, metadata, ..
        } = request.node.unwrap_or_default();
        bounded("the node's id", &node, MAX_TOKEN)?;
        bounded("the nonce", &request.response_nonce, MAX_TOKEN)?;
        let reply = (!request.response_nonce.is_empty()).then(|| Reply {
            nonce: request.response_nonce,
            refused: request
                .error_detail
                .map(|status| status.message.chars().take(MAX_TOKEN).collect()),
        });
        Ok(Self {
            node: (!node.is_empty()).then_some(node),
            held: metadata.as_ref().and_then(held::read),
            kind,
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            known: request.initial_resource_versions.into_iter().collect(),
            reply,
        })
    }
}

/// What control says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    pub kind: ResourceKind,
    pub resources: Vec<Versioned>,
    /// Names of which there is nothing (more) to say.
    pub removed: Vec<String>,
    pub nonce: String,
}

/// A resource with its name and version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Versioned {
    pub name: String,
    pub version: String,
    /// The resource's message, of the response's kind; see [`discovery::decode`].
    pub bytes: Vec<u8>,
}

impl Versioned {
    /// Reads the resource.
    pub fn decode(&self, kind: ResourceKind) -> Result<Resource, ResourceError> {
        discovery::decode(kind, &self.bytes)
    }
}

impl From<Response> for DeltaDiscoveryResponse {
    fn from(response: Response) -> Self {
        let type_url = response.kind.type_url();
        let resources = response.resources.into_iter().map(|versioned| {
            let resource = prost_types::Any {
                type_url: type_url.into(),
                value: versioned.bytes,
            };
            wire::Resource {
                version: versioned.version,
                resource: Some(resource),
                name: versioned.name,
            }
        });
        Self {
            system_version_info: String::new(),
            resources: resources.collect(),
            type_url: type_url.into(),
            nonce: response.nonce,
            removed_resources: response.removed,
        }
    }
}

impl TryFrom<DeltaDiscoveryResponse> for Response {
    type Error = MessageError;

    fn try_from(response: DeltaDiscoveryResponse) -> Result<Self, Self::Error> {
        let kind = kind(&response.type_url)?;
        let resources = response.resources.into_iter().map(|resource| {
            let any = resource.resource.unwrap_or_default();
            if any.type_url != kind.type_url() {
                return Err(MessageError::Kind(shown(&any.type_url)));
            }
            bounded("the name of a resource", &resource.name, MAX_NAME_LENGTH)?;
            bounded("a version", &resource.version, MAX_TOKEN)?;
            Ok(Versioned {
                name: resource.name,
                version: resource.version,
                bytes: any.value,
            })
        });
        let resources = resources.collect::<Result<_, _>>()?;
        for name in &response.removed_resources {
            bounded("the name of a resource", name, MAX_NAME_LENGTH)?;
        }
        bounded("the nonce", &response.nonce, MAX_TOKEN)?;
        Ok(Self {
            kind,
            resources,
            removed: response.removed_resources,
            nonce: response.nonce,
        })
    }
}

fn kind(type_url: &str) -> Result<ResourceKind, MessageError> {
    ResourceKind::from_type_url(type_url).ok_or_else(|| MessageError::Kind(shown(type_url)))
}

fn bounded(what: &'static str, text: &str, limit: usize) -> Result<(), MessageError> {
    if text.len() > limit {
        return Err(MessageError::TooLong { what, limit });
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(128).collect()
}

/// Why a message cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MessageError {
    #[error("{0:?} is not a type of resource that is served here")]
    Kind(String),
    #[error("{what} is longer than {limit} bytes")]
    TooLong { what: &'static str, limit: usize },
    #[error("{0} names in one request; at most {MAX_NAMES} are read")]
    TooManyNames(usize),
}

#[cfg(test)]
mod tests;
