//! What proxies ask.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bulkhead_core::discovery::{
    Destination, Endpoint, Endpoints, EndpointsName, Inbound, PodName, Route,
    ServicePort as ServicePortName,
};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::peer_authentication::{self, PeerAuthentication, Workload};
use bulkhead_core::policy::{InboundPolicy, MtlsMode};
use bulkhead_core::protocol::{OPAQUE_PORTS, Protocol};

use super::Index;
use crate::object::{Key, Name, Pod, ServicePort, SliceEndpoint};

impl Index {
    /// What a pod accepts; nothing where there is no such pod.
    pub fn inbound(&self, pod: &PodName) -> Option<Inbound> {
        let key = Key::new(&pod.namespace, &pod.name);
        let pod = self.pods.get(&key)?;
        Some(Inbound {
            policy: self.policy(&key, pod),
        })
    }

    /// What an address is. Where nobody knows it, that is the answer.
    pub fn destination(&self, address: SocketAddr) -> Destination {
        let (ip, port) = (address.ip(), address.port());
        if let Some((key, service)) = self.services.at(ip) {
            // A port that the Service does not have leads nowhere.
            return service
                .port(port)
                .map_or_else(Destination::default, |found| {
                    let name = service_port(key, found);
                    Destination {
                        protocol: found.protocol,
                        route: Route::Endpoints(EndpointsName {
                            namespace: name.namespace.clone(),
                            service: name.name.clone(),
                            port,
                        }),
                        service: Some(name),
                    }
                });
        }
        let pod = self.pods.at(ip);
        let behind = self.behind(ip, port);
        if pod.is_none() && behind.is_none() {
            return Destination::default();
        }
        let named = pod.and_then(|(_, pod)| pod.protocol(port));
        let protocol = match &behind {
            Some((_, found, _)) => found.protocol,
            None if OPAQUE_PORTS.contains(&port) => named.unwrap_or(Protocol::Opaque),
            None => named.unwrap_or_default(),
        };
        let slice = behind.as_ref().map(|(_, _, endpoint)| *endpoint);
        Destination {
            service: behind.map(|(key, found, _)| service_port(key, found)),
            protocol,
            route: Route::Endpoint(Endpoint {
                // Who dials a pod itself means this one, ready or not.
                ready: true,
                ..self.endpoint(address, pod, slice)
            }),
        }
    }

    /// The Service of which this is an endpoint on this port: a headless one
    /// before others, since nobody dials an endpoint of the others by itself.
    fn behind(&self, ip: IpAddr, port: u16) -> Option<(&Key, &ServicePort, &SliceEndpoint)> {
        let services = self.services.with_endpoint(ip);
        let matching = services.filter_map(|key| {
            let service = self.services.get(key)?;
            let found = service.ports.iter().find_map(|candidate| {
                let mut endpoints = self.services.endpoints(key, &candidate.name);
                let (endpoint, _) =
                    endpoints.find(|(endpoint, number)| endpoint.ip == ip && *number == port)?;
                Some((candidate, endpoint))
            });
            let (found, endpoint) = found?;
            Some((!service.ips.is_empty(), key, found, endpoint))
        });
        let best = matching.min_by_key(|(has_cluster_ip, key, _, _)| (*has_cluster_ip, *key));
        best.map(|(_, key, found, endpoint)| (key, found, endpoint))
    }

    /// Where connections to a Service's port may go; nothing where there is no
    /// such Service, or none with this port.
    pub fn endpoints(&self, name: &EndpointsName) -> Option<Endpoints> {
        let key = Key::new(&name.namespace, &name.service);
        let port = self.services.get(&key)?.port(name.port)?;
        // While a slice moves to another, an address may be in both.
        let mut found = BTreeMap::new();
        for (slice, number) in self.services.endpoints(&key, &port.name) {
            let address = SocketAddr::new(slice.ip, number);
            let known = found.entry(address).or_insert(slice);
            if slice.ready && !known.ready {
                *known = slice;
            }
        }
        let endpoints = found.into_iter().map(|(address, slice)| {
            let pod = slice.pod.as_deref().and_then(|pod| {
                let key = Key::new(&name.namespace, pod);
                self.pods.get_key_value(&key)
            });
            // A pod that shares its node's address is not known by it.
            let pod = pod.filter(|(_, pod)| pod.ips.contains(&slice.ip));
            self.endpoint(address, pod, Some(slice))
        });
        Some(Endpoints {
            endpoints: endpoints.collect(),
        })
    }

    fn endpoint(
        &self,
        address: SocketAddr,
        pod: Option<(&Key, &Pod)>,
        slice: Option<&SliceEndpoint>,
    ) -> Endpoint {
        let zone = slice.map_or("", |slice| &slice.zone);
        let zone = match pod {
            Some((_, pod)) if zone.is_empty() => &pod.zone,
            _ => zone,
        };
        Endpoint {
            address,
            ready: slice.is_none_or(|slice| slice.ready),
            zone: zone.to_owned(),
            workload: pod.map_or_else(String::new, |(_, pod)| pod.workload.to_string()),
            identity: pod.and_then(|(key, pod)| self.identity(key, pod, address.port())),
        }
    }

    /// Who the other side must prove to be, where mesh mTLS is to be spoken.
    fn identity(&self, key: &Key, pod: &Pod, port: u16) -> Option<SpiffeId> {
        if !pod.meshed || self.policy(key, pod).mode(port) == MtlsMode::Disable {
            return None;
        }
        let domain = &self.settings.trust_domain;
        match SpiffeId::workload(domain, &key.namespace, &pod.service_account) {
            Ok(id) => Some(id),
            Err(error) => {
                // Kubernetes' names are all valid here.
                tracing::warn!(pod = %key, %error, "a pod has no identity");
                None
            }
        }
    }

    fn policy(&self, key: &Key, pod: &Pod) -> InboundPolicy {
        let namespace = self.namespaces.get(&key.namespace);
        let default = &self.settings.default_policy;
        let base = match namespace {
            Some(namespace) => pod.modes.over(&namespace.modes, default),
            None => pod.modes.over(&Default::default(), default),
        };
        let workload = Workload {
            namespace: &key.namespace,
            labels: &pod.labels,
        };
        let roots = &self.settings.root_namespaces;
        // A cluster may have thousands of policies; those of other namespaces
        // are not even looked at.
        let elsewhere = roots.iter().filter(|root| ***root != *key.namespace);
        let namespaces = elsewhere.map(String::as_str).chain([&*key.namespace]);
        let policies = namespaces.flat_map(|namespace| self.policies_of(namespace));
        peer_authentication::effective(workload, base, roots, policies)
    }

    fn policies_of(&self, namespace: &str) -> impl Iterator<Item = &PeerAuthentication> {
        let first = Key::new(namespace, "");
        let here = Name::clone(&first.namespace);
        let policies = self.policies.range(first..);
        policies
            .take_while(move |(key, _)| key.namespace == here)
            .map(|(_, policy)| policy)
    }
}

fn service_port(key: &Key, port: &ServicePort) -> ServicePortName {
    ServicePortName {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        port: port.port,
    }
}
