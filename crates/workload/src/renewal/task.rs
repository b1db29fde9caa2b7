//! The task itself, towards any CA.

mod bundle;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::authority::BACKDATE;
use bulkhead_pki::bundle::{BundleId, TrustBundle};
use bulkhead_pki::csr;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::svid::SvidChain;
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::readiness::Condition;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::authority::{Ask, Authority, Grant, Holding};
use crate::bundle_file::BundleFile;
use crate::credentials::{Credentials, Publisher};
use crate::failure::RenewalError;
use crate::metrics::Metrics;
use crate::schedule::{self, FIRST_RETRY, Issuance, LONGEST_FIRST_RETRY};
use crate::settings::Settings;
use crate::state::{Failure, State};
use crate::trust::{Source, refutes, supersedes};

/// How often the bundle file is looked at, spread by a fifth either way.
const LOOK: Duration = Duration::from_secs(5);
/// Between two times that the CA is asked because the file cannot be taken: a
/// replica of the CA that was behind has followed within seconds, and a file that
/// somebody spoilt may stay so.
const FIRST_DOUBT: Duration = Duration::from_secs(10);
const LONGEST_DOUBT: Duration = Duration::from_secs(3600);
/// A clock that is further off than this from the CA's is worth a warning.
const WORRYING_SKEW: f64 = 60.0;

/// Who hears of what the task does.
pub(super) struct Told {
    pub(super) publisher: Publisher,
    pub(super) metrics: Metrics,
    pub(super) has_certificate: Condition,
}

/// What happens next.
enum Event {
    /// A certificate is to be asked for.
    Due,
    /// The bundle file is to be looked at.
    Look,
}

/// When a certificate is to be asked for.
enum Due {
    /// By the wall clock, as certificates count time.
    At(SystemTime),
    /// After a failure, however the clock is set meanwhile.
    Retry(Instant),
}

pub(super) struct Task<A> {
    id: SpiffeId,
    trust_domain: TrustDomain,
    authority: A,
    clock: Clock,
    told: Told,
    /// Somebody asks for a renewal before it is due.
    requests: mpsc::Receiver<()>,
    state: watch::Sender<State>,
    file: BundleFile,
    reports_to_control: bool,
    /// The roots of the CA's last answer.
    answered: Option<String>,
    /// The latest bundle that an answer had: what the CA itself says.
    vouched: Option<TrustBundle>,
    /// Whether the file said something that the CA knows nothing of: then the CA
    /// is asked before the file is believed.
    distrusts_file: bool,
    /// When the CA may be asked again about a file that cannot be taken.
    doubt: Instant,
    doubts: Backoff,
    /// The trust bundle that the CA heard of last from here; before that, the one
    /// that it gave with the first certificate.
    claimed: Option<BundleId>,
    /// Of the certificate in use.
    issuance: Option<Issuance>,
    due: Due,
    look: Instant,
    backoff: Backoff,
}

impl<A: Authority> Task<A> {
    pub(super) fn new(
        settings: &Settings,
        authority: A,
        clock: Clock,
        told: Told,
        requests: mpsc::Receiver<()>,
    ) -> Self {
        let (state, _) = watch::channel(State::default());
        Self {
            id: settings.id.clone(),
            trust_domain: settings.trust_domain.clone(),
            authority,
            due: Due::At(clock.now()),
            clock,
            told,
            requests,
            state,
            file: BundleFile::new(settings),
            reports_to_control: settings.reports_to_control,
            answered: None,
            vouched: None,
            distrusts_file: false,
            doubt: Instant::now(),
            doubts: Backoff::new(FIRST_DOUBT, LONGEST_DOUBT),
            claimed: None,
            issuance: None,
            look: Instant::now(),
            backoff: Backoff::new(FIRST_RETRY, LONGEST_FIRST_RETRY),
        }
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Runs for ever.
    pub(super) async fn run(mut self) {
        loop {
            match self.next().await {
                Event::Due => match self.certify().await {
                    Ok(()) => self.backoff.reset(),
                    Err(error) => self.failed(&error),
                },
                Event::Look => {
                    self.look_at_file().await;
                    self.look = Instant::now() + LOOK.mul_f64(0.4_f64.mul_add(jitter(), 0.8));
                }
            }
        }
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            () = until(&self.clock, &self.due) => Event::Due,
            Some(()) = self.requests.recv() => Event::Due,
            () = sleep_until(self.look) => Event::Look,
        }
    }

    /// What connections use now.
    fn current(&self) -> Option<Arc<Credentials>> {
        self.told.publisher.borrow().clone()
    }

