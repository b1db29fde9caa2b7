//! What is known of each namespace, and which one is next.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bulkhead_runtime::backoff::{Backoff, jitter};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt as _;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use tokio::time::{Duration, Instant};

use super::contents::Verdict;

/// Between two writes in one namespace, failed or not. It grows while they
/// follow each other: somebody's GitOps tool may want another ConfigMap.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So long without a write, and the next ones follow each other quickly again.
const PEACE: Duration = Duration::from_secs(300);

/// The namespaces, and what is stored in them.
#[derive(Default)]
pub(super) struct Places {
    known: HashMap<String, Place>,
    /// The ConfigMaps, of namespaces that are not known too: two watches come
    /// in any order.
    stored: HashMap<String, ConfigMap>,
    /// To be looked at now.
    due: BTreeSet<String>,
    /// To be looked at then.
    later: BTreeSet<(Instant, String)>,
    right: BTreeSet<String>,
    /// Where what is stored says that it is newer than what this replica knows.
    newer: BTreeMap<String, Newer>,
    lists: Lists,
}

/// What a watch has listed so far; nothing is written before both have been
/// listed once, because a ConfigMap that is right would be.
#[derive(Default)]
struct Lists {
    namespaces: BTreeSet<String>,
    config_maps: HashMap<String, ConfigMap>,
    are_namespaces_complete: bool,
    are_config_maps_complete: bool,
}

/// A bundle that may be of after what this replica knows, or somebody's lie.
struct Newer {
    resource_version: Option<String>,
    /// When it was noticed.
    since: Instant,
}

struct Place {
    is_being_written: bool,
    may_write: Option<Instant>,
    last_write: Option<Instant>,
    backoff: Backoff,
}

