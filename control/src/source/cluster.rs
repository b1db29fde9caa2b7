//! The Kubernetes API: a watch of each kind.

mod faults;

use std::pin::pin;
use std::time::Duration;

use bulkhead_crds::emergency::{self, Bypass};
use bulkhead_crds::istio::peer_authentication::{self as istio, PeerAuthentication};
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use bulkhead_runtime::tasks::Tasks;
use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, TypeMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::object::manifest::{self, Manifest};
use crate::object::{Change, Key, Kind, Listed, Object, ObjectError, Reading};
use faults::{Fault, Faults};

pub(crate) use faults::Events;

/// How often the API server is asked whether a kind is served that was not.
const LOOK: Duration = Duration::from_secs(5);

/// What every watch needs.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) hub: Hub,
    pub(crate) reading: Reading,
    pub(crate) metrics: Metrics,
    pub(crate) events: Events,
    pub(crate) synced: Condition,
    pub(crate) drain: drain::Watch,
    pub(crate) tasks: Tasks,
}

/// Starts the watches. They end when the drain starts.
pub(crate) fn watch(cluster: &Cluster) {
    cluster.clone().spawn::<manifest::Namespace>();
    cluster.clone().spawn::<manifest::Pod>();
    cluster.clone().spawn::<manifest::Service>();
    cluster.clone().spawn::<manifest::EndpointSlice>();
    let watch = cluster.clone();
    cluster.tasks.spawn(
        Kind::Bypass.watch(),
        watch.optional(Kind::Bypass, emergency::GROUP, &[emergency::VERSION]),
    );
    let watch = cluster.clone();
    cluster.tasks.spawn(
        Kind::PeerAuthentication.watch(),
        watch.optional(Kind::PeerAuthentication, istio::GROUP, &istio::VERSIONS),
    );
}

/// How a watch came to its end.
enum End {
    Drain,
    /// The kind is not served (any more).
    NotServed,
}

impl Cluster {
    fn spawn<M>(self)
    where
        M: Manifest + Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    {
        let api = Api::<M>::all(self.client.clone());
        let tasks = self.tasks.clone();
        tasks.spawn(M::KIND.watch(), async move {
            self.follow(api, &(), M::KIND, |_| true, keep::<M>).await;
        });
    }

