//! A proxy's stream: what it wants to know, and what it has been told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bulkhead_core::discovery::{BypassPhase, PodName, ResourceKind, ResourceName};
use bulkhead_core::held::Held;
use bulkhead_core::identity::SpiffeId;
use bulkhead_proto::xds::Response;
use tokio::sync::Notify;

use super::{Hub, State, Watched};
use crate::object::{Key, Name, Pod};

/// The most names that one stream may watch: ten times what a busy gateway
/// dials.
pub(super) const MAX_SUBSCRIPTIONS: usize = 10_000;
/// The most streams of one pod. It needs one, and two for a moment when it
/// comes back.
const MAX_STREAMS_PER_POD: usize = 8;

/// The streams that one state knows.
pub(super) struct Stream {
    pod: Key,
    /// The ServiceAccount that the proxy proved.
    pub(super) service_account: String,
    wake: Arc<Notify>,
    /// What it has been told of each name that it watches.
    pub(super) told: BTreeMap<ResourceName, Told>,
    /// Names of which it is to be told.
    pub(super) due: BTreeMap<ResourceKind, BTreeSet<ResourceName>>,
    /// Names that it may not ask for, or that are none.
    pub(super) refused: BTreeMap<ResourceKind, BTreeSet<String>>,
    /// When the first change was heard of that it has not been told.
    pub(super) due_since: Option<Instant>,
    /// The bypass that it was told last, under which nonce, and took last.
    pub(super) bypass_told: Option<(String, BypassPhase)>,
    pub(super) bypass_taken: Option<BypassPhase>,
    /// What it holds of the mesh's trust, as it says.
    held: Option<Held>,
}

/// What a stream has been told of a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Told {
    /// Nothing yet.
    Nothing,
    /// That there is no such thing.
    Absent,
    /// This version.
    Version(u64),
}

impl Stream {
    pub(super) fn pod(&self) -> &Key {
        &self.pod
    }

    pub(super) fn follows_bypass(&self) -> bool {
        self.told
            .keys()
            .any(|name| name.kind() == ResourceKind::Bypass)
    }

    /// Whether the proxy has confirmed this phase, as the last it was told.
    pub(super) fn has_taken(&self, phase: BypassPhase) -> bool {
        self.bypass_taken == Some(phase)
            && self
                .bypass_told
                .as_ref()
                .is_none_or(|(_, told)| *told == phase)
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// There is news of a name.
    pub(super) fn mark(&mut self, name: &ResourceName, heard: Instant) {
        self.due
            .entry(name.kind())
            .or_default()
            .insert(name.clone());
        self.due_since.get_or_insert(heard);
        self.wake();
    }
}

/// A stream's end of the hub; dropping it closes the stream.
pub struct Session {
    hub: Hub,
    id: u64,
    pod: PodName,
    wake: Arc<Notify>,
}

/// A name that a proxy may not ask for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    pub name: String,
    pub reason: &'static str,
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SubscribeError {
    #[error("more than {MAX_SUBSCRIPTIONS} names on one stream")]
    TooManyNames,
    #[error("more than {MAX_STREAMS_PER_POD} streams of one pod")]
    TooManyStreams,
    #[error("the node is a pod of another namespace than the caller's identity")]
    ForeignNode,
}

impl Hub {
    /// Opens a stream of a proxy that stands beside this pod, as it says, and
    /// that has proved this identity.
    pub fn open(&self, pod: PodName, caller: &SpiffeId) -> Result<Session, SubscribeError> {
        let (namespace, service_account) = caller.workload_name().unwrap_or_default();
        if namespace != pod.namespace {
            return Err(SubscribeError::ForeignNode);
        }
        let key = Key::new(&pod.namespace, &pod.name);
        let wake = Arc::new(Notify::new());
        let mut state = self.state();
        let of_pod = state.streams.values().filter(|stream| stream.pod == key);
        if of_pod.count() >= MAX_STREAMS_PER_POD {
            return Err(SubscribeError::TooManyStreams);
        }
        state.last_stream += 1;
        let id = state.last_stream;
        let stream = Stream {
            pod: key,
            service_account: service_account.to_owned(),
            wake: Arc::clone(&wake),
            told: BTreeMap::new(),
            due: BTreeMap::new(),
            refused: BTreeMap::new(),
            due_since: None,
            bypass_told: None,
            bypass_taken: None,
            held: None,
        };
        state.streams.insert(id, stream);
        drop(state);
        self.shared.metrics.proxies.inc();
        Ok(Session {
            hub: self.clone(),
            id,
            pod,
            wake,
        })
    }
}

impl Hub {
    /// The pods whose proxies are connected, by UID, and what each of them says
    /// that it holds of the mesh's trust. A pod is in it once for each stream: what
    /// another one of the same identity says in its name takes nothing back.
    pub fn holders(&self) -> Vec<(Name, Option<Held>)> {
        let state = self.state();
        let said = state.streams.values().filter_map(|stream| {
            let pod = state.index.pod(&stream.pod);
            let own = |pod: &&Pod| *pod.service_account == *stream.service_account;
            let pod = pod.filter(own)?;
            Some((Name::clone(&pod.uid), stream.held.clone()))
        });
        said.collect()
    }
}

impl Session {
    /// The pod that the proxy stands beside, as it says.
    pub fn pod(&self) -> &PodName {
        &self.pod
    }

