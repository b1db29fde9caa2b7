//! Signs with what is stored, and keeps that in order.
//!
//! ```text
//!           every 10 s, on an order, on a change upstream
//!                             │
//!  store ── load ──▶ keyring ─┴─▶ take over: what signs, the bundle, the status
//!    ▲                  │
//!    └── write ◀── take a step ◀── rotation::next   (only who leads)
//! ```
//!
//! All replicas sign; roots' keys are in memory only while a step is taken. A
//! store that cannot be read, or has something else in it than it should, stops
//! nothing: what signed before signs on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::bundle::{BundleId, TrustBundle};
use bulkhead_pki::jwt::JwtKey;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use tokio::sync::watch;

use self::current::Current;
use self::memory::Memory;
use super::status::Status;
use super::{IssueError, Issued, Issuer};
use crate::config::Lifetimes;
use crate::keyring::Keyring;
use crate::metrics::Metrics;
use crate::rotation::holders::{HolderReport, Holders};
use crate::rotation::orders::Orders;
use crate::rotation::{self, FOLLOW, Facts, Step, UpstreamFacts, Waiting};
use crate::store::{Store, StoreError, Stored, Written};
use crate::upstream::Upstream;
use crate::vet::VettedCsr;

mod current;
mod memory;

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
    pub upstream: Option<Arc<dyn Upstream>>,
    /// How long nothing must have changed before a root signs or leaves.
    pub settle: Duration,
    pub steering: Steering,
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
    memory: Mutex<Memory>,
    /// One look at the store at a time.
    looking: tokio::sync::Mutex<()>,
    roots: watch::Sender<Arc<str>>,
    document: watch::Sender<Arc<str>>,
    status: watch::Sender<Arc<Status>>,
}

impl RotatingIssuer {
    /// Loads what is stored, or begins with a new root. Of replicas that find
    /// the store empty at the same instant, all end up with what one of them
    /// made.
    pub async fn open(given: Given) -> Result<Self, IssuerError> {
        let mut memory = Memory::new(&given.clock, given.upstream.is_some());
        let stored = settle(&given, &mut memory).await?;
        let keyring = Keyring::from_files(&given.trust_domain, &stored.files)?;
        let current = Current::new(&keyring)?;
        memory.saw(&stored.version);
        let status = memory.status(&current, given.upstream.as_deref(), None);
        let issuer = Self {
            roots: watch::Sender::new(Arc::clone(&current.roots_pem)),
            document: watch::Sender::new(Arc::clone(&current.document)),
            status: watch::Sender::new(Arc::new(status)),
            current: ArcSwap::from_pointee(current),
            memory: Mutex::new(memory),
            looking: tokio::sync::Mutex::default(),
            given,
        };
        let (metrics, current) = (&issuer.given.metrics, issuer.current.load());
        metrics.authorities(None, &current.slots);
        drop(current);
        Ok(issuer)
    }

