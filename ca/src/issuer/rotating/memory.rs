//! What this process remembers of its looks at the store.

use std::time::{Duration, SystemTime};

use bulkhead_runtime::clock::Clock;
use tokio::time::Instant;

use super::current::Current;
use crate::issuer::status::{
    AuthorityKind, AuthorityStatus, Phase, Status, TrustBundleStatus, UpstreamStatus,
};
use crate::rotation::Waiting;
use crate::rotation::holders::HolderReport;
use crate::rotation::slots::{Authority, Slot, Slots};
use crate::store::Version;

/// By how much the wall clock and the monotonic one may drift apart between two
/// looks; more is a leap, after which nothing is to be relied on for a while.
const LEAP: Duration = Duration::from_secs(60);

pub(super) struct Memory {
    version: Option<Version>,
    led: bool,
    /// Since when all is as it is.
    since: Instant,
    /// The last time that both clocks were read.
    read: (SystemTime, Instant),
    /// What was last waited for.
    waiting: Option<(Waiting, HolderReport)>,
}

impl Memory {
    pub(super) fn new(clock: &Clock) -> Self {
        let now = Instant::now();
        Self {
            version: None,
            led: false,
            since: now,
            read: (clock.now(), now),
            waiting: None,
        }
    }

    /// Notes what was found in the store, and says whether it is new.
    pub(super) fn saw(&mut self, version: &Version) -> bool {
        if self.version.as_ref() == Some(version) {
            return false;
        }
        self.version = Some(version.clone());
        self.since = Instant::now();
        true
    }

    /// For how long nothing has changed that a wait depends on.
    pub(super) fn settled_for(&mut self, clock: &Clock, leads: bool) -> Duration {
        let (wall, now) = (clock.now(), Instant::now());
        let (wall_before, before) = std::mem::replace(&mut self.read, (wall, now));
        let expected = wall_before + now.duration_since(before);
        let drift = wall
            .duration_since(expected)
            .unwrap_or_else(|error| error.duration());
        if drift > LEAP {
            tracing::warn!(
                seconds = drift.as_secs(),
                "the wall clock has leapt: steps of rotations wait until it has been steady for a while"
            );
        }
        if drift > LEAP || leads != self.led {
            self.led = leads;
            self.since = now;
        }
        now.duration_since(self.since)
    }

    /// What to tell people. Where nothing new was decided, the last decision
    /// stands.
    pub(super) fn status(
        &mut self,
        current: &Current,
        upstream: UpstreamStatus,
        waiting: Option<(Waiting, HolderReport)>,
    ) -> Status {
        if waiting.is_some() {
            self.waiting = waiting;
        }
        let slots = &current.slots;
        let active = slots.active_root().map(|root| root.authority.generation);
        let active = active.unwrap_or_default();
        let (phase, message, target, holders) = match &self.waiting {
            Some((waiting, report)) => (
                waiting.phase,
                waiting.message.clone(),
                waiting.target,
                report.clone(),
            ),
            None => (
                Phase::Settled,
                format!("root {active} signs"),
                active,
                HolderReport::default(),
            ),
        };
        Status {
            phase,
            message,
            root_generation: active,
            target_generation: target,
            trust_bundle: TrustBundleStatus {
                id: current.bundle.id(),
                sequence: current.bundle.sequence(),
                roots: current.bundle.roots().certificates().len(),
            },
            authorities: authorities(slots),
            upstream,
            holders,
        }
    }
}

fn authorities(slots: &Slots) -> Vec<AuthorityStatus> {
    let roots = newest_first(&slots.roots, AuthorityKind::Root);
    let intermediates = slots.intermediates.iter().rev().filter(|slot| !slot.own);
    let intermediates = intermediates.map(|slot| {
        status_of(
            AuthorityKind::Intermediate,
            &slot.authority,
            Some(slot.root),
        )
    });
    let token_keys = newest_first(&slots.token_keys, AuthorityKind::Jwt);
    roots.chain(intermediates).chain(token_keys).collect()
}

fn newest_first<S: Slot>(
    slots: &[S],
    kind: AuthorityKind,
) -> impl Iterator<Item = AuthorityStatus> {
    slots
        .iter()
        .rev()
        .map(move |slot| status_of(kind, slot.authority(), None))
}

fn status_of(kind: AuthorityKind, authority: &Authority, issuer: Option<u64>) -> AuthorityStatus {
    AuthorityStatus {
        kind,
        generation: authority.generation,
        state: authority.state,
        fingerprint: authority.fingerprint.clone(),
        serial: authority.serial.clone(),
        not_before: authority.not_before,
        not_after: authority.not_after,
        key_type: authority.key_type.clone(),
        issuer,
    }
}
