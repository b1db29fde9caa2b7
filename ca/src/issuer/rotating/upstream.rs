//! Asking whoever signs above this CA, beside the loop that follows the store:
//! an upstream that is slow or away holds up nothing else.
//!
//! ```text
//!  look ── wanted ──▶ Desk ── asks, backs off ──▶ upstream
//!    ▲                  │
//!    └── an answer, taken with the next look
//! ```
//!
//! Where the upstream signs each leaf, the replica that leads also has a trial
//! leaf signed every minute: so a root that was replaced there is found, and an
//! upstream that fails is known, before a workload asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::csr::{self, ParsedCsr};
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::RotatingIssuer;
use crate::config::Lifetimes;
use crate::issuer::status::UpstreamSigns;
use crate::keyring::{FromUpstream, Signs};
use crate::rotation;
use crate::rotation::slots::Slots;
use crate::serving;
use crate::upstream::{Reason, Upstream, UpstreamError};
use crate::vet::VettedCsr;

/// How often a leaf is tried, and what was left behind upstream is removed.
const TRIAL: Duration = Duration::from_secs(60);

/// How long a trial leaf would be good for; nobody gets it.
const TRIAL_LIFETIME: Duration = Duration::from_secs(3600);

/// How long an upstream that failed is left alone.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long after it signed an upstream is not asked anew only because this
/// process has begun: whoever starts again and again asks no more often.
const FRESH: Duration = Duration::from_secs(3600);

/// The CA above this one, and what is asked of it.
#[derive(Clone)]
pub struct Above {
    pub upstream: Arc<dyn Upstream>,
    pub signs: UpstreamSigns,
    /// The names of this server, whose certificate the upstream signs where it
    /// signs each leaf.
    pub server_names: Vec<ServerName>,
}

impl Above {
    /// What signs there and what it signs, as far as is known without asking.
    fn origin(&self) -> String {
        let signs = self.signs.as_str();
        let origin = self.upstream.origin();
        match self.signs {
            UpstreamSigns::Intermediate => format!("{signs} {origin}"),
            UpstreamSigns::Leaf => {
                let names: Vec<_> = self.server_names.iter().map(ToString::to_string).collect();
                format!("{signs} {origin} {}", names.join(","))
            }
        }
    }

    /// Has signed what this CA needs.
    pub(super) async fn ask(
        &self,
        trust_domain: &TrustDomain,
        lifetimes: &Lifetimes,
    ) -> Result<Answered, UpstreamError> {
        let origin = self.origin();
        let signed = match self.signs {
            UpstreamSigns::Intermediate => {
                let key = new_key()?;
                let lifetime = lifetimes.intermediate;
                let signed = self
                    .upstream
                    .sign_intermediate(&key, trust_domain, lifetime);
                let signed = signed.await?;
                FromUpstream::Intermediate { key, signed }
            }
            UpstreamSigns::Leaf => {
                let lifetime = serving::LIFETIME.min(lifetimes.max);
                let names = &self.server_names;
                let own = self.upstream.sign_serving(names, lifetime).await?;
                let root = self.try_leaf(trust_domain).await?;
                if root != own.roots.certificates()[0] {
                    return Err(UpstreamError::new(
                        Reason::Unusable,
                        "it signs this server's certificate under one root and leaves under \
                         another",
                    ));
                }
                FromUpstream::Own(own)
            }
        };
        Ok(Answered { signed, origin })
    }

    /// Has a leaf signed that nobody gets, and says under which root it is.
    async fn try_leaf(&self, trust_domain: &TrustDomain) -> Result<Certificate, UpstreamError> {
        let id = SpiffeId::workload(trust_domain, "bulkhead-system", "bulkhead-ca")
            .expect("these are names that Kubernetes could have given");
        let key = new_key()?;
        let problem = |error: &dyn std::fmt::Display| {
            UpstreamError::new(Reason::Unusable, format!("no leaf can be tried: {error}"))
        };
        let csr = csr::create(&key, Some(&id)).map_err(|error| problem(&error))?;
        let csr = ParsedCsr::from_pem(&csr).map_err(|error| problem(&error))?;
        let csr = VettedCsr::trial(id, csr);
        Ok(self.upstream.sign_leaf(&csr, TRIAL_LIFETIME).await?.root)
    }
}

fn new_key() -> Result<PrivateKey, UpstreamError> {
    PrivateKey::generate().map_err(|error| {
        UpstreamError::new(Reason::Unusable, format!("no key could be made: {error}"))
    })
}

/// What was signed, and what signed it.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) signed: FromUpstream,
    pub(super) origin: String,
}

/// What is wanted of the upstream, and what it answered.
pub(super) struct Desk {
    state: Mutex<State>,
    wanted: Notify,
}

struct State {
    /// Whether something is wanted and not answered yet.
    is_wanted: bool,
    answer: Option<Answered>,
    /// Until when an upstream that failed is left alone.
    until: Option<Instant>,
    backoff: Backoff,
    /// What signs there was said, or seen, to be another.
    told: bool,
    failure: Option<String>,
    success: Option<SystemTime>,
}

