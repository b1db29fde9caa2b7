//! Pods, by name and by address.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::affected::Affected;
use super::services::Services;
use crate::object::{Key, Labels, Pod};

/// How many pods may go before labels that nobody has are looked for.
const SWEEP_EVERY: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Pods {
    by_key: HashMap<Key, Pod>,
    /// The pods with an address. An address has two for a moment only, when it
    /// is given to the next pod before we hear that the last one is gone.
    by_ip: HashMap<IpAddr, Vec<Key>>,
    labels: HashSet<Labels>,
    removed: usize,
}

impl Pods {
    pub(super) fn get(&self, key: &Key) -> Option<&Pod> {
        self.by_key.get(key)
    }

    pub(super) fn get_key_value(&self, key: &Key) -> Option<(&Key, &Pod)> {
        self.by_key.get_key_value(key)
    }

    /// The pod that has this address, the latest known where there are several.
    pub(super) fn at(&self, ip: IpAddr) -> Option<(&Key, &Pod)> {
        let key = self.by_ip.get(&ip)?.last()?;
        self.by_key.get_key_value(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        self.by_key.keys().cloned()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Pod)> {
        self.by_key.iter()
    }

    pub(super) fn set(
        &mut self,
        key: Key,
        mut pod: Pod,
        services: &Services,
        affected: &mut Affected,
    ) {
        if self.by_key.get(&key) == Some(&pod) {
            return;
        }
        self.remove(&key, services, affected);
        pod.labels = self.shared(pod.labels);
        for ip in &pod.ips {
            self.by_ip.entry(*ip).or_default().push(key.clone());
        }
        touch(&key, &pod, services, affected);
        self.by_key.insert(key, pod);
    }

    pub(super) fn remove(&mut self, key: &Key, services: &Services, affected: &mut Affected) {
        let Some(pod) = self.by_key.remove(key) else {
            return;
        };
        touch(key, &pod, services, affected);
        for ip in &pod.ips {
            if let Some(keys) = self.by_ip.get_mut(ip) {
                keys.retain(|other| other != key);
                if keys.is_empty() {
                    self.by_ip.remove(ip);
                }
            }
        }
        self.removed += 1;
        if self.removed >= SWEEP_EVERY {
            self.removed = 0;
            drop(pod);
            self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        }
    }

    /// The same labels, held once for all pods that have them.
    fn shared(&mut self, labels: Labels) -> Labels {
        if let Some(known) = self.labels.get(&labels) {
            return Arc::clone(known);
        }
        self.labels.insert(Arc::clone(&labels));
        labels
    }
}

/// A pod has come, gone or changed: what it accepts, what its addresses are, and
/// the endpoints of every Service that has it.
fn touch(key: &Key, pod: &Pod, services: &Services, affected: &mut Affected) {
    affected.pods.insert(key.clone());
    for ip in &pod.ips {
        affected.addresses.insert(*ip);
        affected
            .services
            .extend(services.with_endpoint(*ip).cloned());
    }
}
