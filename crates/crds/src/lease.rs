//! One replica does what needs doing once: the one that holds the Lease.
//!
//! It is a matter of economy, and never all that keeps two from doing the same: a
//! replica that was stopped for a while believes for a moment that it still holds
//! the lease. What must not be done twice is guarded where it is written, by the
//! resource version.
//!
//! A lease is over when nobody has renewed it for its duration by the clock of
//! whoever looks, from when they first saw it so. What its fields say of the time
//! is another machine's clock and decides nothing.

use std::time::{Duration, SystemTime};

use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::owner::{Owner, Standing};

/// How long it holds without being renewed.
const HOLDS: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(4);
/// For how long who stands back leaves it to others, each of whom tries in this
/// time twice ...
const LEAVES: Duration = Duration::from_secs(10);
/// ... and for how long it holds it then, where nobody else came.
const KEEPS: Duration = Duration::from_secs(60);

/// Whether this replica holds the lease. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Held(watch::Receiver<bool>);

impl Held {
    pub fn is_held(&self) -> bool {
        *self.0.borrow()
    }

    /// The same, for whoever waits for a change.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }

    /// Waits until it is held or lost; for ever, when nobody tries any more.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Who tries to hold which lease.
pub struct Settings {
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// What tells this replica from others: the pod's name.
    pub instance: String,
    /// What owns the Lease when this replica makes it.
    pub owner: Owner,
    pub clock: Clock,
}

/// Tries to hold the lease.
pub struct Holder {
    api: Api<Lease>,
    settings: Settings,
    held: watch::Sender<bool>,
    seen: Seen,
    stands_back: Option<watch::Receiver<bool>>,
    turns: Turns,
}

impl Holder {
    pub fn new(client: Client, settings: Settings) -> (Self, Held) {
        let (held, watched) = watch::channel(false);
        let holder = Self {
            api: Api::namespaced(client, &settings.namespace),
            settings,
            held,
            seen: Seen::default(),
            stands_back: None,
            turns: Turns::default(),
        };
        (holder, Held(watched))
    }

    /// Leaves it to any other replica that wants it, while this is so: that one
    /// would do better. Where there is none, this one holds it but for moments.
    pub fn standing_back(mut self, stands_back: watch::Receiver<bool>) -> Self {
        self.stands_back = Some(stands_back);
        self
    }