impl Places {
    /// Takes in what the watch of namespaces says.
    pub(super) fn namespace(
        &mut self,
        event: Event<PartialObjectMeta<Namespace>>,
        is_served: fn(&ObjectMeta) -> bool,
    ) {
        match event {
            Event::Init => self.lists.namespaces.clear(),
            Event::InitApply(object) => {
                if is_served(&object.metadata) {
                    self.lists.namespaces.insert(object.name_any());
                }
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.lists.namespaces);
                let gone = self.known.keys().filter(|name| !listed.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.forget(&name);
                }
                for name in listed {
                    self.learn(name);
                }
                self.lists.are_namespaces_complete = true;
            }
            Event::Apply(object) if is_served(&object.metadata) => self.learn(object.name_any()),
            Event::Apply(object) | Event::Delete(object) => self.forget(&object.name_any()),
        }
    }

    /// Takes in what the watch of ConfigMaps says.
    pub(super) fn config_map(&mut self, event: Event<ConfigMap>) {
        let namespace = |object: &ConfigMap| object.namespace().unwrap_or_default();
        match event {
            Event::Init => self.lists.config_maps.clear(),
            Event::InitApply(object) => {
                self.lists.config_maps.insert(namespace(&object), object);
            }
            Event::InitDone => {
                self.stored = std::mem::take(&mut self.lists.config_maps);
                self.lists.are_config_maps_complete = true;
                self.all_due();
            }
            Event::Apply(object) => {
                self.due.insert(namespace(&object));
                self.stored.insert(namespace(&object), object);
            }
            Event::Delete(object) => {
                self.due.insert(namespace(&object));
                self.stored.remove(&namespace(&object));
            }
        }
    }

    /// Looks at every namespace again.
    pub(super) fn all_due(&mut self) {
        self.due.extend(self.known.keys().cloned());
    }

    /// Looks again wherever a newer bundle was found than this replica knew.
    pub(super) fn newer_due(&mut self) {
        self.due.extend(self.newer.keys().cloned());
    }

    /// The version of what is stored in a namespace, if there is something.
    pub(super) fn version(&self, name: &str) -> Option<String> {
        self.stored.get(name)?.resource_version()
    }

    /// The next namespace to write to, which is then being written to. `judge`
    /// tells whether what is stored is as it should be; what is newer is written
    /// to only where the CA's own store was `seen` after that was noticed, and
    /// knows nothing of it.
    pub(super) fn next(
        &mut self,
        now: Instant,
        seen: Instant,
        judge: impl Fn(&ConfigMap) -> Verdict,
    ) -> Option<String> {
        if !self.lists.are_namespaces_complete || !self.lists.are_config_maps_complete {
            return None;
        }
        while let Some((at, _)) = self.later.first()
            && *at <= now
        {
            let (_, name) = self
                .later
                .pop_first()
                .expect("the first was just looked at");
            self.due.insert(name);
        }
        while let Some(name) = self.due.pop_first() {
            // What is being written is looked at again when that is done.
            if self
                .known
                .get(&name)
                .is_none_or(|place| place.is_being_written)
            {
                continue;
            }
            let verdict = self.stored.get(&name).map_or(Verdict::Wrong, &judge);
            if verdict != Verdict::Newer {
                self.newer.remove(&name);
            }
            if verdict == Verdict::Right
                || verdict == Verdict::Newer && !self.is_lie(&name, now, seen)
            {
                self.right.insert(name);
                continue;
            }
            self.right.remove(&name);
            let place = self.known.get_mut(&name).expect("it was just looked at");
            match place.may_write {
                Some(at) if at > now => {
                    self.later.insert((at, name));
                }
                Some(_) | None => {
                    place.is_being_written = true;
                    return Some(name);
                }
            }
        }
        None
    }

    /// Whether a bundle that says that it is newer was not there yet when the CA's
    /// store, which is written first, was seen last.
    fn is_lie(&mut self, name: &str, now: Instant, seen: Instant) -> bool {
        let resource_version = self.version(name);
        let known = self.newer.get(name);
        match known.filter(|newer| newer.resource_version == resource_version) {
            Some(newer) => seen > newer.since,
            None => {
                let newer = Newer {
                    resource_version,
                    since: now,
                };
                self.newer.insert(name.to_owned(), newer);
                false
            }
        }
    }

    /// Notes that a write has ended, and what is stored since, if it is known.
    pub(super) fn finished(&mut self, name: &str, stored: Option<ConfigMap>, now: Instant) {
        let Some(place) = self.known.get_mut(name) else {
            return;
        };
        place.is_being_written = false;
        if place.last_write.is_some_and(|last| now - last > PEACE) {
            place.backoff.reset();
        }
        place.last_write = Some(now);
        place.may_write = Some(now + place.backoff.after_failure(jitter()));
        if let Some(stored) = stored {
            self.stored.insert(name.to_owned(), stored);
        }
        self.due.insert(name.to_owned());
    }

    /// When the next namespace is to be looked at, if any waits.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// In how many namespaces the bundle was right when last looked at.
    pub(super) fn right(&self) -> i64 {
        i64::try_from(self.right.len()).unwrap_or(i64::MAX)
    }

    fn learn(&mut self, name: String) {
        self.due.insert(name.clone());
        self.known.entry(name).or_insert_with(|| Place {
            is_being_written: false,
            may_write: None,
            last_write: None,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        });
    }

    fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.right.remove(name);
        self.newer.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::PartialObjectMetaExt as _;

    fn named(name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        }
    }

    fn config_map(namespace: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                ..named("bulkhead-trust-bundle")
            },
            ..ConfigMap::default()
        }
    }

    /// Everything listed: these namespaces, and a ConfigMap in those.
    fn listed(namespaces: &[&str], config_maps: &[&str]) -> Places {
        let mut places = Places::default();
        places.namespace(Event::Init, |_| true);
        for name in namespaces {
            let object = named(name).into_request_partial::<Namespace>();
            places.namespace(Event::InitApply(object), |_| true);
        }
        places.namespace(Event::InitDone, |_| true);
        assert_eq!(
            places.next(Instant::now(), Instant::now(), |_| Verdict::Right),
            None,
            "half is known"
        );
        places.config_map(Event::Init);
        for namespace in config_maps {
            places.config_map(Event::InitApply(config_map(namespace)));
        }
        places.config_map(Event::InitDone);
        places
    }

    #[test]
    fn only_namespaces_without_the_right_bundle_are_written_to() {
        let now = Instant::now();
        let mut places = listed(&["a", "b", "c"], &["b", "of-no-namespace"]);
        assert_eq!(
            places.next(now, now, |_| Verdict::Right).as_deref(),
            Some("a")
        );
        assert_eq!(
            places.next(now, now, |_| Verdict::Right).as_deref(),
            Some("c")
        );
        assert_eq!(places.next(now, now, |_| Verdict::Right), None);
        assert_eq!(places.right(), 1);
        places.finished("a", Some(config_map("a")), now);
        assert_eq!(places.next(now, now, |_| Verdict::Right), None);
        assert_eq!(places.right(), 2);
    }

    #[test]
    fn another_root_reaches_every_namespace() {
        let now = Instant::now();
        let mut places = listed(&["a", "b"], &["a", "b"]);
        assert_eq!(places.next(now, now, |_| Verdict::Right), None);
        places.all_due();
        assert_eq!(
            places.next(now, now, |_| Verdict::Wrong).as_deref(),
            Some("a")
        );
        assert_eq!(
            places.next(now, now, |_| Verdict::Wrong).as_deref(),
            Some("b")
        );
    }

    #[test]
    fn a_namespace_is_written_to_once_at_a_time_and_not_again_at_once() {
        let now = Instant::now();
        let mut places = listed(&["a"], &[]);
        assert_eq!(
            places.next(now, now, |_| Verdict::Right).as_deref(),
            Some("a")
        );
        places.all_due();
        assert_eq!(
            places.next(now, now, |_| Verdict::Right),
            None,
            "it is being written"
        );
        places.finished("a", None, now);
        assert_eq!(
            places.next(now, now, |_| Verdict::Right),
            None,
            "it failed just now"
        );
        let at = places.wake().expect("it is tried again");
        assert!(at > now && at <= now + LONGEST_PAUSE);
        assert_eq!(
            places.next(at, at, |_| Verdict::Right).as_deref(),
            Some("a")
        );
    }

    #[test]
    fn a_namespace_that_is_gone_is_left_alone() {
        let now = Instant::now();
        let mut places = listed(&["a"], &[]);
        let gone = named("a").into_request_partial::<Namespace>();
        places.namespace(Event::Delete(gone), |_| true);
        assert_eq!(places.next(now, now, |_| Verdict::Right), None);
    }

    #[test]
    fn a_bundle_that_says_it_is_newer_stays_until_the_store_is_seen_to_know_nothing_of_it() {
        let (now, later) = (Instant::now(), Instant::now() + LONGEST_PAUSE);
        let mut places = listed(&["a"], &["a"]);
        let newer = |_: &ConfigMap| Verdict::Newer;
        assert_eq!(places.next(now, now, newer), None);
        assert_eq!(places.right(), 1, "nobody lacks anything there");
        places.newer_due();
        assert_eq!(places.next(later, now, newer), None, "a look of before");
        // Another one is noticed anew, and compared with looks of after that.
        let mut another = config_map("a");
        another.metadata.resource_version = Some("2".to_owned());
        places.config_map(Event::Apply(another));
        assert_eq!(places.next(later, later, newer), None);
        places.newer_due();
        let after = later + FIRST_PAUSE;
        assert_eq!(places.next(after, after, newer).as_deref(), Some("a"));
    }
}