impl Desk {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                is_wanted: false,
                answer: None,
                until: None,
                backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
                told: false,
                failure: None,
                success: None,
            }),
            wanted: Notify::new(),
        }
    }

    /// Has the upstream asked.
    pub(super) fn want(&self) {
        self.state().is_wanted = true;
        self.wanted.notify_one();
    }

    /// Whether it is asked, or left alone, or has answered.
    pub(super) fn is_asked(&self) -> bool {
        let state = self.state();
        let is_left_alone = state.until.is_some_and(|until| Instant::now() < until);
        state.is_wanted || state.answer.is_some() || is_left_alone
    }

    /// What it signed, which is taken once.
    pub(super) fn answer(&self) -> Option<Answered> {
        self.state().answer.take()
    }

    /// Gives an answer back that could not be stored.
    pub(super) fn give_back(&self, answer: Answered) {
        self.state().answer = Some(answer);
    }

    /// Notes that something else may sign there than before.
    pub(super) fn tell(&self) {
        let mut state = self.state();
        state.told = true;
        // What kept it from signing may be repaired.
        state.until = None;
    }

    /// Whether it may sign otherwise than when it signed what is stored.
    pub(super) fn has_changed(&self, above: &Above, slots: &Slots, now: SystemTime) -> bool {
        let state = self.state();
        let is_another = slots.upstream.as_ref() != Some(&above.origin());
        // It may have changed while nobody looked.
        let last = slots.active_intermediate();
        let is_old = last.is_none_or(|last| now >= last.authority.made + FRESH);
        state.told || is_another || (state.success.is_none() && is_old)
    }

    /// Notes what came of asking.
    pub(super) fn answered(&self, now: SystemTime, problem: Option<String>) {
        let mut state = self.state();
        match &problem {
            None => {
                state.success = Some(now);
                state.backoff.reset();
                state.until = None;
            }
            Some(_) => {
                let wait = state.backoff.after_failure(jitter());
                state.until = Some(Instant::now() + wait);
            }
        }
        state.failure = problem;
    }

    /// Why it does not sign, and when it last did.
    pub(super) fn status(&self) -> (Option<String>, Option<SystemTime>) {
        let state = self.state();
        (state.failure.clone(), state.success)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks once something is wanted.
    async fn ask(
        &self,
        above: &Above,
        trust_domain: &TrustDomain,
        lifetimes: &Lifetimes,
        clock: &Clock,
    ) {
        self.wanted.notified().await;
        // What is told from here on is news again.
        let was_told = std::mem::take(&mut self.state().told);
        let answered = above.ask(trust_domain, lifetimes).await;
        let problem = answered.as_ref().err().map(ToString::to_string);
        if let Some(problem) = &problem {
            tracing::warn!(
                upstream = above.upstream.kind(),
                problem,
                "the upstream issuer did not sign"
            );
        }
        self.answered(clock.now(), problem);
        let mut state = self.state();
        state.told |= was_told && answered.is_err();
        state.is_wanted = false;
        state.answer = answered.ok();
    }
}

impl RotatingIssuer {
    /// Serves the desk for as long as this is polled.
    pub(super) async fn watch_upstream(&self) {
        let Some(above) = &self.given.upstream else {
            return std::future::pending().await;
        };
        tokio::join!(
            self.serve_desk(above),
            self.follow_changes(above),
            self.try_leaves(above)
        );
    }

    async fn serve_desk(&self, above: &Above) {
        let given = &self.given;
        loop {
            self.desk
                .ask(above, &given.trust_domain, &given.lifetimes, &given.clock)
                .await;
            self.poke.notify_one();
        }
    }

    async fn follow_changes(&self, above: &Above) {
        loop {
            above.upstream.changed().await;
            self.desk.tell();
            self.poke.notify_one();
        }
    }

    /// Finds a new root before workloads do, and sweeps up.
    async fn try_leaves(&self, above: &Above) {
        let mut ticks = tokio::time::interval_at(Instant::now() + TRIAL, TRIAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !*self.given.steering.leads.borrow() {
                continue;
            }
            above.upstream.tidy().await;
            let signs_leaves = matches!(self.current.load().signs, Signs::Upstream(_));
            if !signs_leaves || above.signs != UpstreamSigns::Leaf || self.desk.is_asked() {
                continue;
            }
            let tried = above.try_leaf(&self.given.trust_domain).await;
            match tried {
                Ok(root) => {
                    self.desk.answered(self.given.clock.now(), None);
                    self.saw_root(&root);
                }
                Err(error) => {
                    let problem = error.to_string();
                    tracing::warn!(
                        upstream = above.upstream.kind(),
                        problem,
                        "the upstream issuer did not sign a trial leaf"
                    );
                    self.desk.answered(self.given.clock.now(), Some(problem));
                }
            }
            self.poke.notify_one();
        }
    }

    /// Begins a rotation where a leaf came under another root than is known to
    /// be the upstream's.
    pub(super) fn saw_root(&self, root: &Certificate) {
        let current = self.current.load();
        let slots = &current.slots;
        let order = self.given.steering.orders.wanted();
        let target = rotation::wanted_root(slots, order.and_then(|order| order.root_generation));
        let target = slots.root(target);
        let fingerprint = root.fingerprint().to_string();
        if target.is_none_or(|target| target.authority.fingerprint != fingerprint) {
            self.desk.tell();
            self.poke.notify_one();
        }
    }
}
