//! Keeping up with the cluster's namespaces.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError};

use bulkhead_inject::Namespace;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use futures::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};

use super::{Namespaces, namespace};
use crate::metrics::Metrics;
use crate::registration::standing;

/// Watches until the drain starts. `synced` holds from the first complete list
/// on; an interrupted watch does not take it back, because what is known stays
/// right for nearly every namespace, and a pod of the others is read for.
pub(crate) async fn watch_namespaces(
    namespaces: Namespaces,
    synced: Condition,
    metrics: Metrics,
    mut drain: drain::Watch,
) {
    let Some(cluster) = &namespaces.cluster else {
        synced.set(true);
        return drain.started().await;
    };
    let events = watcher(cluster.api.clone(), watcher::Config::default());
    let mut events = pin!(events.default_backoff());
    let mut listed = HashMap::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = drain.started() => return,
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => {
                let namespace = namespace(object.metadata);
                listed.insert(namespace.name.clone(), Arc::new(namespace));
            }
            Some(Ok(Event::InitDone)) => {
                namespaces.replace(std::mem::take(&mut listed));
                synced.set(true);
            }
            Some(Ok(Event::Apply(object))) => namespaces.put(namespace(object.metadata)),
            Some(Ok(Event::Delete(object))) => namespaces.remove(&namespace(object.metadata).name),
            Some(Err(error)) => {
                metrics.namespace_watch_errors.inc();
                tracing::warn!(
                    %error,
                    "the watch of namespaces was interrupted and will be resumed; \
                     check that the ServiceAccount may list and watch namespaces"
                );
            }
            None => return,
        }
    }
}

impl Namespaces {
    pub(super) fn replace(&self, all: HashMap<String, Arc<Namespace>>) {
        let standings = all
            .values()
            .filter_map(|namespace| Some((namespace.name.clone(), standing(namespace)?)))
            .collect();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = all;
        let standings = Some(standings);
        self.standings.send_if_modified(|current| {
            let changed = *current != standings;
            *current = standings;
            changed
        });
    }

    fn put(&self, namespace: Namespace) {
        let name = namespace.name.clone();
        let standing = standing(&namespace);
        self.known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.clone(), Arc::new(namespace));
        self.standings.send_if_modified(|current| {
            let current = current.get_or_insert_default();
            match standing {
                Some(standing) => current.insert(name, standing) != Some(standing),
                None => current.remove(&name).is_some(),
            }
        });
    }

    fn remove(&self, name: &str) {
        self.known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        self.standings.send_if_modified(|current| {
            current
                .as_mut()
                .is_some_and(|current| current.remove(name).is_some())
        });
    }
}
