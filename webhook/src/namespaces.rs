//! What is known of the namespaces that pods are created in.
//!
//! ```text
//!  Kubernetes: watch (metadata only) ──▶ known ──▶ get()      no I/O, every review
//!              GET, bounded ───────────▶ read()               a namespace not seen yet
//!  fixed:      a file, or a caller ────▶ known ──▶ get(), read()
//! ```
//!
//! A pod's namespace may be younger than our watch's last event, and its labels
//! may be too: whoever labels a namespace and creates a pod at once is served by
//! an API server that knows the label already. So an unknown namespace is read
//! before the answer, and so is a known one that would leave a pod without its
//! sidecar; see `admission`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bulkhead_inject::Namespace;
use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::registration::Standing;

pub mod file;
mod watching;

pub(crate) use watching::watch_namespaces;

/// Reads at once. A flood of pods in new namespaces must not become a flood of
/// our own at the API server that sent them.
const MAX_READS: usize = 16;
/// How long each read keeps its place, at least: together some 160 a second.
/// Anybody who reaches our port can name namespaces, and each one that we do
/// not know costs the API server a call.
const READ_PACE: Duration = Duration::from_millis(100);
/// How long a pod waits for its namespace, queueing included. Below the API
/// server's patience with us, so that the answer still arrives.
const READ_DEADLINE: Duration = Duration::from_secs(2);
/// The whole of a manifest, in an annotation: large, and never asked for.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Where namespaces come from.
#[derive(Clone)]
pub enum NamespaceSource {
    /// These, and no others; one that is not listed has no labels.
    Fixed(Vec<Namespace>),
    /// The Kubernetes API.
    Cluster(Client),
}

/// The namespaces, as a review asks for them. Cheap to clone; all clones are
/// one.
#[derive(Clone)]
pub(crate) struct Namespaces {
    known: Arc<RwLock<HashMap<String, Arc<Namespace>>>>,
    standings: watch::Sender<Option<BTreeMap<String, Standing>>>,
    cluster: Option<Arc<Cluster>>,
}

struct Cluster {
    api: Api<PartialObjectMeta<core_v1::Namespace>>,
    reads: Arc<Semaphore>,
}

impl Namespaces {
    pub(crate) fn new(source: NamespaceSource) -> Self {
        let (standings, _) = watch::channel(None);
        let known = Arc::default();
        match source {
            NamespaceSource::Fixed(namespaces) => {
                let fixed = Self {
                    known,
                    standings,
                    cluster: None,
                };
                fixed.replace(
                    namespaces
                        .into_iter()
                        .map(|namespace| (namespace.name.clone(), Arc::new(namespace)))
                        .collect(),
                );
                fixed
            }
            NamespaceSource::Cluster(client) => Self {
                known,
                standings,
                cluster: Some(Arc::new(Cluster {
                    api: Api::all(client),
                    reads: Arc::new(Semaphore::new(MAX_READS)),
                })),
            },
        }
    }

    /// A namespace as we know it, without asking anybody.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Namespace>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned()
    }

    /// Whether `read` may know more than `get`.
    pub(crate) fn may_lag(&self) -> bool {
        self.cluster.is_some()
    }

    /// A namespace as the API server has it now.
    pub(crate) async fn read(&self, name: &str) -> Result<Arc<Namespace>, NamespaceError> {
        let Some(cluster) = &self.cluster else {
            return Ok(self.get(name).unwrap_or_else(|| {
                Arc::new(Namespace {
                    name: name.to_owned(),
                    ..Namespace::default()
                })
            }));
        };
        let read = async {
            let place = Arc::new(Arc::clone(&cluster.reads).acquire_owned().await);
            let paced = Arc::clone(&place);
            tokio::spawn(async move {
                sleep(READ_PACE).await;
                drop(paced);
            });
            let read = cluster.api.get_opt(name).await;
            drop(place);
            read
        };
        match timeout(READ_DEADLINE, read).await {
            Ok(Ok(Some(found))) => Ok(Arc::new(namespace(found.metadata))),
            Ok(Ok(None)) => Err(NamespaceError::Missing(name.to_owned())),
            Ok(Err(error)) => Err(NamespaceError::Read(name.to_owned(), Box::new(error))),
            Err(_) => Err(NamespaceError::Deadline(name.to_owned())),
        }
    }

    /// The namespaces whose annotations decide, which no selector sees; nothing
    /// before all namespaces are known, and kept up to date while
    /// `watch_namespaces` runs.
    pub(crate) fn standings(&self) -> watch::Receiver<Option<BTreeMap<String, Standing>>> {
        self.standings.subscribe()
    }
}

/// Whether a text can be a namespace's name: an RFC 1123 label. It becomes a
/// part of a URL that we ask for with our own rights, so nothing else may.
pub(crate) fn is_name(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(is_alphanumeric)
        && bytes.last().is_some_and(is_alphanumeric)
        && bytes
            .iter()
            .all(|byte| is_alphanumeric(byte) || *byte == b'-')
}

fn namespace(metadata: ObjectMeta) -> Namespace {
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    Namespace {
        name: metadata.name.unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        annotations,
    }
}

/// Why a pod's namespace is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    #[error(
        "namespace {0:?} is not there yet, as far as Bulkhead's webhook can see; create the pod \
         again in a moment"
    )]
    Missing(String),
    #[error(
        "Bulkhead's webhook could not read namespace {0:?}, so it cannot tell whether the pod \
         gets a sidecar: {1}; check that its ServiceAccount may get namespaces, and create the \
         pod again"
    )]
    Read(String, #[source] Box<kube::Error>),
    #[error(
        "Bulkhead's webhook could not read namespace {0:?} within {READ_DEADLINE:?}, so it cannot \
         tell whether the pod gets a sidecar; the API server is slow: create the pod again"
    )]
    Deadline(String),
}
