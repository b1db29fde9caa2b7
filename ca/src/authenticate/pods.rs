//! Which pods there are, by a watch: without it nothing that the API server said
//! of a pod would be true for longer than it took to say.
//!
//! Of each pod its UID is kept, which is all that the cache of reviews asks for;
//! where node proxies are served, also where it runs and as whom.
//!
//! A watch that is stalled looks like one to which nothing happens. So the API
//! server ends ours each ten seconds, and what was not heard of for a little longer,
//! by a new watch, an event or a bookmark, counts for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_runtime::drain;
use futures::{Stream, TryStreamExt as _};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::time::Instant;

use super::Pod;

/// After how many seconds the API server ends a watch, so that it is begun again.
const WATCH_SECONDS: u32 = 10;
/// How long a watch may be silent: it ends, and another begins.
const LONGEST_SILENCE: Duration = Duration::from_secs(15);

/// What is known of the cluster's pods.
#[derive(Debug, Default)]
pub struct Pods {
    state: Mutex<State>,
    heard: Heard,
}

/// When the API server was heard of last.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Option<Instant>>>);

impl Heard {
    fn now(&self) {
        *self.lock() = Some(Instant::now());
    }

    fn is_recent(&self) -> bool {
        self.lock()
            .is_some_and(|heard| heard.elapsed() < LONGEST_SILENCE)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client all of whose good answers are noted, and every piece of them: the
    /// watcher tells of events and keeps bookmarks, and new watches, to itself.
    fn through(&self, client: Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let heard = self.clone();
        let noting = tower::service_fn(move |request| {
            let (client, heard) = (client.clone(), heard.clone());
            async move {
                let answer = client.send(request).await?;
                if answer.status().is_success() {
                    heard.now();
                }
                Ok::<_, kube::Error>(answer.map(|body| {
                    body.map_frame(move |frame| {
                        heard.now();
                        frame
                    })
                }))
            }
        });
        Client::new(noting, namespace)
    }
}

#[derive(Debug, Default)]
struct State {
    /// Whether everything that happened is known, as far as can be told.
    in_sync: bool,
    by_uid: BTreeMap<String, Known>,
    /// What a list that has not ended yet has named.
    listed: BTreeSet<String>,
}

/// A pod, as far as anybody asks.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Known {
    /// Where it runs and as whom; nothing where nobody asks for that.
    place: Option<Place>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Place {
    name: String,
    namespace: String,
    service_account: String,
    node: String,
    /// Neither has it ended nor is it being deleted.
    lives: bool,
}

impl Pods {
    /// Whether a pod is there, is not being deleted, and nothing of that can have
    /// changed unnoticed.
    pub fn is_alive(&self, uid: &str) -> bool {
        self.state().by_uid.contains_key(uid) && self.is_current()
    }

    /// The node of a pod that is exactly this one and runs as this account.
    pub fn node_of(&self, pod: &Pod, namespace: &str, service_account: &str) -> Option<String> {
        if !self.is_current() {
            return None;
        }
        let state = self.state();
        let place = state.by_uid.get(&pod.uid)?.place.as_ref()?;
        let is_it = place.lives
            && place.name == pod.name
            && place.namespace == namespace
            && place.service_account == service_account;
        is_it.then(|| place.node.clone())
    }

    /// Whether a pod of this account runs on a node.
    pub fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        if !self.is_current() {
            return false;
        }
        let state = self.state();
        let mut places = state.by_uid.values().filter_map(|pod| pod.place.as_ref());
        places.any(|place| {
            place.lives
                && place.node == node
                && place.namespace == namespace
                && place.service_account == service_account
        })
    }

    /// Whether all that happened is known, as far as can be told.
    fn is_current(&self) -> bool {
        self.state().in_sync && self.heard.is_recent()
    }

