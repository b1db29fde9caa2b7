//! The trust bundle, in a ConfigMap of every namespace, for the kubelet to put
//! into pods: the roots in PEM, the one that signs first, and beside them the
//! SPIFFE bundle document, which says as well what is newer than what. The
//! [`cluster`]'s own kind of object has it too, where there is one.
//!
//! ```text
//!  issuer ── roots ─────────────┐
//!  namespaces (metadata) ─watch─┼─▶ due ─▶ apply, 8 at once ─▶ bulkhead-trust-bundle
//!  ConfigMaps of that name ─────┘    ▲            │
//!                                    └── later ◀──┘ written or failed: not again at once
//! ```
//!
//! Every replica does it, because what they apply is the same and applying it
//! twice changes nothing. A ConfigMap that is right is not written. Nor is one that
//! says that it is newer than what this replica knows, which may be behind, until
//! the CA's store, which is written before any ConfigMap, was seen to know nothing
//! of it; and what was looked at is written only if nobody wrote in between.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_crds::owner::{Owner, Standing};
use bulkhead_runtime::drain;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use self::places::Places;
use crate::metrics::Metrics;

pub mod cluster;
mod contents;
mod places;

use self::contents::{Contents, Verdict, sequence_of};

/// The key of the roots in the ConfigMap.
pub const KEY: &str = "ca.crt";
/// The key of the SPIFFE bundle document.
pub const DOCUMENT_KEY: &str = "bundle.json";

/// The owner of the fields that we apply.
const FIELD_MANAGER: &str = "bulkhead-ca";
/// Namespaces that never have a pod of the mesh.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Writes at once. An API server takes some hundred a second from eight, so
/// that a thousand namespaces take seconds, and nobody else waits for long.
const AT_ONCE: usize = 8;
/// The version that no object has: what is applied with it is made, and never
/// replaces anything. etcd counts from 1, which is itself empty.
const OF_NOTHING: &str = "1";
/// How long the API server may take for one.
const DEADLINE: Duration = Duration::from_secs(10);

/// Writes the bundle, as one task.
pub struct Publisher {
    pub client: Client,
    /// The name of the ConfigMap, the same in every namespace.
    pub name: String,
    pub owner: Owner,
    /// The SPIFFE bundle document, and every change of it.
    pub document: watch::Receiver<Arc<str>>,
    /// When the last look at the store began that succeeded.
    pub store_seen: watch::Receiver<Instant>,
    /// Whether another CA is in the store, whose replicas publish.
    pub replaced: watch::Receiver<bool>,
    pub metrics: Metrics,
}

/// What a ConfigMap should be.
#[derive(Clone)]
struct Wanted {
    name: String,
    contents: Contents,
    owner: Owner,
}

/// What became of one write.
enum Outcome {
    /// The ConfigMap as it is now.
    Written(Box<ConfigMap>),
    /// Somebody wrote since it was looked at.
    Overtaken,
    /// There is nothing to do, because Bulkhead is being uninstalled.
    Uninstalling,
    Failed(String),
}

impl Publisher {
    /// Keeps the ConfigMaps right until the drain starts.
    pub async fn run(mut self, mut drain: drain::Watch) {
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let namespaces = watcher(namespaces, watcher::Config::default());
        let mut namespaces = pin!(namespaces.default_backoff());
        let ours = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let config_maps = watcher(Api::<ConfigMap>::all(self.client.clone()), ours);
        let mut config_maps = pin!(config_maps.default_backoff());
        let mut places = Places::default();
        let mut writes = FuturesUnordered::new();
        let mut noticed = Instant::now();
        let Some(mut wanted) = self.wanted() else {
            return;
        };
        loop {
            let is_replaced = *self.replaced.borrow_and_update();
            // Asked for first: what a look showed is in the bundle when it is said that
            // there was one.
            let seen = *self.store_seen.borrow();
            if self
                .document
                .has_changed()
                .is_ok_and(|has_changed| has_changed)
            {
                self.adopt(&mut wanted, &mut places);
            }
            while !is_replaced
                && writes.len() < AT_ONCE
                && let Some(namespace) =
                    places.next(Instant::now(), seen, |found| wanted.judge(found))
            {
                let version = places.version(&namespace);
                writes.push(self.write(namespace, version, wanted.clone(), noticed));
            }
            self.metrics.trust_bundles.set(places.right());
            let wake = places.wake().filter(|_| !is_replaced);
            tokio::select! {
                event = namespaces.next() => match event {
                    Some(Ok(event)) => places.namespace(event, is_served),
                    Some(Err(error)) => self.interrupted("namespaces", &error),
                    None => return,
                },
                event = config_maps.next() => match event {
                    Some(Ok(event)) => {
                        if matches!(event, Event::Delete(_) | Event::InitDone) {
                            noticed = Instant::now();
                        }
                        places.config_map(event);
                    }
                    Some(Err(error)) => self.interrupted("ConfigMaps", &error),
                    None => return,
                },
                Some((namespace, outcome)) = writes.next() => {
                    let written = self.note(&namespace, outcome);
                    places.finished(&namespace, written, Instant::now());
                }
                Ok(()) = self.document.changed() => self.adopt(&mut wanted, &mut places),
                Ok(()) = self.store_seen.changed() => places.newer_due(),
                Ok(()) = self.replaced.changed() => {}
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                () = drain.started() => return,
            }
        }
    }

