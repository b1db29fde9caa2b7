//! The Kubernetes API: a watch of each kind.

use std::pin::pin;
use std::time::Duration;

use bulkhead_crds::emergency::{self, Bypass};
use bulkhead_crds::istio::peer_authentication::{self as istio, PeerAuthentication};
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::object::manifest::{self, Manifest};
use crate::object::{Change, Key, Kind, Object, ObjectError, Reading};

/// How often the API server is asked whether a kind is served that was not.
const LOOK: Duration = Duration::from_secs(5);

/// What every watch needs.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) hub: Hub,
    pub(crate) reading: Reading,
    pub(crate) metrics: Metrics,
    pub(crate) synced: Condition,
    pub(crate) drain: drain::Watch,
}

/// Starts the watches. They end when the drain starts.
pub(crate) fn watch(cluster: &Cluster) {
    cluster.clone().spawn::<manifest::Namespace>();
    cluster.clone().spawn::<manifest::Pod>();
    cluster.clone().spawn::<manifest::Service>();
    cluster.clone().spawn::<manifest::EndpointSlice>();
    let watch = cluster.clone();
    tokio::spawn(watch.optional(Kind::Bypass, emergency::GROUP, &[emergency::VERSION]));
    let watch = cluster.clone();
    tokio::spawn(watch.optional(Kind::PeerAuthentication, istio::GROUP, &istio::VERSIONS));
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
        tokio::spawn(async move { self.follow(api, M::KIND, |_| true, keep::<M>).await });
    }

    /// Follows a kind that may not be served, or not yet.
    async fn optional(self, kind: Kind, group: &'static str, versions: &'static [&'static str]) {
        let mut drain = self.drain.clone();
        loop {
            match self.served(kind, group, versions).await {
                Ok(Some(version)) => {
                    let is_passing = |error: &watcher::Error| !is_not_found(error);
                    let end = match kind {
                        Kind::Bypass => {
                            let api = Api::<Bypass>::all(self.client.clone());
                            self.follow(api, kind, is_passing, keep::<Bypass>).await
                        }
                        _ => {
                            let resource = istio::api_resource(version);
                            let api =
                                Api::<DynamicObject>::all_with(self.client.clone(), &resource);
                            self.follow(api, kind, is_passing, keep_policy).await
                        }
                    };
                    if matches!(end, End::Drain) {
                        return;
                    }
                    // What was known holds until the API server says that there is
                    // no such kind; where it starts, it may not know all at first.
                }
                Ok(None) => self.apply(Change::Replaced(kind, Vec::new())),
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
        let mut listed = Vec::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = drain.started() => return End::Drain,
            };
            match event {
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object))) => {
                    listed.extend(self.kept(kind, keep(object, &self.reading)))
                }
                Some(Ok(Event::InitDone)) => {
                    self.apply(Change::Replaced(kind, std::mem::take(&mut listed)));
                }
                Some(Ok(Event::Apply(object))) => {
                    if let Some((key, object)) = self.kept(kind, keep(object, &self.reading)) {
                        self.apply(Change::Applied(key, object));
                    }
                }
                Some(Ok(Event::Delete(object))) => {
                    let metadata = object.meta();
                    let namespace = metadata.namespace.as_deref().unwrap_or_default();
                    let name = metadata.name.as_deref().unwrap_or_default();
                    self.apply(Change::Deleted(kind, Key::new(namespace, name)));
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

    /// What is kept of an object. One that cannot be read stays as it was known.
    fn kept(&self, kind: Kind, read: Result<(Key, Object), ObjectError>) -> Option<(Key, Object)> {
        read.inspect_err(|error| {
            self.metrics.source_error(kind.as_str());
            tracing::error!(
                kind = kind.as_str(),
                %error,
                "an object cannot be honoured; what was known of it before stays in force"
            );
        })
        .ok()
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

fn keep_policy(object: DynamicObject, reading: &Reading) -> Result<(Key, Object), ObjectError> {
    let mut data = object.data;
    let spec = data.get_mut("spec").map(serde_json::Value::take);
    let spec = spec.map(serde_json::from_value).transpose();
    let spec = spec.map_err(|error| ObjectError::Malformed(istio::KIND, error))?;
    let policy = PeerAuthentication {
        metadata: object.metadata,
        spec: spec.unwrap_or_default(),
    };
    keep(policy, reading)
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
