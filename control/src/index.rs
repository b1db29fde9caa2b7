//! What is known of the cluster, and what proxies ask of it. Pure: changes in,
//! answers out.
//!
//! ```text
//!  Change ──▶ pods ─────┐
//!         ──▶ services ─┼──▶ destination(ip:port), endpoints(service:port), inbound(pod)
//!         ──▶ policies ─┘
//!         └─▶ Affected: whose answers may be others now
//! ```

mod affected;
mod answers;
mod pods;
mod services;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bulkhead_core::identity::TrustDomain;
use bulkhead_core::policy::InboundPolicy;
use bulkhead_core::policy::peer_authentication::PeerAuthentication;

pub use affected::Affected;

use crate::object::{Change, Key, Kind, Name, Namespace, Object, Pod};
use pods::Pods;
use services::Services;

/// What the installation says where nobody else does.
#[derive(Clone, Debug)]
pub struct Settings {
    pub trust_domain: TrustDomain,
    /// Where a PeerAuthentication without a selector is for the whole mesh.
    pub root_namespaces: BTreeSet<String>,
    pub default_policy: InboundPolicy,
}

/// Everything that is known.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    namespaces: HashMap<Name, Namespace>,
    pods: Pods,
    services: Services,
    policies: BTreeMap<Key, PeerAuthentication>,
}

impl Index {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            namespaces: HashMap::new(),
            pods: Pods::default(),
            services: Services::default(),
            policies: BTreeMap::new(),
        }
    }

    /// Takes note of a change, and says whose answers it may have changed.
    /// Objects of the kill switch are not for the index.
    pub fn apply(&mut self, change: Change) -> Affected {
        let mut affected = Affected::default();
        match change {
            Change::Applied(key, object) => self.set(key, object, &mut affected),
            Change::Deleted(kind, key) => self.remove(kind, &key, &mut affected),
            Change::Replaced(kind, listed) => {
                let mut gone: BTreeSet<Key> = self.keys(kind).collect();
                gone.retain(|key| !listed.unreadable.contains(key));
                for (key, object) in listed.objects {
                    gone.remove(&key);
                    self.set(key, object, &mut affected);
                }
                for key in gone {
                    self.remove(kind, &key, &mut affected);
                }
            }
        }
        affected
    }

    fn set(&mut self, key: Key, object: Object, affected: &mut Affected) {
        match object {
            Object::Namespace(namespace) => {
                let before = self.namespaces.insert(key.name, namespace.clone());
                if before.unwrap_or_default().modes != namespace.modes {
                    affected.everything = true;
                }
            }
            Object::Pod(pod) => self.pods.set(key, pod, &self.services, affected),
            Object::Service(service) => self.services.set(key, service, affected),
            Object::EndpointSlice(slice) => self.services.set_slice(key, slice, affected),
            Object::PeerAuthentication(policy) => {
                if self.policies.get(&key) != Some(&policy) {
                    affected.everything = true;
                    self.policies.insert(key, policy);
                }
            }
            Object::Bypass(_) => {}
        }
    }

    fn remove(&mut self, kind: Kind, key: &Key, affected: &mut Affected) {
        match kind {
            Kind::Namespace => {
                let before = self.namespaces.remove(&key.name);
                affected.everything |= before.is_some_and(|gone| gone.modes != Default::default());
            }
            Kind::Pod => self.pods.remove(key, &self.services, affected),
            Kind::Service => self.services.remove(key, affected),
            Kind::EndpointSlice => self.services.remove_slice(key, affected),
            Kind::PeerAuthentication => affected.everything |= self.policies.remove(key).is_some(),
            Kind::Bypass => {}
        }
    }

    fn keys(&self, kind: Kind) -> Box<dyn Iterator<Item = Key> + '_> {
        match kind {
            Kind::Namespace => Box::new(self.namespaces.keys().map(|name| Key::new("", name))),
            Kind::Pod => Box::new(self.pods.keys()),
            Kind::Service => Box::new(self.services.keys()),
            Kind::EndpointSlice => Box::new(self.services.slice_keys()),
            Kind::PeerAuthentication => Box::new(self.policies.keys().cloned()),
            Kind::Bypass => Box::new(std::iter::empty()),
        }
    }

    /// How many objects of a kind are known.
    pub fn count(&self, kind: Kind) -> usize {
        self.keys(kind).count()
    }

    pub fn pod(&self, key: &Key) -> Option<&Pod> {
        self.pods.get(key)
    }

    /// The pods with a proxy of ours that neither end nor have ended.
    pub fn proxies(&self) -> impl Iterator<Item = (&Key, &Pod)> {
        self.pods.iter().filter(|(_, pod)| pod.has_proxy)
    }

    /// The pods with an address that run as a ServiceAccount.
    pub fn running_as(&self, namespace: &str, account: &str) -> impl Iterator<Item = (&Key, &Pod)> {
        self.pods.iter().filter(move |(key, pod)| {
            *key.namespace == *namespace && *pod.service_account == *account && !pod.ips.is_empty()
        })
    }

    /// The pods that should have a sidecar and have none.
    pub fn missing_sidecars(&self) -> impl Iterator<Item = (&Key, &Pod)> {
        self.pods.iter().filter(|(key, pod)| {
            let namespace = self.namespaces.get(&key.namespace);
            pod.missing
                .is_wanted(namespace.is_some_and(|namespace| namespace.injects))
        })
    }

    /// Whether this pod should have a sidecar and has none.
    pub fn is_missing_sidecar(&self, key: &Key) -> bool {
        let namespace = self.namespaces.get(&key.namespace);
        let injects = namespace.is_some_and(|namespace| namespace.injects);
        self.pods
            .get(key)
            .is_some_and(|pod| pod.missing.is_wanted(injects))
    }
}
