//! One answer: the bytes of a resource, and the version by which they are told
//! apart.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bulkhead_core::discovery::{Resource, ResourceName};
use bulkhead_proto::discovery::encode;
use bytes::Bytes;

use super::State;
use crate::object::Key;

/// What is known of a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Answer {
    /// Made of the bytes, so that every replica gives the same bytes the same
    /// version, and a proxy that comes back to another is told only what is new.
    pub(super) version: u64,
    /// Nothing where there is no such thing.
    pub(super) bytes: Option<Bytes>,
}

impl Answer {
    fn new(resource: Option<&Resource>) -> Self {
        let bytes = resource.map(encode);
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Self {
            version: hasher.finish(),
            bytes: bytes.map(Into::into),
        }
    }

    pub(super) fn version_text(&self) -> String {
        format!("{:016x}", self.version)
    }
}

impl State {
    /// What is known of a name now.
    pub(super) fn answer(&self, name: &ResourceName) -> Answer {
        let resource = match name {
            ResourceName::Inbound(pod) => self.index.inbound(pod).map(Resource::Inbound),
            ResourceName::Destination(address) => {
                Some(Resource::Destination(self.index.destination(*address)))
            }
            ResourceName::Endpoints(name) => self.index.endpoints(name).map(Resource::Endpoints),
            ResourceName::Bypass(pod) => {
                let key = Key::new(&pod.namespace, &pod.name);
                self.index.pod(&key).map(|known| {
                    let system = &self.system_namespace;
                    let bypass = self.switches.bypass(system, &pod.namespace, &known.labels);
                    Resource::Bypass(bypass)
                })
            }
        };
        Answer::new(resource.as_ref())
    }
}
