//! Services and their endpoints, by name and by address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::affected::Affected;
use crate::object::{EndpointSlice, Key, Name, Service, SliceEndpoint};

#[derive(Debug, Default)]
pub(super) struct Services {
    by_key: HashMap<Key, Service>,
    by_ip: HashMap<IpAddr, Key>,
    /// By the Service, then by the slice's name.
    slices: HashMap<Key, BTreeMap<Name, EndpointSlice>>,
    /// The Service of each slice.
    owners: HashMap<Key, Key>,
    /// The Services that have an endpoint with this address.
    by_endpoint: HashMap<IpAddr, BTreeSet<Key>>,
}

impl Services {
    pub(super) fn get(&self, key: &Key) -> Option<&Service> {
        self.by_key.get(key)
    }

    /// The Service with this cluster IP.
    pub(super) fn at(&self, ip: IpAddr) -> Option<(&Key, &Service)> {
        self.by_key.get_key_value(self.by_ip.get(&ip)?)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        self.by_key.keys().cloned()
    }

    pub(super) fn slice_keys(&self) -> impl Iterator<Item = Key> {
        self.owners.keys().cloned()
    }

    /// The Services that have an endpoint with this address.
    pub(super) fn with_endpoint(&self, ip: IpAddr) -> impl Iterator<Item = &Key> {
        self.by_endpoint.get(&ip).into_iter().flatten()
    }

    /// The endpoints of a Service's port of this name, with the number that the
    /// port has there.
    pub(super) fn endpoints<'a>(
        &'a self,
        service: &Key,
        port: &'a str,
    ) -> impl Iterator<Item = (&'a SliceEndpoint, u16)> {
        let slices = self
            .slices
            .get(service)
            .into_iter()
            .flat_map(BTreeMap::values);
        slices.flat_map(move |slice| {
            let number = slice.ports.iter().find(|(name, _)| &**name == port);
            number
                .into_iter()
                .flat_map(|(_, number)| slice.endpoints.iter().map(|endpoint| (endpoint, *number)))
        })
    }

    pub(super) fn set(&mut self, key: Key, service: Service, affected: &mut Affected) {
        if self.by_key.get(&key) == Some(&service) {
            return;
        }
        self.remove(&key, affected);
        for ip in &service.ips {
            affected.addresses.insert(*ip);
            self.by_ip.insert(*ip, key.clone());
        }
        self.touch(&key, affected);
        self.by_key.insert(key, service);
    }

    pub(super) fn remove(&mut self, key: &Key, affected: &mut Affected) {
        let Some(service) = self.by_key.remove(key) else {
            return;
        };
        for ip in &service.ips {
            affected.addresses.insert(*ip);
            // Another Service may have been given it already.
            if self.by_ip.get(ip) == Some(key) {
                self.by_ip.remove(ip);
            }
        }
        self.touch(key, affected);
    }

    pub(super) fn set_slice(&mut self, key: Key, slice: EndpointSlice, affected: &mut Affected) {
        let service = Key {
            namespace: key.namespace.clone(),
            name: slice.service.clone(),
        };
        let known = self.slices.get(&service).and_then(|all| all.get(&key.name));
        if known == Some(&slice) {
            return;
        }
        self.remove_slice(&key, affected);
        for endpoint in &slice.endpoints {
            let services = self.by_endpoint.entry(endpoint.ip).or_default();
            services.insert(service.clone());
        }
        let slices = self.slices.entry(service.clone()).or_default();
        slices.insert(key.name.clone(), slice);
        self.touch(&service, affected);
        self.owners.insert(key, service);
    }

    pub(super) fn remove_slice(&mut self, key: &Key, affected: &mut Affected) {
        let Some(service) = self.owners.remove(key) else {
            return;
        };
        self.touch(&service, affected);
        let Some(slices) = self.slices.get_mut(&service) else {
            return;
        };
        let gone = slices.remove(&key.name).unwrap_or_default();
        let remaining: BTreeSet<IpAddr> = slices
            .values()
            .flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.ip))
            .collect();
        if slices.is_empty() {
            self.slices.remove(&service);
        }
        for endpoint in gone.endpoints {
            if !remaining.contains(&endpoint.ip)
                && let Some(services) = self.by_endpoint.get_mut(&endpoint.ip)
            {
                services.remove(&service);
                if services.is_empty() {
                    self.by_endpoint.remove(&endpoint.ip);
                }
            }
        }
    }

    /// A Service or its endpoints changed: whoever asked for them, or dialled
    /// one of them by its own address.
    fn touch(&self, service: &Key, affected: &mut Affected) {
        affected.services.insert(service.clone());
        let slices = self
            .slices
            .get(service)
            .into_iter()
            .flat_map(BTreeMap::values);
        let ips = slices.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.ip));
        affected.addresses.extend(ips);
    }
}
