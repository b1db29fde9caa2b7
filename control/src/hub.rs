//! Where what is known meets who wants to know.
//!
//! ```text
//!  changes ──▶ Index ──▶ Affected ──▶ answers that are watched, made anew
//!                                        │ another than before?
//!                                        ▼
//!  stream ◀── take() ◀── what it has not been told, by name
//! ```
//!
//! An answer is made once, however many proxies watch it. For each stream there
//! are names only: a proxy that reads slowly is told the latest when it reads,
//! and nothing is kept for it meanwhile.
//!
//! All of it is one state behind one lock, which is held for as long as a change
//! takes to be noted and never while anything is waited for.

mod answer;
mod stream;
mod take;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bulkhead_core::discovery::{ResourceKind, ResourceName};
use bulkhead_crds::emergency::Emergency as _;
use bulkhead_runtime::clock::Clock;
use tokio::sync::Notify;

use crate::audit::Audit;
use crate::emergency::stage::Stage;
use crate::emergency::switches::{Switch, Switches};
use crate::index::{Affected, Index, Settings};
use crate::metrics::Metrics;
use crate::object::{Change, Key, Kind, Object};
use answer::Answer;
use stream::Stream;

pub use stream::{Refused, Session, SubscribeError};

/// The meeting place. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    metrics: Metrics,
    clock: Clock,
    audit: Audit,
    /// A bypass changed, or a proxy took one.
    bypass_news: Notify,
}

struct State {
    system_namespace: String,
    index: Index,
    switches: Switches,
    /// Kinds of which all objects have been listed once.
    synced: BTreeSet<Kind>,
    /// Nothing is answered before.
    is_complete: bool,
    watched: HashMap<ResourceName, Watched>,
    by_service: HashMap<Key, BTreeSet<ResourceName>>,
    by_address: HashMap<IpAddr, BTreeSet<ResourceName>>,
    by_pod: HashMap<Key, BTreeSet<ResourceName>>,
    streams: HashMap<u64, Stream>,
    last_stream: u64,
    audit: Audit,
}

/// An answer that somebody wants to hear of.
struct Watched {
    answer: Answer,
    streams: BTreeSet<u64>,
}

/// How a bypass stands, for its object's status.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BypassCount {
    /// Connected proxies in its scope.
    pub proxies: u32,
    /// Those that confirmed that they forward.
    pub forwarding: u32,
}

impl Hub {
    pub fn new(
        settings: Settings,
        system_namespace: String,
        metrics: Metrics,
        clock: Clock,
    ) -> Self {
        let audit = Audit::default();
        let state = State {
            audit: audit.clone(),
            system_namespace,
            index: Index::new(settings),
            switches: Switches::default(),
            synced: BTreeSet::new(),
            is_complete: false,
            watched: HashMap::new(),
            by_service: HashMap::new(),
            by_address: HashMap::new(),
            by_pod: HashMap::new(),
            streams: HashMap::new(),
            last_stream: 0,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                metrics,
                clock,
                audit,
                bypass_news: Notify::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let locked = self.shared.state.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of what is refused.
    pub(crate) fn audit(&self) -> &Audit {
        &self.shared.audit
    }

    /// Takes note of a change, and wakes whoever is to hear of it.
    pub fn apply(&self, change: Change) {
        let heard = Instant::now();
        let mut state = self.state();
        if let Change::Replaced(kind, _) = &change {
            state.synced.insert(*kind);
        }
        if is_bypass(&change) {
            state.apply_bypass(change, &self.shared.clock);
            drop(state);
            self.shared.bypass_news.notify_one();
            return;
        }
        let affected = state.index.apply(change);
        state.refresh(&affected, heard);
    }

    /// Reads what is known.
    pub fn read<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.state().index)
    }

    /// How many objects of a kind are known.
    pub fn count(&self, kind: Kind) -> usize {
        let state = self.state();
        match kind {
            Kind::Bypass => state.switches.iter().count(),
            kind => state.index.count(kind),
        }
    }

    /// Which kinds have been listed.
    pub fn has_listed(&self, kinds: &[Kind]) -> bool {
        let state = self.state();
        kinds.iter().all(|kind| state.synced.contains(kind))
    }

    /// Everything that there is to know is known: answers may be given.
    pub fn complete(&self) {
        let mut state = self.state();
        if !state.is_complete {
            state.is_complete = true;
            let everything = Affected {
                everything: true,
                ..Affected::default()
            };
            state.refresh(&everything, Instant::now());
            for stream in state.streams.values() {
                stream.wake();
            }
        }
    }