    /// Waits until there may be something to tell.
    pub async fn news(&self) {
        self.wake.notified().await;
    }

    /// Watches names. Those that the proxy may not ask for are returned; it is
    /// told that they do not exist, which is all that it learns of them.
    /// `known` are the versions that it has already.
    pub fn subscribe(
        &self,
        kind: ResourceKind,
        names: &[String],
        known: &BTreeMap<String, String>,
    ) -> Result<Vec<Refused>, SubscribeError> {
        let heard = Instant::now();
        let mut refused = Vec::new();
        let mut state = self.hub.state();
        for text in names {
            let name = match ResourceName::parse(kind, text) {
                Ok(name) if self.is_own(&name) => name,
                parsed => {
                    let reason = if parsed.is_ok() {
                        "not_its_own"
                    } else {
                        "no_name"
                    };
                    state.refuse(self.id, kind, text)?;
                    refused.push(Refused {
                        name: text.clone(),
                        reason,
                    });
                    continue;
                }
            };
            state.watch(self.id, name, known.get(text).map(String::as_str), heard)?;
        }
        drop(state);
        if kind == ResourceKind::Bypass {
            self.hub.shared.bypass_news.notify_one();
        }
        Ok(refused)
    }

    /// Whether a proxy of this pod may ask for it.
    fn is_own(&self, name: &ResourceName) -> bool {
        match name {
            ResourceName::Inbound(pod) | ResourceName::Bypass(pod) => *pod == self.pod,
            ResourceName::Destination(_) | ResourceName::Endpoints(_) => true,
        }
    }

    pub fn unsubscribe(&self, kind: ResourceKind, names: &[String]) {
        let mut state = self.hub.state();
        for text in names {
            if let Ok(name) = ResourceName::parse(kind, text) {
                state.forget(self.id, &name);
            }
        }
    }

    /// The proxy says what it holds of the mesh's trust.
    pub fn holds(&self, held: Held) {
        if let Some(stream) = self.hub.state().streams.get_mut(&self.id) {
            stream.held = Some(held);
        }
    }

    /// The proxy took an answer, or refused it.
    pub fn replied(&self, nonce: &str, taken: bool) {
        let mut state = self.hub.state();
        let Some(stream) = state.streams.get_mut(&self.id) else {
            return;
        };
        let is_bypass = stream
            .bypass_told
            .as_ref()
            .is_some_and(|(of, _)| of == nonce);
        if is_bypass {
            if taken {
                stream.bypass_taken = stream.bypass_told.as_ref().map(|(_, phase)| *phase);
            }
            drop(state);
            self.hub.shared.bypass_news.notify_one();
        }
    }

