//! Signs with what is stored, and keeps that in order.
//!
//! ```text
//!      every 10 s, on an order, on a change upstream or of the store
//!                             │
//!  store ── load ──▶ keyring ─┴─▶ take over: what signs, the bundle, the status
//!    ▲                  │
//!    └── write ◀── take a step ◀── rotation::next   (only who leads)
//! ```
//!
//! All replicas sign; roots' keys are in memory only while a step is taken. What
//! an upstream is to sign is asked for in [`upstream`] meanwhile. Where
//! the store cannot be read, or has something else in it than it should, what
//! signed before signs on: with the replica that leads for as long as it takes,
//! with others until the root may have left the trust bundle ([`freshness`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::bundle::{BundleId, TrustBundle};
use bulkhead_pki::jwt::JwtKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::current::Current;
use self::freshness::{Freshness, Moment};
use self::memory::Memory;
use self::upstream::{Above, Desk};
use super::status::{Status, UpstreamSigns, UpstreamStatus};
use super::{IssueError, Issued, Issuer};
use crate::config::Lifetimes;
use crate::keyring::{Keyring, Signs};
use crate::metrics::Metrics;
use crate::rotation::holders::{HolderReport, Holders};
use crate::rotation::orders::Orders;
use crate::rotation::{self, FOLLOW, Facts, Step, UpstreamFacts, Waiting};
use crate::store::deadline::InTime;
use crate::store::{Store, StoreError, Stored, Written};
use crate::vet::VettedCsr;

mod current;
mod freshness;
mod leaf;
mod memory;
pub mod upstream;

/// More steps than any rotation has between two waits.
const MAX_STEPS: usize = 32;

/// What the issuer is given.
pub struct Given {
    pub store: Box<dyn Store>,
    pub trust_domain: TrustDomain,
    pub lifetimes: Lifetimes,
    pub clock: Clock,
    pub metrics: Metrics,
    /// Who has the root, where it is not this CA.
    pub upstream: Option<Above>,
    /// How long nothing must have changed before a root signs or leaves.
    pub settle: Duration,
    pub steering: Steering,
    /// Holds while the store was seen lately enough to sign.
    pub ready: Condition,
}

/// Who says how a rotation goes.
pub struct Steering {
    pub holders: Arc<dyn Holders>,
    pub orders: Arc<dyn Orders>,
    /// Whether this replica takes the steps.
    pub leads: watch::Receiver<bool>,
}

/// An issuer whose roots and intermediates follow each other.
pub struct RotatingIssuer {
    given: Given,
    current: ArcSwap<Current>,
    freshness: Freshness,
    memory: Mutex<Memory>,
    desk: Desk,
    /// Wakes the loop that looks after the store.
    poke: Notify,
    /// One look at the store at a time.
    looking: tokio::sync::Mutex<()>,
    roots: watch::Sender<Arc<str>>,
    document: watch::Sender<Arc<str>>,
    status: watch::Sender<Arc<Status>>,
    seen: watch::Sender<Instant>,
    replaced: watch::Sender<bool>,
}

impl RotatingIssuer {
    /// Loads what is stored, or begins with a new root. Of replicas that find
    /// the store empty at the same instant, all end up with what one of them
    /// made.
    pub async fn open(mut given: Given) -> Result<Self, IssuerError> {
        given.store = Box::new(InTime(given.store));
        let began = Moment::now(&given.clock);
        let mut memory = Memory::new(&given.clock);
        let desk = Desk::new();
        let stored = settle(&given, &desk).await?;
        let keyring = Keyring::from_files(&given.trust_domain, &stored.files)?;
        let current = Current::new(&keyring)?;
        if let Some(life) = keyring.slots().longest_leaf_life() {
            given.steering.holders.resumes(life);
        }
        memory.saw(&stored.version);
        let status = memory.status(&current, upstream_status(&given, &desk), None);
        let issuer = Self {
            roots: watch::Sender::new(Arc::clone(&current.roots_pem)),
            document: watch::Sender::new(Arc::clone(&current.document)),
            status: watch::Sender::new(Arc::new(status)),
            seen: watch::Sender::new(began.monotonic),
            replaced: watch::Sender::new(false),
            current: ArcSwap::from_pointee(current),
            freshness: Freshness::new(began),
            memory: Mutex::new(memory),
            desk,
            poke: Notify::new(),
            looking: tokio::sync::Mutex::default(),
            given,
        };
        let (metrics, current) = (&issuer.given.metrics, issuer.current.load());
        metrics.authorities(None, &current.slots);
        drop(current);
        issuer.saw_store(began);
        issuer.given.ready.set(true);
        Ok(issuer)
    }

