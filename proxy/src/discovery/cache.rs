//! What is known of destinations, and what control is to be asked about.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_core::discovery::{
    Destination, Endpoints, EndpointsName, ResourceName, Route as RouteByName,
};
use tokio::sync::{Notify, watch};

use super::{Route, Targets};
use crate::metrics::ProcessMetrics;

/// The most addresses that control is asked about at once. An application that
/// dials more, as a scanner or a crawler does, is not in want of a mesh there.
const MAX_DESTINATIONS: usize = 4096;

/// All destinations in use. Workers ask it, the stream fills it.
pub(super) struct Cache {
    contents: Mutex<Contents>,
    /// What is wanted has changed.
    pub(super) wanted: Notify,
    metrics: ProcessMetrics,
}

#[derive(Default)]
struct Contents {
    destinations: HashMap<SocketAddr, Entry<Destination>>,
    endpoints: HashMap<EndpointsName, EndpointsEntry>,
    /// What was wanted or is wanted no more since control was told last.
    changes: BTreeMap<ResourceName, Change>,
}

/// What became of the wish for a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    Wanted,
    Unwanted,
}

struct Entry<T> {
    version: String,
    value: Option<T>,
    /// What connections see.
    published: watch::Sender<Option<Arc<Targets>>>,
}

#[derive(Default)]
struct EndpointsEntry {
    version: String,
    value: Option<Arc<Endpoints>>,
    /// The addresses whose connections go there.
    users: BTreeSet<SocketAddr>,
}

