//! The authorities of a trust domain without their keys: which there are, and
//! where in its life each is. This is what a rotation is decided by, and what
//! the store keeps as `state.json`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_pki::jwk::Jwk;
use serde::{Deserialize, Serialize};

use crate::issuer::status::AuthorityState as State;

/// How many of the authorities that are gone people are still shown.
const REMEMBERED: usize = 3;

/// All authorities of a trust domain.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Slots {
    /// Grows with every change of what workloads are told to trust.
    pub sequence: u64,
    /// The rotation that nobody ordered, until somebody orders something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub automatic: Option<Automatic>,
    /// What signed above this CA last, as [`crate::upstream::Upstream::origin`]
    /// names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// In the order in which they were made.
    pub roots: Vec<Root>,
    pub intermediates: Vec<Intermediate>,
    pub token_keys: Vec<TokenKey>,
}

/// A root that the CA changes to by itself, and the order that stood then: a
/// later order is worth more.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Automatic {
    pub generation: u64,
    pub ordered: Option<u64>,
}

/// What every authority has.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Authority {
    pub generation: u64,
    pub state: State,
    /// In lower-case hexadecimal digits: of the certificate, or of the public
    /// key where there is no certificate.
    pub fingerprint: String,
    /// The serial number; a token key has its key ID here.
    pub serial: String,
    pub key_type: String,
    /// When this CA made or got it.
    #[serde(with = "unix_seconds")]
    pub made: SystemTime,
    #[serde(with = "unix_seconds")]
    pub not_before: SystemTime,
    #[serde(with = "unix_seconds")]
    pub not_after: SystemTime,
    /// When it stopped signing, if it ever signed and does not now.
    #[serde(
        with = "optional_unix_seconds",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub stopped: Option<SystemTime>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Root {
    #[serde(flatten)]
    pub authority: Authority,
    /// Whether its key is in the store; an upstream's never is.
    pub has_key: bool,
    /// Whether the upstream said, when it last answered, that this is a root to
    /// trust.
    #[serde(default)]
    pub listed: bool,
    /// The longest that any leaf under it was ever good for, whatever settings say
    /// by now; none where nothing signed below it yet, or an older version wrote this.
    #[serde(
        with = "optional_seconds",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub leaf_life: Option<Duration>,
}