    fn adopt(&mut self, wanted: &mut Wanted, places: &mut Places) {
        if let Some(changed) = self.wanted() {
            *wanted = changed;
            places.all_due();
        }
    }

    fn wanted(&mut self) -> Option<Wanted> {
        Some(Wanted {
            name: self.name.clone(),
            contents: Contents::of(&self.document.borrow_and_update())?,
            owner: self.owner.clone(),
        })
    }

    /// Applies the ConfigMap in a namespace, where it is still of this version or,
    /// without one, still missing. `noticed` is when the last one was seen to be
    /// missing.
    fn write(
        &self,
        namespace: String,
        version: Option<String>,
        wanted: Wanted,
        noticed: Instant,
    ) -> impl Future<Output = (String, Outcome)> + use<> {
        let client = self.client.clone();
        async move {
            let apply = async || -> kube::Result<Outcome> {
                let owners = match wanted.owner.standing_since(noticed.into()).await? {
                    Standing::Owned(owners) => owners,
                    Standing::Uninstalling => return Ok(Outcome::Uninstalling),
                };
                let mut object = wanted.object();
                object.metadata.owner_references = Some(owners).filter(|all| !all.is_empty());
                object.metadata.resource_version = version.or_else(|| Some(OF_NOTHING.to_owned()));
                let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                let patch = Patch::Apply(&object);
                let applied = api.patch(&wanted.name, &parameters, &patch).await?;
                Ok(Outcome::Written(Box::new(applied)))
            };
            let outcome = match timeout(DEADLINE, apply()).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() => Outcome::Overtaken,
                Ok(Err(error)) => Outcome::Failed(error.to_string()),
                Err(_) => Outcome::Failed(format!("no answer within {DEADLINE:?}")),
            };
            (namespace, outcome)
        }
    }

    /// Counts an outcome, and returns what is stored now where that is known.
    fn note(&self, namespace: &str, outcome: Outcome) -> Option<ConfigMap> {
        match outcome {
            Outcome::Written(config_map) => {
                self.metrics.trust_bundle_writes.inc();
                tracing::info!(namespace, config_map = self.name, "wrote the trust bundle");
                Some(*config_map)
            }
            Outcome::Overtaken | Outcome::Uninstalling => None,
            Outcome::Failed(error) => {
                self.metrics.trust_bundle_failures.inc();
                tracing::error!(
                    namespace,
                    config_map = self.name,
                    error,
                    "writing the trust bundle failed and will be tried again; pods that are \
                     injected there wait for it; check that the ServiceAccount may create and \
                     patch this ConfigMap and get its own ClusterRole"
                );
                None
            }
        }
    }

    fn interrupted(&self, what: &str, error: &watcher::Error) {
        self.metrics.trust_bundle_failures.inc();
        tracing::warn!(
            %error,
            "the watch of {what} was interrupted and will be resumed; check that the \
             ServiceAccount may list and watch {what}"
        );
    }
}

impl Wanted {
    fn object(&self) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            data: Some(self.data()),
            ..ConfigMap::default()
        }
    }

    fn data(&self) -> BTreeMap<String, String> {
        let (roots, document) = (&self.contents.roots, &self.contents.document);
        [(KEY, roots), (DOCUMENT_KEY, document)]
            .map(|(key, value)| (key.to_owned(), value.to_string()))
            .into()
    }

    /// Whether a ConfigMap is as it should be. What others add to it is theirs.
    fn judge(&self, found: &ConfigMap) -> Verdict {
        let has = found.metadata.labels.as_ref();
        let data = found.data.as_ref();
        let is_right = |(key, value)| data.and_then(|data| data.get(key)) == Some(value);
        if !self.data().iter().all(is_right) {
            let document = data.and_then(|data| data.get(DOCUMENT_KEY));
            let stored = document.and_then(|document| sequence_of(document));
            return self.contents.beside(stored);
        }
        let is_ours = self.owner.is_named_by(&found.metadata)
            && labels()
                .iter()
                .all(|(name, value)| has.and_then(|has| has.get(name)) == Some(value));
        match is_ours {
            true => Verdict::Right,
            false => Verdict::Wrong,
        }
    }
}

fn labels() -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "bulkhead-ca"),
        ("app.kubernetes.io/part-of", "bulkhead"),
        ("app.kubernetes.io/managed-by", "bulkhead-ca"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// Whether pods of a namespace may be in the mesh.
fn is_served(namespace: &ObjectMeta) -> bool {
    let name = namespace.name.as_deref().unwrap_or_default();
    // Nothing can be created in a namespace that is being deleted.
    !SYSTEM_NAMESPACES.contains(&name) && namespace.deletion_timestamp.is_none()
}