    /// Watches the names of pods, until the drain starts.
    pub async fn follow_names(&self, client: Client, drain: drain::Watch) {
        let pods = Api::<PartialObjectMeta<KubePod>>::all(self.heard.through(client));
        let events = watcher(pods, watcher::Config::default().timeout(WATCH_SECONDS));
        let events = events.map_ok(|event| map(event, name_of));
        self.follow(events.default_backoff(), drain).await;
    }

    /// Watches pods with where they run, until the drain starts.
    pub async fn follow_places(&self, client: Client, drain: drain::Watch) {
        let pods = Api::<KubePod>::all(self.heard.through(client));
        let events = watcher(pods, watcher::Config::default().timeout(WATCH_SECONDS));
        let events = events.map_ok(|event| map(event, place_of));
        self.follow(events.default_backoff(), drain).await;
    }

    async fn follow(
        &self,
        events: impl Stream<Item = Result<Event<Seen>, watcher::Error>>,
        mut drain: drain::Watch,
    ) {
        let mut events = pin!(events);
        loop {
            let event = tokio::select! {
                event = events.try_next() => event,
                () = drain.started() => return,
            };
            match event {
                Ok(Some(event)) => self.apply(event),
                Ok(None) => return,
                Err(error) => {
                    self.state().in_sync = false;
                    tracing::warn!(
                        %error,
                        "watching pods was interrupted; until it goes on every token is reviewed, and no node proxy is served"
                    );
                }
            }
        }
    }