impl Cache {
    pub(super) fn new(metrics: ProcessMetrics) -> Self {
        Self {
            contents: Mutex::default(),
            wanted: Notify::new(),
            metrics,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of an address; control is asked about one that is new.
    pub(super) fn watch(
        &self,
        address: SocketAddr,
    ) -> Option<watch::Receiver<Option<Arc<Targets>>>> {
        let mut contents = self.lock();
        if let Some(entry) = contents.destinations.get(&address) {
            return Some(entry.published.subscribe());
        }
        if contents.destinations.len() == MAX_DESTINATIONS {
            contents.forget_unused();
        }
        if contents.destinations.len() == MAX_DESTINATIONS {
            return None;
        }
        let (published, receiver) = watch::channel(None);
        let entry = Entry {
            version: String::new(),
            value: None,
            published,
        };
        contents.destinations.insert(address, entry);
        contents.note(ResourceName::Destination(address), Change::Wanted);
        self.noted(contents);
        Some(receiver)
    }

    /// Forgets what no worker looks at any more.
    pub(super) fn forget_unused(&self) {
        let mut contents = self.lock();
        contents.forget_unused();
        self.noted(contents);
    }

    fn noted(&self, contents: MutexGuard<'_, Contents>) {
        self.metrics.destinations(contents.destinations.len());
        if !contents.changes.is_empty() {
            self.wanted.notify_one();
        }
    }

    /// Every name that is wanted, with the version that is known: what a new
    /// stream begins with.
    pub(super) fn all(&self) -> Vec<(ResourceName, String)> {
        let mut contents = self.lock();
        contents.changes.clear();
        let destinations = contents.destinations.iter();
        let destinations = destinations
            .map(|(address, entry)| (ResourceName::Destination(*address), entry.version.clone()));
        let endpoints = contents.endpoints.iter();
        let endpoints = endpoints
            .map(|(name, entry)| (ResourceName::Endpoints(name.clone()), entry.version.clone()));
        destinations.chain(endpoints).collect()
    }

    /// What has changed since this or [`Cache::all`] was called last.
    pub(super) fn changes(&self) -> BTreeMap<ResourceName, Change> {
        std::mem::take(&mut self.lock().changes)
    }

    /// Takes over what control says of an address; nothing where it has nothing
    /// to say.
    pub(super) fn set_destination(
        &self,
        address: SocketAddr,
        version: String,
        destination: Destination,
    ) {
        let mut contents = self.lock();
        let contents = &mut *contents;
        let Some(entry) = contents.destinations.get_mut(&address) else {
            return; // Wanted no more.
        };
        let before = endpoints_of(entry.value.as_ref()).cloned();
        let after = endpoints_of(Some(&destination)).cloned();
        entry.version = version;
        entry.value = Some(destination);
        if before != after {
            if let Some(before) = before {
                contents.drop_user(&before, address);
            }
            if let Some(after) = after {
                contents.add_user(after, address);
            }
        }
        contents.publish(address);
        if !contents.changes.is_empty() {
            self.wanted.notify_one();
        }
    }

    /// Takes over where the connections to a Service's port may go.
    pub(super) fn set_endpoints(
        &self,
        name: &EndpointsName,
        version: String,
        endpoints: Endpoints,
    ) {
        let mut contents = self.lock();
        let Some(entry) = contents.endpoints.get_mut(name) else {
            return; // Wanted no more.
        };
        entry.version = version;
        entry.value = Some(Arc::new(endpoints));
        let users: Vec<_> = entry.users.iter().copied().collect();
        for address in users {
            contents.publish(address);
        }
    }
}

impl Contents {
    fn note(&mut self, name: ResourceName, change: Change) {
        self.changes.insert(name, change);
    }

    fn forget_unused(&mut self) {
        let unused: Vec<_> = self
            .destinations
            .iter()
            .filter(|(_, entry)| entry.published.receiver_count() == 0)
            .map(|(address, _)| *address)
            .collect();
        for address in unused {
            let entry = self.destinations.remove(&address);
            let name = entry
                .as_ref()
                .and_then(|it| endpoints_of(it.value.as_ref()));
            if let Some(name) = name.cloned() {
                self.drop_user(&name, address);
            }
            self.note(ResourceName::Destination(address), Change::Unwanted);
        }
    }

    fn add_user(&mut self, name: EndpointsName, address: SocketAddr) {
        let is_new = !self.endpoints.contains_key(&name);
        if is_new {
            self.note(ResourceName::Endpoints(name.clone()), Change::Wanted);
        }
        let entry = self.endpoints.entry(name).or_default();
        entry.users.insert(address);
    }

    fn drop_user(&mut self, name: &EndpointsName, address: SocketAddr) {
        let Some(entry) = self.endpoints.get_mut(name) else {
            return;
        };
        entry.users.remove(&address);
        if entry.users.is_empty() {
            self.endpoints.remove(name);
            self.note(ResourceName::Endpoints(name.clone()), Change::Unwanted);
        }
    }

    /// Tells connections where they go now. What they know stays until there is
    /// something whole to replace it.
    fn publish(&self, address: SocketAddr) {
        let Some(entry) = self.destinations.get(&address) else {
            return;
        };
        let Some(destination) = &entry.value else {
            return;
        };
        let route = match &destination.route {
            RouteByName::Unknown => Route::Unknown,
            RouteByName::Endpoint(endpoint) => Route::Endpoint(endpoint.clone()),
            RouteByName::Endpoints(name) => {
                let entry = self.endpoints.get(name);
                match entry.and_then(|entry| entry.value.clone()) {
                    Some(endpoints) => Route::Endpoints(endpoints),
                    None => return,
                }
            }
        };
        let targets = Targets::new(address, destination, route);
        entry.published.send_replace(Some(Arc::new(targets)));
    }
}

fn endpoints_of(destination: Option<&Destination>) -> Option<&EndpointsName> {
    match &destination?.route {
        RouteByName::Endpoints(name) => Some(name),
        RouteByName::Unknown | RouteByName::Endpoint(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::discovery::Endpoint;

    fn cache() -> Cache {
        Cache::new(ProcessMetrics::default())
    }

    fn address() -> SocketAddr {
        "203.0.113.1:80".parse().unwrap()
    }

    fn cart() -> EndpointsName {
        "shop/cart:80".parse().unwrap()
    }

    fn service() -> Destination {
        Destination {
            route: RouteByName::Endpoints(cart()),
            ..Destination::default()
        }
    }

    fn endpoints(ready: bool) -> Endpoints {
        let endpoints = vec![Endpoint {
            address: "192.0.2.1:8080".parse().unwrap(),
            ready,
            zone: String::new(),
            workload: String::new(),
            identity: None,
        }];
        Endpoints { endpoints }
    }

    fn changes(cache: &Cache) -> Vec<(String, Change)> {
        let changes = cache.changes().into_iter();
        changes
            .map(|(name, change)| (name.to_string(), change))
            .collect()
    }

    #[test]
    fn an_address_is_asked_about_once_and_then_its_endpoints_are() {
        let cache = cache();
        let watch = cache.watch(address()).unwrap();
        let _same = cache.watch(address()).unwrap();
        let wanted = |name: &str| vec![(name.to_owned(), Change::Wanted)];
        assert_eq!(changes(&cache), wanted("203.0.113.1:80"));
        cache.set_destination(address(), "1".into(), service());
        assert_eq!(changes(&cache), wanted("shop/cart:80"));
        assert_eq!(*watch.borrow(), None, "half an answer is none");
        cache.set_endpoints(&cart(), "2".into(), endpoints(true));
        let targets = watch.borrow().clone().unwrap();
        assert_eq!(targets.endpoints().count(), 1);
        cache.set_endpoints(&cart(), "3".into(), endpoints(false));
        let targets = watch.borrow().clone().unwrap();
        assert_eq!(targets.endpoints().count(), 0);
    }

    #[test]
    fn what_nobody_uses_is_forgotten_with_its_endpoints() {
        let cache = cache();
        let watch = cache.watch(address()).unwrap();
        cache.set_destination(address(), "1".into(), service());
        cache.changes();
        cache.forget_unused();
        assert!(cache.changes().is_empty(), "it is in use");
        drop(watch);
        cache.forget_unused();
        let unwanted = ["203.0.113.1:80", "shop/cart:80"];
        let unwanted = unwanted.map(|name| (name.to_owned(), Change::Unwanted));
        assert_eq!(changes(&cache), unwanted);
        assert!(cache.all().is_empty());
    }

    #[test]
    fn endpoints_that_two_addresses_share_stay_while_one_uses_them() {
        let cache = cache();
        let other = "[2001:db8::1]:80".parse().unwrap();
        let one = cache.watch(address()).unwrap();
        let _two = cache.watch(other).unwrap();
        cache.set_destination(address(), "1".into(), service());
        cache.set_destination(other, "1".into(), service());
        cache.changes();
        drop(one);
        cache.forget_unused();
        let unwanted = [("203.0.113.1:80".to_owned(), Change::Unwanted)];
        assert_eq!(changes(&cache), unwanted);
    }

    #[test]
    fn a_new_stream_asks_for_everything_by_what_is_known() {
        let cache = cache();
        let _watch = cache.watch(address()).unwrap();
        cache.set_destination(address(), "7".into(), service());
        let all = cache.all().into_iter();
        let mut all: Vec<_> = all
            .map(|(name, version)| (name.to_string(), version))
            .collect();
        all.sort();
        let names = [("203.0.113.1:80", "7"), ("shop/cart:80", "")];
        assert_eq!(
            all,
            names.map(|(name, it)| (name.to_owned(), it.to_owned()))
        );
        assert!(cache.changes().is_empty(), "it was all said");
    }

    #[test]
    fn a_scanner_does_not_fill_the_memory() {
        let cache = cache();
        let watch = |number: usize| {
            let ip = std::net::Ipv4Addr::from(number as u32);
            cache.watch(SocketAddr::new(ip.into(), 80))
        };
        let held: Vec<_> = (0..MAX_DESTINATIONS).map(watch).collect();
        assert!(watch(MAX_DESTINATIONS).is_none());
        assert!(watch(0).is_some(), "what is known stays known");
        drop(held);
        assert!(watch(MAX_DESTINATIONS).is_some());
    }
}