    /// Looks after the store until the drain starts.
    pub async fn run(self: Arc<Self>, drain: drain::Watch) {
        tokio::select! {
            () = self.follow(drain) => {}
            () = self.watch_upstream() => {}
        }
    }

    async fn follow(&self, mut drain: drain::Watch) {
        let mut ticks = tokio::time::interval(FOLLOW.min(self.given.settle));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leads = self.given.steering.leads.clone();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.given.steering.orders.changed() => {}
                () = self.poke.notified() => {}
                () = self.given.store.changed() => {}
                Ok(()) = leads.changed() => {}
                () = drain.started() => return,
            }
            if let Err(error) = self.look().await {
                self.given.metrics.store_failures.inc();
                tracing::error!(
                    %error,
                    not_after = unix(self.current.load().not_after()),
                    seen_seconds_ago = self.age().as_secs(),
                    signs = self.may_sign(&self.current.load()).is_ok(),
                    "looking after the CA's own certificates failed, and is tried again; what signs now signs on, unless signs is false: another replica may have changed roots then"
                );
            }
            let may_sign = self.may_sign(&self.current.load());
            self.given.ready.set(may_sign.is_ok());
        }
    }

    /// Notes a look at the store that succeeded.
    fn saw_store(&self, began: Moment) {
        self.freshness.saw(began);
        self.seen.send_replace(began.monotonic);
        self.given.metrics.store_seen(began.wall);
    }

    fn age(&self) -> Duration {
        self.freshness.age(&self.given.clock)
    }

    /// Whether what this replica knows is certainly not of the past. Who leads
    /// takes the steps, so that it knows.
    fn may_sign(&self, current: &Current) -> Result<(), IssueError> {
        let age = self.age();
        let good_for = freshness::good_for(&current.slots, self.given.settle);
        if age < good_for || *self.given.steering.leads.borrow() {
            return Ok(());
        }
        Err(IssueError::StoreUnseen(age))
    }

    /// Takes over what is stored, and the steps that are due.
    pub async fn look(&self) -> Result<(), IssuerError> {
        let _one_at_a_time = self.looking.lock().await;
        for _ in 0..MAX_STEPS {
            let began = Moment::now(&self.given.clock);
            let stored = self.given.store.load().await?;
            let stored = stored.ok_or(StoreError::Vanished)?;
            let mut keyring = Keyring::from_files(&self.given.trust_domain, &stored.files)?;
            let taken_over = self.take_over(&stored, &keyring);
            let is_replaced = matches!(taken_over, Err(IssuerError::Replaced));
            replace(&self.replaced, is_replaced);
            if is_replaced {
                // Nobody takes a step of a CA that is not stored.
                self.freshness.saw(began);
            }
            taken_over?;
            self.saw_store(began);
            let leads = *self.given.steering.leads.borrow();
            let facts = self.facts(&keyring, leads);
            if self
                .take_answer(&mut keyring, &facts, &stored, leads)
                .await?
            {
                continue;
            }
            let step = match rotation::next(keyring.slots(), &facts) {
                Step::Wait(waiting) => {
                    self.publish_status(Some((waiting, facts.holders)));
                    return Ok(());
                }
                _ if !leads => {
                    self.publish_status(None);
                    return Ok(());
                }
                Step::AskUpstream => {
                    self.desk.want();
                    continue;
                }
                step => step,
            };
            take(&self.given, &mut keyring, &step, &facts).await?;
            self.write(&keyring, &step, &stored).await?;
        }
        Ok(())
    }

    /// Takes what the upstream signed, if it has signed something.
    async fn take_answer(
        &self,
        keyring: &mut Keyring,
        facts: &Facts,
        stored: &Stored,
        leads: bool,
    ) -> Result<bool, IssuerError> {
        let Some(answer) = self.desk.answer().filter(|_| leads) else {
            return Ok(false);
        };
        let ordered = facts.wanted.and_then(|order| order.root_generation);
        let taken = keyring.take_signed(
            answer.signed.clone(),
            answer.origin.clone(),
            ordered,
            facts.now,
        );
        if let Err(error) = taken {
            self.desk.answered(facts.now, Some(error.to_string()));
            return Err(error.into());
        }
        if self.write(keyring, &Step::AskUpstream, stored).await? == Written::Overtaken {
            self.desk.give_back(answer);
        }
        Ok(true)
    }

    async fn write(
        &self,
        keyring: &Keyring,
        step: &Step,
        stored: &Stored,
    ) -> Result<Written, IssuerError> {
        let files = keyring.to_files()?;
        let written = self
            .given
            .store
            .write(&files, Some(&stored.version))
            .await?;
        if written == Written::Done {
            tracing::info!(?step, "a step of the CA's own rotation was taken");
        }
        Ok(written)
    }

    /// Signs with what is stored from now on.
    fn take_over(&self, stored: &Stored, keyring: &Keyring) -> Result<(), IssuerError> {
        let current = self.current.load();
        if !current.slots.can_become(keyring.slots()) {
            return Err(IssuerError::Replaced);
        }
        let is_new = self.memory().saw(&stored.version);
        if !is_new {
            return Ok(());
        }
        let next = Current::new(keyring)?;
        let (roots, document) = (Arc::clone(&next.roots_pem), Arc::clone(&next.document));
        let metrics = &self.given.metrics;
        metrics.authorities(Some(&current.slots), &next.slots);
        self.current.store(Arc::new(next));
        replace(&self.roots, roots);
        replace(&self.document, document);
        Ok(())
    }

    fn facts(&self, keyring: &Keyring, leads: bool) -> Facts {
        let given = &self.given;
        let mut memory = self.memory();
        let mut facts = Facts {
            now: given.clock.now(),
            settled_for: memory.settled_for(&given.clock, leads),
            settle: given.settle,
            wanted: given.steering.orders.wanted(),
            holders: HolderReport::default(),
            lifetimes: given.lifetimes,
            upstream: given.upstream.as_ref().map(|above| UpstreamFacts {
                has_changed: self
                    .desk
                    .has_changed(above, keyring.slots(), given.clock.now()),
                is_asked: self.desk.is_asked(),
            }),
        };
        drop(memory);
        let asked = rotation::question(keyring.slots(), &facts);
        let root = asked.and_then(|generation| keyring.root(generation));
        if let (Some(root), Ok(bundle)) = (root, keyring.bundle()) {
            facts.holders = given
                .steering
                .holders
                .report(&bundle.id(), &root.fingerprint());
        }
        facts
    }

    fn publish_status(&self, waiting: Option<(Waiting, HolderReport)>) {
        let current = self.current.load();
        let upstream = upstream_status(&self.given, &self.desk);
        let status = self.memory().status(&current, upstream, waiting);
        self.given.metrics.rotation(&status);
        self.status.send_if_modified(|published| {
            let has_changed = **published != status;
            *published = Arc::new(status);
            has_changed
        });
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Issuer for RotatingIssuer {
    async fn issue(&self, csr: &VettedCsr, lifetime: Duration) -> Result<Issued, IssueError> {
        let current = self.current.load_full();
        self.may_sign(&current)?;
        // As long as is noted where all replicas see it, and no longer: what was
        // issued is waited for by that.
        let lifetime = current.slots.leaf_life().unwrap_or(lifetime).min(lifetime);
        let issued = match &current.signs {
            Signs::Here(authority) => {
                let (key, now) = (csr.public_key(), self.given.clock.now());
                let svid = authority.issue_svid(csr.id(), key, lifetime, now)?;
                current.issued(svid, Arc::clone(&current.intermediates_pem))
            }
            Signs::Upstream(own) => self.issue_upstream(own, csr, lifetime).await?,
        };
        self.given.steering.holders.issued(csr.holder(), &issued);
        Ok(issued)
    }

    fn claimed(&self, holder: &str, bundle: BundleId) {
        self.given.steering.holders.claimed(holder, bundle);
    }

    async fn issue_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<ServingCertificate, IssueError> {
        let current = self.current.load();
        match &current.signs {
            Signs::Here(authority) => {
                let now = self.given.clock.now();
                Ok(authority.issue_serving(names, lifetime, now)?)
            }
            // It was signed with these names, and is renewed in time.
            Signs::Upstream(own) => Ok(own.certificate.clone()),
        }
    }

    fn trust_bundle(&self) -> TrustBundle {
        self.current.load().bundle.clone()
    }

    fn roots_pem(&self) -> watch::Receiver<Arc<str>> {
        self.roots.subscribe()
    }

    fn bundle_document(&self) -> watch::Receiver<Arc<str>> {
        self.document.subscribe()
    }

    fn jwt_signer(&self) -> Result<Arc<JwtKey>, IssueError> {
        let current = self.current.load();
        self.may_sign(&current)?;
        Ok(Arc::clone(&current.token_signer))
    }

    fn store_seen(&self) -> watch::Receiver<Instant> {
        self.seen.subscribe()
    }

    fn is_replaced(&self) -> watch::Receiver<bool> {
        self.replaced.subscribe()
    }

    fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }
}