    /// Brings bypasses forward; returns when to call again if nothing happens
    /// before, and how each of them stands.
    pub fn advance_bypasses(
        &self,
    ) -> (
        Option<tokio::time::Instant>,
        Vec<(Key, Switch, BypassCount)>,
    ) {
        let heard = Instant::now();
        let (now, wall) = (tokio::time::Instant::now(), self.shared.clock.now());
        let mut guard = self.state();
        let state = &mut *guard;
        let (streams, index) = (&state.streams, &state.index);
        let system = &state.system_namespace;
        let (has_changed, next) = state.switches.advance(now, wall, |switch| {
            let phase = switch.stage.phase();
            in_scope(switch, system, streams, index).all(|stream| stream.has_taken(phase))
        });
        if has_changed {
            state.refresh_kind(ResourceKind::Bypass, heard);
        }
        let standing = state.switches.iter().map(|(key, switch)| {
            let mut count = BypassCount::default();
            let scope = in_scope(
                switch,
                &state.system_namespace,
                &state.streams,
                &state.index,
            );
            for stream in scope {
                count.proxies += 1;
                let forwards =
                    switch.stage == Stage::Forwarding && stream.has_taken(switch.stage.phase());
                count.forwarding += u32::from(forwards);
            }
            (key.clone(), switch.clone(), count)
        });
        (next, standing.collect())
    }

    /// Waits until there is something to do for bypasses.
    pub async fn bypass_news(&self) {
        self.shared.bypass_news.notified().await;
    }
}

/// The connected proxies that a bypass means.
fn in_scope<'a>(
    switch: &'a Switch,
    system_namespace: &'a str,
    streams: &'a HashMap<u64, Stream>,
    index: &'a Index,
) -> impl Iterator<Item = &'a Stream> {
    streams.values().filter(move |stream| {
        stream.follows_bypass()
            && index.pod(stream.pod()).is_some_and(|pod| {
                let namespace = &stream.pod().namespace;
                switch
                    .object
                    .covers(system_namespace, namespace, &pod.labels)
            })
    })
}

fn is_bypass(change: &Change) -> bool {
    matches!(
        change,
        Change::Applied(_, Object::Bypass(_))
            | Change::Deleted(Kind::Bypass, _)
            | Change::Replaced(Kind::Bypass, _)
    )
}

impl State {
    fn apply_bypass(&mut self, change: Change, clock: &Clock) {
        let (now, wall) = (tokio::time::Instant::now(), clock.now());
        let at_start = !self.is_complete;
        match change {
            Change::Applied(key, Object::Bypass(object)) => {
                self.switches.set(key, *object, at_start, now, wall);
            }
            Change::Deleted(_, key) => self.switches.remove(&key),
            Change::Replaced(_, listed) => {
                let known: Vec<_> = self.switches.iter().map(|(key, _)| key.clone()).collect();
                for key in known.iter().filter(|key| !listed.has(key)) {
                    self.switches.remove(key);
                }
                for (key, object) in listed.objects {
                    if let Object::Bypass(object) = object {
                        self.switches.set(key, *object, at_start, now, wall);
                    }
                }
            }
            Change::Applied(..) => {}
        }
        // What a pod is told follows from the stages: those of new bypasses.
        self.refresh_kind(ResourceKind::Bypass, Instant::now());
    }

    /// Makes the answers anew that may be others now.
    fn refresh(&mut self, affected: &Affected, heard: Instant) {
        let names: BTreeSet<ResourceName> = if affected.everything {
            self.watched.keys().cloned().collect()
        } else {
            let services = affected
                .services
                .iter()
                .filter_map(|key| self.by_service.get(key));
            let addresses = affected
                .addresses
                .iter()
                .filter_map(|ip| self.by_address.get(ip));
            let pods = affected.pods.iter().filter_map(|key| self.by_pod.get(key));
            services
                .chain(addresses)
                .chain(pods)
                .flatten()
                .cloned()
                .collect()
        };
        for name in names {
            self.refresh_name(&name, heard);
        }
    }

    fn refresh_kind(&mut self, kind: ResourceKind, heard: Instant) {
        let of_kind = self.watched.keys().filter(|name| name.kind() == kind);
        for name in of_kind.cloned().collect::<Vec<_>>() {
            self.refresh_name(&name, heard);
        }
    }

    fn refresh_name(&mut self, name: &ResourceName, heard: Instant) {
        let answer = self.answer(name);
        let Some(watched) = self.watched.get_mut(name) else {
            return;
        };
        if watched.answer == answer {
            return;
        }
        watched.answer = answer;
        for id in &watched.streams {
            if let Some(stream) = self.streams.get_mut(id) {
                stream.mark(name, heard);
            }
        }
    }
}