    /// Gets a certificate, verifies it, publishes it, and notes when the next one
    /// is due.
    async fn certify(&mut self) -> Result<(), RenewalError> {
        let current = self.current();
        let key = PrivateKey::generate()?;
        let csr = csr::create(&key, Some(&self.id))?;
        let holds = current.as_ref().map(|current| Holding {
            bundle: current.identity().bundle().clone(),
            certificate_expires: current.identity().not_after(),
        });
        let shows = current.clone();
        let grant = self.authority.sign(Ask { csr, holds, shows }).await?;
        let now = self.clock.now();
        let authority_now = grant.authority_now;
        let (chain, offered) = self.read(&grant)?;
        let held = current.as_ref().map(|current| current.identity().bundle());
        let is_news = self.answered.as_deref() != Some(&grant.answer.roots);
        let is_refuted = held.is_some_and(|held| {
            let authority_now = authority_now.unwrap_or(now);
            let vouched = self.vouched_sequence();
            refutes(offered.sequence(), held.sequence(), vouched, authority_now)
        });
        let kept = held.filter(|held| !is_refuted && !supersedes(&offered, held, is_news));
        let bundle = kept.cloned();
        let answered = offered.clone();
        let is_taken = bundle.is_none();
        let bundle = bundle.unwrap_or(offered);
        let identity = WorkloadIdentity::new(&self.id, &key, chain, bundle, now);
        let identity = identity.map_err(|error| RenewalError::Identity {
            error,
            authority_now,
        })?;
        // CAs that do not say what time it is backdate as Bulkhead's does.
        let authority_now = authority_now.unwrap_or(identity.not_before() + BACKDATE);
        let issuance = Issuance {
            not_before: identity.not_before(),
            not_after: identity.not_after(),
            now,
            authority_now,
        };
        self.note_skew(now, authority_now);
        let credentials = Credentials::new(identity)?;
        self.answered = Some(grant.answer.roots);
        let claimed = held.map(TrustBundle::id);
        self.claimed = claimed.or_else(|| Some(credentials.identity().bundle().id()));
        self.backoff = Backoff::new(FIRST_RETRY, issuance.longest_retry());
        self.issuance = Some(issuance);
        self.set_due(issuance.due(jitter()));
        self.certified(credentials, now);
        if let (true, Some(held)) = (is_refuted, held) {
            self.refuted(held, &answered);
        }
        self.vouch(answered);
        if is_taken {
            self.bundle_taken(Source::Authority);
        } else {
            self.ask_again_if_in_doubt();
        }
        Ok(())
    }

    fn read(&self, grant: &Grant) -> Result<(SvidChain, TrustBundle), RenewalError> {
        let authority_now = grant.authority_now;
        let chain = SvidChain::from_pem(&grant.answer.chain.concat());
        let chain = chain.map_err(|error| RenewalError::Chain {
            error,
            authority_now,
        })?;
        let bundle = TrustBundle::from_pem(self.trust_domain.clone(), &grant.answer.roots);
        let bundle = bundle.map_err(|error| RenewalError::Bundle {
            error,
            authority_now,
        })?;
        Ok((chain, bundle.with_sequence(grant.sequence)))
    }

    /// Lets connections use a new certificate.
    fn certified(&mut self, credentials: Credentials, now: SystemTime) {
        let identity = credentials.identity();
        tracing::info!(
            id = %identity.id(),
            serial = identity.serial(),
            signing_root = %identity.signing_root().fingerprint(),
            trust_bundle = %identity.bundle().id(),
            lifetime_seconds = seconds(identity.not_after()) - seconds(identity.not_before()),
            "got a certificate"
        );
        self.told.metrics.renewal("success");
        self.state.send_modify(|state| {
            state.last_success = Some(now);
            state.failures = 0;
        });
        self.publish(credentials);
        self.told.has_certificate.set(true);
    }

    fn publish(&self, credentials: Credentials) {
        self.told.metrics.holds(credentials.identity());
        self.told
            .publisher
            .send_replace(Some(Arc::new(credentials)));
    }

    fn set_due(&mut self, due: SystemTime) {
        self.due = Due::At(due);
        self.told.metrics.due(due);
        self.state.send_modify(|state| state.due = Some(due));
    }

    fn note_skew(&self, now: SystemTime, authority_now: SystemTime) {
        let skew = ahead(now, authority_now);
        self.told.metrics.skew(skew);
        self.state
            .send_modify(|state| state.clock_skew = Some(skew));
        if skew.abs() > WORRYING_SKEW {
            tracing::warn!(
                own_time = seconds(now),
                authority_time = seconds(authority_now),
                ahead_seconds = skew,
                "this machine's clock and the CA's differ; one of them is wrong, and certificates count on both"
            );
        }
    }

    /// Says that there is no new certificate, and notes when to try again.
    fn failed(&mut self, error: &RenewalError) {
        let mut wait = self.backoff.after_failure(jitter());
        if let Some(delay) = error.delay() {
            wait = wait.max(schedule::obey(delay, jitter()));
        }
        let now = self.clock.now();
        let authority_time = error.authority_now();
        if let Some(authority_time) = authority_time {
            self.note_skew(now, authority_time);
        }
        let current = self.current();
        let not_after = current.map(|current| current.identity().not_after());
        let valid_for = not_after.and_then(|end| end.duration_since(now).ok());
        if valid_for.is_none() {
            // Without a valid certificate nothing can be done here.
            self.told.has_certificate.set(false);
        }
        let outcome = error.outcome();
        self.told.metrics.renewal(outcome);
        self.told.metrics.due(now + wait);
        tracing::warn!(
            %error,
            outcome,
            ca = self.authority.address(),
            retry_in_seconds = wait.as_secs_f64(),
            own_time = seconds(now),
            authority_time = authority_time.map(seconds),
            valid_for_seconds = valid_for.map_or(0, |left| left.as_secs()),
            "getting a certificate failed; the old one serves for as long as it is valid"
        );
        self.state.send_modify(|state| {
            state.due = Some(now + wait);
            state.failures += 1;
            state.last_failure = Some(Failure {
                at: now,
                reason: outcome,
                message: error.to_string(),
                authority_time,
                retry_at: now + wait,
            });
        });
        self.due = Due::Retry(Instant::now() + wait);
    }
}

/// Sleeps until a certificate is to be asked for. It is waited for anew after
/// each look at the file: a machine that was suspended must not sleep past its
/// certificate.
async fn until(clock: &Clock, due: &Due) {
    match due {
        Due::Retry(at) => sleep_until(*at).await,
        Due::At(at) => {
            let left = at.duration_since(clock.now());
            tokio::time::sleep(left.unwrap_or_default()).await;
        }
    }
}

/// How many seconds one time is ahead of another; fewer than none where it is
/// behind.
fn ahead(one: SystemTime, other: SystemTime) -> f64 {
    match one.duration_since(other) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