    fn apply(&self, event: Event<Seen>) {
        let mut state = self.state();
        match event {
            Event::Init => {
                state.in_sync = false;
                state.listed.clear();
            }
            Event::InitApply(seen) => {
                state.listed.insert(seen.uid.clone());
                state.note(seen);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut state.listed);
                state.by_uid.retain(|uid, _| listed.contains(uid));
                state.in_sync = true;
            }
            Event::Apply(seen) => state.note(seen),
            Event::Delete(seen) => {
                state.by_uid.remove(&seen.uid);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, seen: Seen) {
        if seen.is_being_deleted {
            self.by_uid.remove(&seen.uid);
        } else {
            self.by_uid.insert(seen.uid, Known { place: seen.place });
        }
    }
}

/// A pod, as a watch shows it.
#[derive(Clone, Debug)]
struct Seen {
    uid: String,
    is_being_deleted: bool,
    place: Option<Place>,
}

fn map<T>(event: Event<T>, change: impl Fn(T) -> Seen) -> Event<Seen> {
    match event {
        Event::Init => Event::Init,
        Event::InitApply(pod) => Event::InitApply(change(pod)),
        Event::InitDone => Event::InitDone,
        Event::Apply(pod) => Event::Apply(change(pod)),
        Event::Delete(pod) => Event::Delete(change(pod)),
    }
}

fn name_of(pod: PartialObjectMeta<KubePod>) -> Seen {
    Seen {
        is_being_deleted: pod.metadata.deletion_timestamp.is_some(),
        uid: pod.metadata.uid.unwrap_or_default(),
        place: None,
    }
}

fn place_of(pod: KubePod) -> Seen {
    let spec = pod.spec.unwrap_or_default();
    let phase = pod.status.and_then(|status| status.phase);
    let has_ended = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
    Seen {
        is_being_deleted: pod.metadata.deletion_timestamp.is_some(),
        uid: pod.metadata.uid.unwrap_or_default(),
        place: Some(Place {
            name: pod.metadata.name.unwrap_or_default(),
            namespace: pod.metadata.namespace.unwrap_or_default(),
            service_account: spec.service_account_name.unwrap_or_default(),
            lives: !has_ended && spec.node_name.is_some(),
            node: spec.node_name.unwrap_or_default(),
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, account: &str, node: &str, phase: &str) -> Seen {
        let pod = json!({
            "metadata": {"name": format!("{account}-0"), "namespace": "shop", "uid": uid},
            "spec": {"serviceAccountName": account, "nodeName": node, "containers": []},
            "status": {"phase": phase},
        });
        place_of(serde_json::from_value(pod).unwrap())
    }

    /// A node with a proxy and `cart`; on another `pay`; on the first a job that
    /// has ended.
    pub(crate) fn cluster() -> Pods {
        let pods = Pods::default();
        pods.apply(Event::Init);
        for seen in [
            pod("p", "ztunnel", "one", "Running"),
            pod("c", "cart", "one", "Running"),
            pod("o", "pay", "two", "Running"),
            pod("j", "job", "one", "Succeeded"),
        ] {
            pods.apply(Event::InitApply(seen));
        }
        pods.apply(Event::InitDone);
        pods.heard.now();
        pods
    }

    /// One of them is deleted.
    pub(crate) fn delete(pods: &Pods, uid: &str) {
        pods.apply(Event::Delete(pod(uid, "any", "one", "Running")));
    }

    #[test]
    fn a_pod_is_known_until_it_is_being_deleted() {
        let pods = cluster();
        assert!(pods.is_alive("c") && !pods.is_alive("x"));
        let mut leaving = pod("c", "cart", "one", "Running");
        leaving.is_being_deleted = true;
        pods.apply(Event::Apply(leaving));
        assert!(!pods.is_alive("c"));
        pods.apply(Event::Delete(pod("o", "pay", "two", "Running")));
        assert!(!pods.is_alive("o"));
    }

    #[test]
    fn while_the_watch_is_interrupted_no_pod_is_known() {
        let pods = cluster();
        pods.apply(Event::Init);
        assert!(!pods.is_alive("c"));
        pods.apply(Event::InitApply(pod("c", "cart", "one", "Running")));
        assert!(!pods.is_alive("c"));
        pods.apply(Event::InitDone);
        assert!(pods.is_alive("c"));
        assert!(!pods.is_alive("o"), "it was deleted meanwhile");
    }

    /// An API server that lists one pod, and whose watches end after ten seconds
    /// as asked, or, once it is stalled, never.
    #[derive(Clone, Default)]
    struct ApiServer {
        is_stalled: Arc<std::sync::atomic::AtomicBool>,
    }

    impl ApiServer {
        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: hyper::Request<_>| {
                let (server, query) = (server.clone(), request.uri().query().map(str::to_owned));
                async move { Ok::<_, std::convert::Infallible>(server.answer(query).await) }
            });
            Client::new(service, "default")
        }

        async fn answer(
            &self,
            query: Option<String>,
        ) -> hyper::Response<http_body_util::Full<hyper::body::Bytes>> {
            let query = query.unwrap_or_default();
            if self.is_stalled.load(std::sync::atomic::Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if query.contains("watch=true") {
                assert!(query.contains("timeoutSeconds=10"), "{query}");
                tokio::time::sleep(Duration::from_secs(10)).await;
                return hyper::Response::new(Default::default());
            }
            let list = json!({
                "apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"},
                "items": [{"metadata": {"name": "cart-0", "namespace": "shop", "uid": "c"}}],
            });
            hyper::Response::new(list.to_string().into_bytes().into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_stalled_watch_said_last_counts_for_nothing() {
        let (server, pods) = (ApiServer::default(), Arc::new(Pods::default()));
        let (_trigger, drain) = drain::channel();
        let (followed, client) = (Arc::clone(&pods), server.client());
        tokio::spawn(async move { followed.follow_names(client, drain).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(pods.is_alive("c"));
        // Nothing happens, and it is heard that nothing happens.
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_secs(7)).await;
            assert!(pods.is_alive("c"));
        }
        let stalled = &server.is_stalled;
        stalled.store(true, std::sync::atomic::Ordering::SeqCst);
        tokio::time::sleep(LONGEST_SILENCE + Duration::from_secs(10)).await;
        assert!(!pods.is_alive("c"));
        let cart = Pod {
            name: "cart-0".into(),
            uid: "c".into(),
        };
        assert_eq!(pods.node_of(&cart, "shop", "cart"), None);
    }
}
