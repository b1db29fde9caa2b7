//! A real Kubernetes node with Bulkhead's chart installed in it, for tests.
//!
//! ```text
//!  scripts/cluster (containerd, kubelet, API server, …), in a network namespace
//!      ├── the pods of a test ◀── apps: Deployments, Jobs, one-off requests
//!      └── the test process, in the same namespace: it can dial every pod and
//!          Service, and is the client without a sidecar
//! ```
//!
//! `./scripts/test cluster` starts the node, installs the chart, and runs the
//! tests there. Tests keep apart by namespaces. Those that change what belongs
//! to everybody, such as ending every pod of Bulkhead, ask to be [`alone`].
//!
//! - [`apps`]: what runs in the pods, and what it has counted.
//! - [`capture`]: what they send to each other.
//! - [`commands`]: what people type: kubectl, helm, bulkhead.
//! - [`exec`]: programs run inside a pod.
//! - [`processes`]: theirs, as the node sees them, to be ended or stopped.

pub mod apps;
pub mod capture;
pub mod commands;
pub mod exec;
pub mod processes;

use std::fmt::Debug;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::config::KubeConfigOptions;
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::config;
use crate::namespace::Namespace;

/// Bulkhead's own namespace.
pub const SYSTEM_NAMESPACE: &str = "bulkhead-system";
/// How long anything may take that happens by itself: a pod that starts, a
/// rollout. The machine may be building something beside the tests, and a kubelet
/// that failed to mount something waits for up to two minutes before it tries again.
pub const SOON: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

/// Held by a test as long as it runs.
static TESTS: RwLock<()> = RwLock::const_new(());

/// The cluster, as long as a test uses it.
pub struct Cluster {
    client: Client,
    namespaces: Mutex<Vec<String>>,
    _turn: Turn,
}

impl Drop for Cluster {
    /// What a failed test left is kept: somebody may want to look at it.
    fn drop(&mut self) {
        let namespaces = std::mem::take(self.namespaces.get_mut().expect("nobody panics with it"));
        if std::thread::panicking() || namespaces.is_empty() {
            return;
        }
        let deleted = Command::new("kubectl")
            .args(["delete", "namespace", "--wait=false"])
            .args(namespaces)
            .stdout(Stdio::null())
            .status();
        assert!(deleted.expect("scripts/cluster has kubectl").success());
    }
}

/// Kept until the test ends.
enum Turn {
    BesideOthers {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

/// The cluster for a test that changes nothing outside its own namespaces.
///
/// # Panics
/// Where there is no cluster, with what to do.
pub async fn beside_others() -> Cluster {
    let guard = TESTS.read().await;
    Cluster::new(Turn::BesideOthers { _guard: guard }).await
}

/// The cluster for a test that changes what belongs to everybody, and puts it
/// back. No other test runs meanwhile.
///
/// # Panics
/// Where there is no cluster, with what to do.
pub async fn alone() -> Cluster {
    let guard = TESTS.write().await;
    Cluster::new(Turn::Alone { _guard: guard }).await
}

impl Cluster {
    async fn new(turn: Turn) -> Self {
        let kubeconfig = config::cluster_kubeconfig().expect("run by ./scripts/test cluster");
        let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)
            .expect("scripts/cluster writes a kubeconfig");
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .expect("the kubeconfig of scripts/cluster is whole");
        // A test that passes by trying again hides what its users would see.
        config.default_retry = false;
        let client = Client::try_from(config).expect("the kubeconfig's certificates are good");
        Self {
            client,
            namespaces: Mutex::default(),
            _turn: turn,
        }
    }

    /// Acts as the administrator.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A namespace whose pods are injected, with the level of Pod Security that
    /// the init container needs.
    pub async fn meshed_namespace(&self) -> Namespace {
        self.meshed_namespace_with(&[]).await
    }

    /// The same, with annotations, which are the defaults of its pods.
    pub async fn meshed_namespace_with(&self, annotations: &[(&str, &str)]) -> Namespace {
        self.namespace(&[("bulkhead.io/inject", "enabled")], annotations)
            .await
    }

    /// A namespace that nobody labelled.
    pub async fn plain_namespace(&self) -> Namespace {
        self.namespace(&[], &[]).await
    }

    /// A namespace with these labels and annotations, which goes when the test
    /// has passed: a node has room for so many pods only. A name is used once,
    /// also where the tests are run again on the same cluster.
    pub async fn namespace(
        &self,
        labels: &[(&str, &str)],
        annotations: &[(&str, &str)],
    ) -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        let namespace = Namespace::create_named(&self.client, &name, labels, annotations).await;
        let mut namespaces = self.namespaces.lock().expect("nobody panics with it");
        namespaces.push(name);
        namespace
    }

    /// Bulkhead's own namespace.
    pub fn system(&self) -> Namespace {
        Namespace::existing(&self.client, SYSTEM_NAMESPACE)
    }

    /// Applies an object, as `kubectl apply` would, of whatever kind.
    ///
    /// # Panics
    /// Where the API server refuses it.
    pub async fn apply(&self, object: serde_json::Value) -> kube::api::DynamicObject {
        self.try_apply(object)
            .await
            .expect("the API server takes the object")
    }

    /// The same, for objects that are to be refused.
    pub async fn try_apply(
        &self,
        object: serde_json::Value,
    ) -> kube::Result<kube::api::DynamicObject> {
        let object: kube::api::DynamicObject =
            serde_json::from_value(object).expect("the test wrote an object");
        let types = object.types.clone().expect("the object says its kind");
        let kind = kube::core::GroupVersionKind::try_from(&types).expect("its kind is whole");
        let (resource, capabilities) =
            kube::discovery::oneshot::pinned_kind(&self.client, &kind).await?;
        let api: Api<kube::api::DynamicObject> = match &object.metadata.namespace {
            Some(namespace) if capabilities.scope == kube::discovery::Scope::Namespaced => {
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
            _ => Api::all_with(self.client.clone(), &resource),
        };
        let name = object.metadata.name.clone().expect("the object has a name");
        let parameters = PatchParams::apply("bulkhead-tests").force();
        api.patch(&name, &parameters, &Patch::Apply(&object)).await
    }
}

/// Waits until an object is as it should be.
///
/// # Panics
/// Where it does not come to that, with the object as it is.
pub async fn becomes<K>(api: &Api<K>, name: &str, what: &str, condition: impl Condition<K>)
where
    K: Clone + Debug + Send + DeserializeOwned + Resource + 'static,
{
    let waited = timeout(SOON, await_condition(api.clone(), name, condition)).await;
    if let Ok(Ok(_)) = waited {
        return;
    }
    let object = api.get_opt(name).await;
    panic!("{name} did not become {what}: {object:#?}");
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// Where there is none in time, with what was waited for.
pub async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(SOON, what, ask).await
}

/// The same, of what takes longer than [`SOON`].
///
/// # Panics
/// Where there is none in time, with what was waited for.
pub async fn within<T>(
    patience: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    let mut polls = interval(POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        polls.tick().await;
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not happen that {what}");
    }
}

/// Whether every container of a pod is ready, its sidecars too.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
