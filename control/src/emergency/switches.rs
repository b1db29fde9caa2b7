//! The bypasses that there are, and what each pod is told.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bulkhead_core::discovery::{Bypass, BypassPhase};
use bulkhead_crds::emergency::{self, Emergency as _};
use tokio::time::Instant;

use super::stage::Stage;
use crate::object::Key;

/// The longest words of a switch that are passed on, in characters.
const MAX_WORDS: usize = 200;

/// All bypasses, with how far each has come.
#[derive(Debug, Default)]
pub struct Switches(BTreeMap<Key, Switch>);

/// One bypass.
#[derive(Clone, Debug)]
pub struct Switch {
    pub object: emergency::Bypass,
    pub stage: Stage,
    /// Its object is gone.
    is_gone: bool,
}

impl Switch {
    /// Whether it is still wanted.
    fn is_on(&self, now: SystemTime) -> bool {
        !self.is_gone && self.object.is_on(now)
    }
}

impl Switches {
    /// A bypass is there, and like this. `at_start` says that it was there
    /// before this process: how far it had come then, its status tells.
    pub fn set(
        &mut self,
        key: Key,
        object: emergency::Bypass,
        at_start: bool,
        now: Instant,
        wall: SystemTime,
    ) {
        if let Some(switch) = self.0.get_mut(&key) {
            switch.is_gone = false;
            switch.object = object;
            return;
        }
        if !object.is_on(wall) {
            return;
        }
        let status = object.status.as_ref().and_then(|status| status.phase);
        let stage = match status {
            Some(emergency::BypassPhase::Forwarding) if at_start => Stage::Forwarding,
            _ => Stage::Accepting(now),
        };
        self.0.insert(
            key,
            Switch {
                object,
                stage,
                is_gone: false,
            },
        );
    }

    /// A bypass is gone. It ends in stages.
    pub fn remove(&mut self, key: &Key) {
        if let Some(switch) = self.0.get_mut(key) {
            switch.is_gone = true;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Switch)> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Brings every bypass to the stage it is to be in. `taken` says of each
    /// whether all connected proxies in its scope have taken what they were told.
    /// Returns whether anything has changed, and when to look again.
    pub fn advance(
        &mut self,
        now: Instant,
        wall: SystemTime,
        taken: impl Fn(&Switch) -> bool,
    ) -> (bool, Option<Instant>) {
        let mut has_changed = false;
        let mut next: Option<Instant> = None;
        self.0.retain(|key, switch| {
            let is_on = switch.is_on(wall);
            let has_taken = taken(switch);
            let Some(stage) = switch.stage.advance(now, is_on, has_taken) else {
                has_changed = true;
                tracing::info!(bypass = %key, "a bypass has ended: its pods are in the mesh again");
                return false;
            };
            if stage != switch.stage {
                has_changed = true;
                switch.stage = stage;
                tracing::info!(bypass = %key, phase = stage.phase().as_str(), "a bypass goes on");
            }
            // A stage that was just entered has not been taken by anybody.
            let until = switch.object.spec.terms.until.as_ref();
            let expiry = until.filter(|_| is_on).map(|until| {
                let left = SystemTime::from(until.0).duration_since(wall);
                now + left.unwrap_or_default()
            });
            next = [next, stage.deadline(has_taken), expiry]
                .into_iter()
                .flatten()
                .min();
            true
        });
        (has_changed, next)
    }

    /// What a pod is told: the strongest of the bypasses that mean it.
    pub fn bypass(
        &self,
        system_namespace: &str,
        pod_namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Bypass {
        let meant = self.0.values().filter(|switch| {
            switch
                .object
                .covers(system_namespace, pod_namespace, labels)
        });
        // Of equals the first by name, so that what is told does not flicker.
        let strongest = meant.reduce(|best, switch| {
            if switch.stage.phase() > best.stage.phase() {
                switch
            } else {
                best
            }
        });
        let Some(switch) = strongest else {
            return Bypass {
                phase: BypassPhase::Off,
                ..Bypass::default()
            };
        };
        let terms = &switch.object.spec.terms;
        Bypass {
            phase: switch.stage.phase(),
            reason: short(&terms.reason),
            by: short(terms.by.as_deref().unwrap_or_default()),
            until: terms.until.as_ref().map(|until| SystemTime::from(until.0)),
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(MAX_WORDS).collect()
}
