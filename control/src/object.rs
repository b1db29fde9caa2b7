//! What control keeps of Kubernetes' objects, and how it reads them.
//!
//! ```text
//!  JSON or YAML ──▶ manifest (the fields that matter) ──▶ Pod, Service, … (what is kept)
//! ```
//!
//! A pod of the API server takes ten kilobytes and one of these less than one:
//! whatever can be decided when an object arrives is decided then.

mod endpoint_slice;
mod injection;
pub mod manifest;
mod modes;
mod pod;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bulkhead_core::policy::peer_authentication::PeerAuthentication;
use bulkhead_crds::emergency::Bypass;

pub use endpoint_slice::{EndpointSlice, SliceEndpoint};
pub use injection::InjectionWish;
pub use modes::Modes;
pub use pod::Pod;
pub use service::{Service, ServicePort};

/// A name that many objects share.
pub type Name = Arc<str>;

/// Labels, which the pods of a workload share.
pub type Labels = Arc<BTreeMap<String, String>>;

/// A namespaced object's name.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Key {
    pub namespace: Name,
    pub name: Name,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Namespace {
    /// What its annotations say of its pods' mTLS.
    pub modes: Modes,
    /// Whether its pods get a sidecar that do not say so themselves.
    pub injects: bool,
}

/// The kinds of objects that control reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Kind {
    Namespace,
    Pod,
    Service,
    EndpointSlice,
    PeerAuthentication,
    Bypass,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::PeerAuthentication,
        Self::Bypass,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::Bypass => "Bypass",
        }
    }

    /// What the task is called that follows it.
    pub fn watch(self) -> &'static str {
        match self {
            Self::Namespace => "the watch of Namespaces",
            Self::Pod => "the watch of Pods",
            Self::Service => "the watch of Services",
            Self::EndpointSlice => "the watch of EndpointSlices",
            Self::PeerAuthentication => "the watch of PeerAuthentications",
            Self::Bypass => "the watch of Bypasses",
        }
    }
}

/// What is kept of one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    Pod(Pod),
    Service(Service),
    EndpointSlice(EndpointSlice),
    PeerAuthentication(PeerAuthentication),
    Bypass(Box<Bypass>),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::Bypass(_) => Kind::Bypass,
        }
    }

    /// What of it means nothing, in words for whoever wrote it.
    pub fn without_effect(&self, reading: &Reading) -> Option<&'static str> {
        let Self::PeerAuthentication(policy) = self else {
            return None;
        };
        let is_root = reading.root_namespaces.contains(&policy.namespace);
        match (is_root, policy.selector.is_empty()) {
            (true, false) => Some(
                "in a root namespace a selector selects nothing, as with Istio; write the policy \
                 in the namespace of the workloads, or leave the selector out to have it count \
                 for the whole mesh",
            ),
            (_, true) if !policy.port_modes.is_empty() => Some(
                "portLevelMtls counts only with a selector, because workloads differ in what a \
                 port is",
            ),
            _ => None,
        }
    }
}

/// Something that happened to objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is there, and like this.
    Applied(Key, Object),
    /// It is gone.
    Deleted(Kind, Key),
    /// These are all objects of the kind, and no others.
    Replaced(Kind, Listed),
}

/// All objects of a kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    pub objects: Vec<(Key, Object)>,
    /// They are there and cannot be read: what was known of them holds.
    pub unreadable: BTreeSet<Key>,
}

impl Listed {
    pub fn has(&self, key: &Key) -> bool {
        self.unreadable.contains(key) || self.objects.iter().any(|(other, _)| other == key)
    }
}

impl FromIterator<(Key, Object)> for Listed {
    fn from_iter<T: IntoIterator<Item = (Key, Object)>>(objects: T) -> Self {
        Self {
            objects: objects.into_iter().collect(),
            unreadable: BTreeSet::new(),
        }
    }
}

/// What control must know to read objects.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The namespace in which Bulkhead runs.
    pub system_namespace: String,
    /// Whether pods get a sidecar about which nobody says anything.
    pub inject_by_default: bool,
    /// Where a PeerAuthentication without a selector is for the whole mesh.
    pub root_namespaces: BTreeSet<String>,
}

/// An object that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("it is no {0} that Kubernetes would take: {1}")]
    Malformed(&'static str, #[source] serde_json::Error),
    #[error("it has no name")]
    Nameless,
    #[error(transparent)]
    PeerAuthentication(#[from] bulkhead_crds::istio::peer_authentication::PeerAuthenticationError),
}