    /// Follows a kind that may not be served, or not yet.
    async fn optional(self, kind: Kind, group: &'static str, versions: &'static [&'static str]) {
        let mut drain = self.drain.clone();
        loop {
            match self.served(kind, group, versions).await {
                Ok(Some(version)) => {
                    let is_passing = |error: &watcher::Error| !is_not_found(error);
                    // Read one by one, so that one that cannot be read is no
                    // reason to know none.
                    let keep = match kind {
                        Kind::Bypass => keep_dynamic::<Bypass>,
                        _ => keep_dynamic::<PeerAuthentication>,
                    };
                    let gvk = GroupVersionKind::gvk(group, version, kind.as_str());
                    let resource = ApiResource::from_gvk(&gvk);
                    let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
                    let end = self.follow(api, &resource, kind, is_passing, keep).await;
                    if matches!(end, End::Drain) {
                        return;
                    }
                    // What was known holds until the API server says that there is
                    // no such kind; where it starts, it may not know all at first.
                }
                Ok(None) => self.apply(Change::Replaced(kind, Listed::default())),
                // Who does not know whether there are policies must not tell
                // proxies that there are none.
                Err(error) => {
                    self.metrics.source_error(kind.as_str());
                    tracing::warn!(
                        %error,
                        kind = kind.as_str(),
                        "asking the API server whether it serves a kind failed; what is known of \
                         it stays in force"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = drain.started() => return,
            }
        }
    }

    /// The first of these versions in which the kind is served; nothing where the
    /// API server says that none of them is.
    async fn served(
        &self,
        kind: Kind,
        group: &str,
        versions: &[&'static str],
    ) -> kube::Result<Option<&'static str>> {
        for version in versions {
            let group_version = format!("{group}/{version}");
            let is_kind = |found: &APIResource| found.kind == kind.as_str();
            match self.client.list_api_group_resources(&group_version).await {
                Ok(list) if list.resources.iter().any(is_kind) => return Ok(Some(version)),
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Follows one kind. `is_passing` says of an error whether the watch is to
    /// be resumed after it.
    async fn follow<K>(
        &self,
        api: Api<K>,
        resource: &K::DynamicType,
        kind: Kind,
        is_passing: impl Fn(&watcher::Error) -> bool,
        keep: impl Fn(K, &Reading) -> Result<(Key, Object), ObjectError>,
    ) -> End
    where
        K: Resource + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
        K::DynamicType: Clone,
    {
        let events = watcher(api, watcher::Config::default());
        let mut events = pin!(events.default_backoff());
        let mut drain = self.drain.clone();
        let mut faults = Faults::new(kind, self.metrics.clone(), self.events.clone());
        let mut listed = Listed::default();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = drain.started() => return End::Drain,
            };
            match event {
                Some(Ok(Event::Init)) => listed = Listed::default(),
                Some(Ok(Event::InitApply(object))) => {
                    let key = key_of(&object);
                    match self.read(object, resource, &keep, &mut faults) {
                        Some(found) => listed.objects.push(found),
                        None => drop(listed.unreadable.insert(key)),
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    let listed = std::mem::take(&mut listed);
                    faults.retain(|key| listed.has(key));
                    self.apply(Change::Replaced(kind, listed));
                }
                Some(Ok(Event::Apply(object))) => {
                    if let Some((key, object)) = self.read(object, resource, &keep, &mut faults) {
                        self.apply(Change::Applied(key, object));
                    }
                }
                Some(Ok(Event::Delete(object))) => {
                    let key = key_of(&object);
                    faults.forget(&key);
                    self.apply(Change::Deleted(kind, key));
                }
                Some(Err(error)) => {
                    self.metrics.source_error(kind.as_str());
                    if !is_passing(&error) {
                        return End::NotServed;
                    }
                    tracing::warn!(
                        %error,
                        kind = kind.as_str(),
                        "a watch was interrupted and will be resumed; check that the \
                         ServiceAccount may list and watch this kind"
                    );
                }
                None => return End::NotServed,
            }
        }
    }

    /// What is kept of an object; nothing of one that cannot be read.
    fn read<K: Resource>(
        &self,
        object: K,
        resource: &K::DynamicType,
        keep: impl Fn(K, &Reading) -> Result<(Key, Object), ObjectError>,
        faults: &mut Faults,
    ) -> Option<(Key, Object)> {
        let (key, reference) = (key_of(&object), object.object_ref(resource));
        let read = keep(object, &self.reading);
        let fault = match &read {
            Ok((_, object)) => object
                .without_effect(&self.reading)
                .map(|problem| Fault::WithoutEffect(problem.to_owned())),
            Err(error) => Some(Fault::Unreadable(error.to_string())),
        };
        faults.note(&key, fault, reference);
        read.ok()
    }

    fn apply(&self, change: Change) {
        let is_list = matches!(change, Change::Replaced(..));
        self.hub.apply(change);
        if is_list && self.hub.has_listed(&Kind::ALL) {
            self.hub.complete();
            self.synced.set(true);
        }
    }
}

fn keep<M: Manifest>(manifest: M, reading: &Reading) -> Result<(Key, Object), ObjectError> {
    Ok((manifest.key()?, manifest.keep(reading)?))
}

fn keep_dynamic<M: Manifest>(
    mut object: DynamicObject,
    reading: &Reading,
) -> Result<(Key, Object), ObjectError> {
    // The items of a list do not say what they are, and the types insist.
    let kind = M::KIND.as_str();
    object.types.get_or_insert_with(|| TypeMeta {
        api_version: String::new(),
        kind: kind.to_owned(),
    });
    let manifest = serde_json::to_value(object).and_then(serde_json::from_value::<M>);
    let manifest = manifest.map_err(|error| ObjectError::Malformed(kind, error))?;
    keep(manifest, reading)
}

fn key_of(object: &impl Resource) -> Key {
    let metadata = object.meta();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    Key::new(namespace, metadata.name.as_deref().unwrap_or_default())
}

fn is_not_found(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => match error {
            kube::Error::Api(status) => status,
            _ => return false,
        },
        watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    status.code == 404
}

#[cfg(test)]
mod tests;