impl Root {
    /// Notes that leaves under it may be good for this long.
    pub fn allow_leaf_life(&mut self, life: Duration) {
        self.leaf_life = self.leaf_life.max(Some(life));
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Intermediate {
    #[serde(flatten)]
    pub authority: Authority,
    /// The generation of the root above it.
    pub root: u64,
    /// Whether it signs nothing: it is this server's own certificate, where an
    /// upstream signs each leaf. What signs it signs all others.
    #[serde(default)]
    pub own: bool,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TokenKey {
    #[serde(flatten)]
    pub authority: Authority,
    /// The public half, which verifiers need when the private one is gone.
    pub public: Jwk,
}

impl TokenKey {
    /// Whether there is a private half: it goes when the key stops signing.
    pub fn has_private_key(&self) -> bool {
        self.authority.is_trusted() && self.authority.stopped.is_none()
    }
}

/// Whatever has an [`Authority`] in it.
pub trait Slot {
    fn authority(&self) -> &Authority;
    fn authority_mut(&mut self) -> &mut Authority;
}

macro_rules! slot {
    ($($kind:ty),*) => {$(
        impl Slot for $kind {
            fn authority(&self) -> &Authority {
                &self.authority
            }

            fn authority_mut(&mut self) -> &mut Authority {
                &mut self.authority
            }
        }
    )*};
}

slot!(Root, Intermediate, TokenKey);

impl Authority {
    pub fn is(&self, state: State) -> bool {
        self.state == state
    }

    /// Whether it is there for verifiers: it signs, will sign or has signed.
    pub fn is_trusted(&self) -> bool {
        matches!(self.state, State::Published | State::Active)
    }

    pub fn is_gone(&self) -> bool {
        self.state == State::Retired
    }

    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// Whether `part` (0 to 1) of its life is over.
    pub fn has_lived(&self, part: f64, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.made);
        now >= self.made + life.unwrap_or_default().mul_f64(part)
    }

    /// How long it is good for, from when it was made.
    pub fn life(&self) -> Duration {
        let life = self.not_after.duration_since(self.made);
        life.unwrap_or_default()
    }

    /// Whether anything was ever signed with it.
    pub fn has_signed(&self) -> bool {
        self.state == State::Active || self.stopped.is_some()
    }
}

impl Slots {
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The root that signs.
    pub fn active_root(&self) -> Option<&Root> {
        active(&self.roots)
    }

    /// How long a leaf may be good for now, where that is known.
    pub fn leaf_life(&self) -> Option<Duration> {
        self.active_root()?.leaf_life
    }

    /// The longest that a leaf under any root may still be good for.
    pub fn longest_leaf_life(&self) -> Option<Duration> {
        let live = self.roots.iter().filter(|root| !root.authority.is_gone());
        live.filter_map(|root| root.leaf_life).max()
    }

    /// The intermediate that signs.
    pub fn active_intermediate(&self) -> Option<&Intermediate> {
        active(&self.intermediates)
    }

    /// The key that signs tokens.
    pub fn active_token_key(&self) -> Option<&TokenKey> {
        active(&self.token_keys)
    }

    pub fn root(&self, generation: u64) -> Option<&Root> {
        find(&self.roots, generation)
    }

    /// The roots of the trust bundle: first the one that signs.
    pub fn trusted_roots(&self) -> impl Iterator<Item = &Root> {
        let others = self
            .roots
            .iter()
            .filter(|root| root.authority.is(State::Published));
        self.active_root().into_iter().chain(others)
    }

    /// The number of the next root. No number is ever used twice.
    pub fn next_root(&self) -> u64 {
        next(&self.roots)
    }

    pub fn next_intermediate(&self) -> u64 {
        next(&self.intermediates)
    }

    pub fn next_token_key(&self) -> u64 {
        next(&self.token_keys)
    }

    /// Whether `next` can be what these became: the same authorities have the
    /// same certificates, and nothing goes back. Where not, somebody put another
    /// CA into the store.
    pub fn can_become(&self, next: &Self) -> bool {
        same(&self.roots, &next.roots)
            && same(&self.intermediates, &next.intermediates)
            && next.sequence >= self.sequence
    }

    /// Notes that what workloads are told to trust has changed. The clock is
    /// only a lower bound, so that numbers grow even where a store was lost.
    pub(crate) fn bundle_changed(&mut self, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.sequence = since.as_secs().max(self.sequence.saturating_add(1));
    }

    /// Publishes a root.
    pub fn publish_root(&mut self, generation: u64, now: SystemTime) {
        set_state(&mut self.roots, generation, State::Published);
        self.bundle_changed(now);
    }

    /// Lets a root sign, by an intermediate below it. What signed until now
    /// stays published, so that this can be undone.
    pub fn activate_root(&mut self, root: u64, intermediate: u64, now: SystemTime) {
        activate(&mut self.roots, root, now);
        activate(&mut self.intermediates, intermediate, now);
        // The order of the bundle says which root signs.
        self.bundle_changed(now);
    }

    /// Lets leaves under the root that signs be good for this long.
    pub fn allow_leaf_life(&mut self, life: Duration) {
        let signs = |root: &&mut Root| root.authority.is(State::Active);
        if let Some(root) = self.roots.iter_mut().find(signs) {
            root.allow_leaf_life(life);
        }
    }

    /// Lets another intermediate of the same root sign. Leaves carry the
    /// certificate of the old one with them, so that nobody needs it here.
    pub fn activate_intermediate(&mut self, generation: u64, now: SystemTime) {
        let before = active(&self.intermediates).map(|old| old.authority.generation);
        activate(&mut self.intermediates, generation, now);
        if let Some(before) = before {
            self.retire_intermediate(before);
        }
    }

    pub fn activate_token_key(&mut self, generation: u64, now: SystemTime) {
        activate(&mut self.token_keys, generation, now);
    }

    /// Takes a root out of the bundle, and everything below it.
    pub fn retire_root(&mut self, generation: u64, now: SystemTime) {
        let was_trusted =
            find(&self.roots, generation).is_some_and(|root| root.authority.is_trusted());
        set_state(&mut self.roots, generation, State::Retired);
        if let Some(root) = self
            .roots
            .iter_mut()
            .find(|root| root.authority.generation == generation)
        {
            root.has_key = false;
        }
        for intermediate in &mut self.intermediates {
            if intermediate.root == generation {
                intermediate.authority.state = State::Retired;
            }
        }
        if was_trusted {
            self.bundle_changed(now);
        }
        forget(&mut self.roots);
        forget(&mut self.intermediates);
    }

    pub fn retire_intermediate(&mut self, generation: u64) {
        set_state(&mut self.intermediates, generation, State::Retired);
        forget(&mut self.intermediates);
    }

    pub fn retire_token_key(&mut self, generation: u64, now: SystemTime) {
        set_state(&mut self.token_keys, generation, State::Retired);
        self.bundle_changed(now);
        forget(&mut self.token_keys);
    }
}

fn active<S: Slot>(slots: &[S]) -> Option<&S> {
    slots.iter().find(|slot| slot.authority().is(State::Active))
}

fn find<S: Slot>(slots: &[S], generation: u64) -> Option<&S> {
    slots
        .iter()
        .find(|slot| slot.authority().generation == generation)
}

/// The newest is never forgotten, whatever became of it.
fn next<S: Slot>(slots: &[S]) -> u64 {
    let newest = slots.iter().map(|slot| slot.authority().generation).max();
    newest.unwrap_or(0) + 1
}

fn same<S: Slot>(one: &[S], other: &[S]) -> bool {
    one.iter().map(Slot::authority).all(|authority| {
        find(other, authority.generation)
            .is_none_or(|other| other.authority().fingerprint == authority.fingerprint)
    })
}

fn set_state<S: Slot>(slots: &mut [S], generation: u64, state: State) {
    for slot in slots {
        if slot.authority().generation == generation {
            slot.authority_mut().state = state;
        }
    }
}

fn activate<S: Slot>(slots: &mut [S], generation: u64, now: SystemTime) {
    for slot in slots {
        let authority = slot.authority_mut();
        if authority.generation == generation {
            authority.state = State::Active;
            authority.stopped = None;
        } else if authority.is(State::Active) {
            authority.state = State::Published;
            authority.stopped = Some(now);
        }
    }
}

/// Drops the oldest of those that are gone.
fn forget<S: Slot>(slots: &mut Vec<S>) {
    let newest = next(slots) - 1;
    let gone = slots.iter().filter(|slot| slot.authority().is_gone());
    let mut surplus = gone.count().saturating_sub(REMEMBERED);
    slots.retain(|slot| {
        let authority = slot.authority();
        let drop = surplus > 0 && authority.is_gone() && authority.generation != newest;
        surplus -= usize::from(drop);
        !drop
    });
}

mod unix_seconds {
    use super::{Duration, SystemTime, UNIX_EPOCH};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        serializer.serialize_u64(since.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let seconds = u64::deserialize(deserializer)?;
        UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .ok_or_else(|| serde::de::Error::custom("a time that is too far away"))
    }
}

mod optional_seconds {
    use super::Duration;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        // A part of a second is as good as a whole one.
        let seconds = duration.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0));
        seconds.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_secs))
    }
}

mod optional_unix_seconds {
    use super::{SystemTime, unix_seconds};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize, Serialize)]
    struct Seconds(#[serde(with = "unix_seconds")] SystemTime);

    pub(super) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(Seconds).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<Seconds>::deserialize(deserializer)?.map(|Seconds(time)| time))
    }
}