    /// Holds it, or waits for it, until the drain starts; then it is given up, so
    /// that another replica need not wait until it is over.
    pub async fn run(mut self, mut drain: drain::Watch) {
        let mut tries = interval(RENEW_EVERY);
        tries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tries.tick() => {}
                () = drain.started() => break,
            }
            let stands_back = self.stands_back.as_ref();
            let stands_back = stands_back.is_some_and(|stands_back| *stands_back.borrow());
            if self.turns.is_others(stands_back, Instant::now()) {
                self.let_go().await;
                continue;
            }
            let held = match timeout(DEADLINE, self.renew()).await {
                Ok(Ok(held)) => held,
                // It may be another's by now.
                Ok(Err(error)) => {
                    self.failed(&error);
                    false
                }
                Err(_) => {
                    self.failed(&"the API server did not answer in time");
                    false
                }
            };
            self.set(held);
        }
        self.let_go().await;
    }

    async fn let_go(&self) {
        if !*self.held.borrow() {
            return;
        }
        self.set(false);
        match timeout(DEADLINE, self.release()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => self.failed(&error),
        }
    }

    fn set(&self, held: bool) {
        let has_changed = self.held.send_if_modified(|before| {
            let has_changed = *before != held;
            *before = held;
            has_changed
        });
        if has_changed {
            let lease = &self.settings.name;
            tracing::info!(held, lease, "the lease has changed hands");
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        let lease = &self.settings.name;
        tracing::warn!(%error, lease, "renewing the lease failed");
    }

    async fn renew(&mut self) -> kube::Result<bool> {
        let parameters = PostParams::default();
        let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else {
            let Standing::Owned(owners) = self.settings.owner.standing().await? else {
                return Ok(false);
            };
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.settings.name.clone()),
                    owner_references: Some(owners).filter(|owners| !owners.is_empty()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.taken_from(&LeaseSpec::default())),
            };
            return is_ours(self.api.create(&parameters, &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let is_over = self.seen.is_over(&spec, Instant::now());
        if !(self.is_mine(&spec) || is_over) {
            return Ok(false);
        }
        lease.spec = Some(self.taken_from(&spec));
        // The resource version in it sees to it that one replica wins.
        is_ours(
            self.api
                .replace(&self.settings.name, &parameters, &lease)
                .await,
        )
    }

    /// Says that nobody holds it.
    async fn release(&self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else {
            return Ok(());
        };
        let spec = lease.spec.take().unwrap_or_default();
        if !self.is_mine(&spec) {
            return Ok(());
        }
        lease.spec = Some(LeaseSpec {
            holder_identity: None,
            ..spec
        });
        let parameters = PostParams::default();
        is_ours(
            self.api
                .replace(&self.settings.name, &parameters, &lease)
                .await,
        )?;
        Ok(())
    }

    fn is_mine(&self, spec: &LeaseSpec) -> bool {
        spec.holder_identity.as_ref() == Some(&self.settings.instance)
    }

    /// The lease as ours, from now.
    fn taken_from(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = micro_time(self.settings.clock.now());
        let transitions = before.lease_transitions.unwrap_or_default();
        let (acquire_time, lease_transitions) = match self.is_mine(before) {
            true => (before.acquire_time.clone(), transitions),
            false => (now.clone(), transitions.saturating_add(1)),
        };
        LeaseSpec {
            acquire_time,
            holder_identity: Some(self.settings.instance.clone()),
            lease_duration_seconds: Some(HOLDS.as_secs().try_into().unwrap_or(i32::MAX)),
            lease_transitions: Some(lease_transitions),
            renew_time: now,
            ..LeaseSpec::default()
        }
    }
}

/// When who stands back last began to leave the lease to others.
#[derive(Default)]
struct Turns(Option<Instant>);

impl Turns {
    /// Whether it is left to others at `now`.
    fn is_others(&mut self, stands_back: bool, now: Instant) -> bool {
        if !stands_back {
            self.0 = None;
            return false;
        }
        let is_last = |since: &Instant| now.duration_since(*since) < LEAVES + KEEPS;
        let since = *self.0.get_or_insert(now);
        let since = Some(since).filter(is_last).unwrap_or(now);
        self.0 = Some(since);
        now.duration_since(since) < LEAVES
    }
}

/// The lease as it was first seen so, and when.
#[derive(Default)]
struct Seen {
    lease: Option<(LeaseSpec, Instant)>,
}

impl Seen {
    /// Whether nobody holds it at `now`.
    fn is_over(&mut self, spec: &LeaseSpec, now: Instant) -> bool {
        if spec.holder_identity.as_ref().is_none_or(String::is_empty) {
            return true;
        }
        match &self.lease {
            Some((before, since)) if before == spec => now.duration_since(*since) > HOLDS,
            _ => {
                self.lease = Some((spec.clone(), now));
                false
            }
        }
    }
}

/// Whether a write made the lease ours; another replica may have been faster.
fn is_ours(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn micro_time(time: SystemTime) -> Option<MicroTime> {
    time.try_into().ok().map(MicroTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, renewed: u64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: micro_time(SystemTime::UNIX_EPOCH + Duration::from_secs(renewed)),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn who_stands_back_lets_others_try_and_holds_what_nobody_else_wants() {
        let mut turns = Turns::default();
        let begin = Instant::now();
        assert!(!turns.is_others(false, begin));
        let mut others = |second| turns.is_others(true, begin + Duration::from_secs(second));
        assert!(others(0), "at once");
        assert!(others(9));
        assert!(!others(10), "nobody came");
        assert!(!others(69));
        assert!(others(70), "somebody may have come");
        assert!(!others(80));
        assert!(!turns.is_others(false, begin));
    }

    #[test]
    fn another_machines_clock_ends_no_lease() {
        let mut seen = Seen::default();
        let now = Instant::now();
        let of_1970 = held_by("a", 0);
        assert!(!seen.is_over(&of_1970, now), "its clock may stand still");
        assert!(!seen.is_over(&of_1970, now + HOLDS));
        assert!(seen.is_over(&of_1970, now + HOLDS + Duration::from_millis(1)));
    }

    #[test]
    fn a_lease_that_is_renewed_is_not_over() {
        let mut seen = Seen::default();
        let now = Instant::now();
        for renewal in 0..10 {
            let at = now + RENEW_EVERY * renewal;
            assert!(!seen.is_over(&held_by("a", renewal.into()), at));
        }
    }

    #[test]
    fn a_lease_that_was_given_up_is_free_at_once() {
        let mut seen = Seen::default();
        let given_up = LeaseSpec {
            holder_identity: None,
            ..held_by("a", 0)
        };
        assert!(seen.is_over(&given_up, Instant::now()));
        assert!(seen.is_over(&held_by("", 0), Instant::now()));
    }
}