    /// Looks after the store until the drain starts.
    pub async fn run(self: Arc<Self>, mut drain: drain::Watch) {
        let mut ticks = tokio::time::interval(FOLLOW.min(self.given.settle));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leads = self.given.steering.leads.clone();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.given.steering.orders.changed() => {}
                () = upstream_changed(self.given.upstream.as_deref()) => {
                    self.memory().upstream_has_changed = true;
                }
                Ok(()) = leads.changed() => {}
                () = drain.started() => return,
            }
            if let Err(error) = self.look().await {
                self.given.metrics.store_failures.inc();
                tracing::error!(
                    %error,
                    not_after = unix(self.current.load().signer.not_after()),
                    "looking after the CA's own certificates failed; what signs now signs on, and this is tried again"
                );
            }
        }
    }

    /// Takes over what is stored, and the steps that are due.
    pub async fn look(&self) -> Result<(), IssuerError> {
        let _one_at_a_time = self.looking.lock().await;
        for _ in 0..MAX_STEPS {
            let stored = self.given.store.load().await?;
            let stored = stored.ok_or(StoreError::Vanished)?;
            let mut keyring = Keyring::from_files(&self.given.trust_domain, &stored.files)?;
            self.take_over(&stored, &keyring)?;
            let leads = *self.given.steering.leads.borrow();
            let facts = self.facts(&keyring, leads);
            let step = match rotation::next(keyring.slots(), &facts) {
                Step::Wait(waiting) => {
                    self.publish_status(Some((waiting, facts.holders)));
                    return Ok(());
                }
                _ if !leads => {
                    self.publish_status(None);
                    return Ok(());
                }
                step => step,
            };
            self.take(&mut keyring, &step, &facts, &stored).await?;
        }
        Ok(())
    }

    async fn take(
        &self,
        keyring: &mut Keyring,
        step: &Step,
        facts: &Facts,
        stored: &Stored,
    ) -> Result<(), IssuerError> {
        let taken = take(&self.given, keyring, step, facts).await;
        if let (Some(upstream), true) = (&self.given.upstream, step.asks_upstream()) {
            let problem = taken.as_ref().err().map(ToString::to_string);
            self.memory().upstream_answered(facts.now, problem.clone());
            if let Some(problem) = problem {
                tracing::warn!(
                    upstream = upstream.kind(),
                    problem,
                    "the upstream issuer did not sign"
                );
            }
            if taken.is_err() {
                self.publish_status(None);
            }
        }
        taken?;
        let written = self
            .given
            .store
            .write(&keyring.to_files()?, Some(&stored.version))
            .await?;
        if written == Written::Done {
            tracing::info!(?step, "a step of the CA's own rotation was taken");
        }
        Ok(())
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
            upstream: given.upstream.as_ref().map(|_| UpstreamFacts {
                has_changed: memory.upstream_has_changed,
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
        let upstream = self.given.upstream.as_deref();
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
        let current = self.current.load();
        let now = self.given.clock.now();
        let svid = current
            .signer
            .issue_svid(csr.id(), csr.public_key(), lifetime, now)?;
        let issued = Issued {
            svid,
            intermediates_pem: Arc::clone(&current.intermediates_pem),
            roots_pem: Arc::clone(&current.roots_pem),
            bundle: current.bundle.id(),
            sequence: current.bundle.sequence(),
            signing_root: current.signer.root().fingerprint(),
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
        let now = self.given.clock.now();
        Ok(current.signer.issue_serving(names, lifetime, now)?)
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

    fn jwt_signer(&self) -> Arc<JwtKey> {
        Arc::clone(&self.current.load().token_signer)
    }

    fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }
}

/// Brings a store to where one can sign with it: begins one that is empty, and
/// gives one of the first layout its key of tokens. Whoever is overtaken in that
/// takes what the other wrote.
async fn settle(given: &Given, memory: &mut Memory) -> Result<Stored, IssuerError> {
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
            memory.upstream_answered(facts.now, None);
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

/// Takes a step on a keyring, with the upstream's help where there is one.
async fn take(
    given: &Given,
    keyring: &mut Keyring,
    step: &Step,
    facts: &Facts,
) -> Result<(), IssuerError> {
    let ordered = facts.wanted.and_then(|order| order.root_generation);
    match &given.upstream {
        Some(upstream) if step.asks_upstream() => {
            let key = PrivateKey::generate().map_err(StoreError::from)?;
            let lifetime = given.lifetimes.intermediate;
            let signed = upstream
                .sign_intermediate(&key, &given.trust_domain, lifetime)
                .await?;
            keyring.take_signed(key, &signed, ordered, facts.now)?;
        }
        _ => keyring.take(step, &given.lifetimes, ordered, facts.now)?,
    }
    Ok(())
}

async fn upstream_changed(upstream: Option<&dyn Upstream>) {
    match upstream {
        Some(upstream) => upstream.changed().await,
        None => std::future::pending().await,
    }
}

fn replace(published: &watch::Sender<Arc<str>>, text: Arc<str>) {
    published.send_if_modified(|published| {
        let has_changed = *published != text;
        *published = text;
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
    #[error("the upstream issuer did not sign an intermediate: {0}")]
    Upstream(#[from] crate::upstream::UpstreamError),
    #[error(
        "the store holds another CA than the one that this replica signs with: was the Secret or directory replaced, or deleted and begun anew by another replica? Put the right one back, or restart all replicas and then all workloads to take the new one"
    )]
    Replaced,
    #[error("other replicas write to the store all the time, and this one never came to its turn")]
    Contended,
}