/// Brings a store to where one can sign with it: begins one that is empty, and
/// gives one of the first layout its key of tokens. Whoever is overtaken in that
/// takes what the other wrote.
async fn settle(given: &Given, desk: &Desk) -> Result<Stored, IssuerError> {
    for _ in 0..MAX_STEPS {
        let stored = given.store.load().await?;
        let (mut keyring, version) = match &stored {
            None => (Keyring::empty(given.trust_domain.clone()), None),
            Some(stored) => (
                Keyring::from_files(&given.trust_domain, &stored.files)?,
                Some(&stored.version),
            ),
        };
        let step = if keyring.slots().is_empty() {
            Step::Begin
        } else if keyring.slots().active_token_key().is_none() {
            Step::MakeTokenKey
        } else if let Some(stored) = stored {
            return Ok(stored);
        } else {
            return Err(StoreError::Vanished.into());
        };
        let facts = Facts {
            now: given.clock.now(),
            settled_for: Duration::ZERO,
            settle: given.settle,
            wanted: given.steering.orders.wanted(),
            holders: HolderReport::default(),
            lifetimes: given.lifetimes,
            upstream: given.upstream.as_ref().map(|_| UpstreamFacts::default()),
        };
        take(given, &mut keyring, &step, &facts).await?;
        if step == Step::Begin && given.upstream.is_some() {
            desk.answered(facts.now, None);
        }
        match given.store.write(&keyring.to_files()?, version).await? {
            Written::Done => {
                if step == Step::Begin {
                    given.steering.holders.begins();
                }
                tracing::info!(?step, "the CA's store was begun");
            }
            Written::Overtaken => {
                tracing::info!("another replica wrote at the same time: using what it wrote");
            }
        }
    }
    Err(IssuerError::Contended)
}