    /// What the proxy has not been told, as much of it as fits one answer.
    pub fn take(&self, nonce: u64) -> Option<Response> {
        let (response, due_since) = self.hub.state().take(self.id, nonce)?;
        if let Some(since) = due_since {
            self.hub.shared.metrics.pushed(since.elapsed());
        }
        Some(response)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        if let Some(stream) = state.streams.remove(&self.id) {
            for name in stream.told.keys() {
                state.unwatch(self.id, name);
            }
        }
        drop(state);
        self.hub.shared.metrics.proxies.dec();
        self.hub.shared.bypass_news.notify_one();
    }
}

impl State {
    fn refuse(&mut self, id: u64, kind: ResourceKind, name: &str) -> Result<(), SubscribeError> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        let count: usize = stream.refused.values().map(BTreeSet::len).sum();
        if count >= MAX_SUBSCRIPTIONS {
            return Err(SubscribeError::TooManyNames);
        }
        stream
            .refused
            .entry(kind)
            .or_default()
            .insert(name.to_owned());
        stream.wake();
        Ok(())
    }

    fn watch(
        &mut self,
        id: u64,
        name: ResourceName,
        known: Option<&str>,
        heard: Instant,
    ) -> Result<(), SubscribeError> {
        let Some(stream) = self.streams.get(&id) else {
            return Ok(());
        };
        if stream.told.len() >= MAX_SUBSCRIPTIONS && !stream.told.contains_key(&name) {
            return Err(SubscribeError::TooManyNames);
        }
        if !self.watched.contains_key(&name) {
            let watched = Watched {
                answer: self.answer(&name),
                streams: BTreeSet::new(),
            };
            self.watched.insert(name.clone(), watched);
            self.dependents(&name).insert(name.clone());
        }
        let Some(watched) = self.watched.get_mut(&name) else {
            return Ok(());
        };
        watched.streams.insert(id);
        let told = match known.map(|known| u64::from_str_radix(known, 16)) {
            Some(Ok(version)) => Told::Version(version),
            _ => Told::Nothing,
        };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.told.insert(name.clone(), told);
            stream.mark(&name, heard);
        }
        Ok(())
    }

    fn forget(&mut self, id: u64, name: &ResourceName) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if let Some(due) = stream.due.get_mut(&name.kind()) {
            due.remove(name);
        }
        if stream.told.remove(name).is_some() {
            self.unwatch(id, name);
        }
    }

    fn unwatch(&mut self, id: u64, name: &ResourceName) {
        let Some(watched) = self.watched.get_mut(name) else {
            return;
        };
        watched.streams.remove(&id);
        if watched.streams.is_empty() {
            self.watched.remove(name);
            let others = self.dependents(name);
            others.remove(name);
            if others.is_empty() {
                self.forget_dependents(name);
            }
        }
    }

    /// The names that depend on what this name depends on.
    fn dependents(&mut self, name: &ResourceName) -> &mut BTreeSet<ResourceName> {
        match name {
            ResourceName::Inbound(pod) | ResourceName::Bypass(pod) => {
                let key = Key::new(&pod.namespace, &pod.name);
                self.by_pod.entry(key).or_default()
            }
            ResourceName::Destination(address) => self.by_address.entry(address.ip()).or_default(),
            ResourceName::Endpoints(name) => {
                let key = Key::new(&name.namespace, &name.service);
                self.by_service.entry(key).or_default()
            }
        }
    }

    fn forget_dependents(&mut self, name: &ResourceName) {
        match name {
            ResourceName::Inbound(pod) | ResourceName::Bypass(pod) => {
                self.by_pod.remove(&Key::new(&pod.namespace, &pod.name));
            }
            ResourceName::Destination(address) => {
                self.by_address.remove(&address.ip());
            }
            ResourceName::Endpoints(name) => {
                self.by_service
                    .remove(&Key::new(&name.namespace, &name.service));
            }
        }
    }
}