/// Takes a step on a keyring; the first with the upstream's help where there is
/// one.
async fn take(
    given: &Given,
    keyring: &mut Keyring,
    step: &Step,
    facts: &Facts,
) -> Result<(), IssuerError> {
    let ordered = facts.wanted.and_then(|order| order.root_generation);
    match &given.upstream {
        Some(above) if *step == Step::Begin => {
            let answered = above.ask(&given.trust_domain, &given.lifetimes).await?;
            keyring.take_signed(answered.signed, answered.origin, ordered, facts.now)?;
        }
        _ => keyring.take(step, &given.lifetimes, ordered, facts.now)?,
    }
    Ok(())
}

fn upstream_status(given: &Given, desk: &Desk) -> UpstreamStatus {
    let (failure, last_success) = desk.status();
    let above = given.upstream.as_ref();
    UpstreamStatus {
        kind: above.map_or("self-signed", |above| above.upstream.kind()),
        signs: above.map_or(UpstreamSigns::Intermediate, |above| above.signs),
        failure,
        last_success,
    }
}

fn replace<T: PartialEq>(published: &watch::Sender<T>, now: T) {
    published.send_if_modified(|published| {
        let has_changed = *published != now;
        *published = now;
        has_changed
    });
}

/// A time as log lines have it.
fn unix(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Why the CA's own certificates cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the upstream issuer did not sign: {0}")]
    Upstream(#[from] crate::upstream::UpstreamError),
    #[error(
        "the store holds another CA than the one that this replica signs with: was the Secret or directory replaced, or deleted and begun anew by another replica? Put the right one back, or restart all replicas and then all workloads to take the new one"
    )]
    Replaced,
    #[error("other replicas write to the store all the time, and this one never came to its turn")]
    Contended,
}
