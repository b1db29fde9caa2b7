//! Getting the workload's certificate, and renewing it before it is due.
//!
//! ```text
//!  new key ─▶ CSR ─▶ CA ─▶ verified as a peer would ─▶ published ─▶ wait ─▶ again
//!                    └──▶ failed: the old one serves on; wait longer each time
//! ```
//!
//! A new key each time; the old certificate serves until the new one has passed
//! the peer's own verifier. A CA that does not answer costs nothing but a metric
//! and a log line until the old certificate expires.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_pki::bundle::{BundleError, TrustBundle};
use bulkhead_pki::csr::{self, CreateError};
use bulkhead_pki::identity::{IdentityError, WorkloadIdentity};
use bulkhead_pki::key::{KeyError, PrivateKey};
use bulkhead_pki::renewal;
use bulkhead_pki::serving::TlsError;
use bulkhead_pki::svid::{SvidChain, SvidError};
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::readiness::Condition;
use tokio::sync::mpsc;

use crate::authority::{Authority, AuthorityError};
use crate::credentials::{Credentials, Publisher};
use crate::metrics::Metrics;

/// The wait after a first failure, and the longest one. The longest is short
/// beside any lifetime, so that a CA that comes back is noticed.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// The shortest time between two renewals, for lifetimes of a few seconds.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// The longest sleep before the wall clock is looked at again: a machine that
/// was suspended must not sleep past its certificate.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Who a workload is, and whom it asks for its certificate.
#[derive(Clone, Debug)]
pub struct Settings {
    pub id: SpiffeId,
    pub trust_domain: TrustDomain,
    /// The CA's address, `host:port`; its certificate must have that name.
    pub ca_address: String,
    /// The PEM file with the roots that the CA is verified by.
    pub ca_roots_path: String,
    /// The file with the ServiceAccount token that the CA believes.
    pub token_path: String,
    /// The lifetime that is asked for.
    pub certificate_lifetime: Duration,
}

impl Settings {
    /// Those of the workload that a sidecar stands beside.
    pub fn of_sidecar(config: &SidecarConfig, id: SpiffeId) -> Self {
        Self {
            id,
            trust_domain: config.trust_domain.clone(),
            ca_address: config.ca_address.clone(),
            ca_roots_path: config.ca_roots_path.clone(),
            token_path: config.token_path.clone(),
            certificate_lifetime: config.certificate_lifetime,
        }
    }
}

/// The task that keeps the certificate fresh.
pub struct Renewal {
    authority: Authority,
    clock: Clock,
    publisher: Publisher,
    metrics: Metrics,
    has_certificate: Condition,
    /// Somebody asks for a renewal before it is due.
    requests: mpsc::Receiver<()>,
}

/// Asks for a renewal now; it happens soon, or there is one under way.
#[derive(Clone, Debug)]
pub struct RenewalRequests(mpsc::Sender<()>);

impl RenewalRequests {
    pub fn renew(&self) {
        // Full means that one is asked for already.
        let _ = self.0.try_send(());
    }
}

impl Renewal {
    /// Publishes to `publisher`, and sets `has_certificate` while there is one
    /// that is valid.
    pub fn new(
        settings: Settings,
        clock: Clock,
        publisher: Publisher,
        metrics: Metrics,
        has_certificate: Condition,
    ) -> (Self, RenewalRequests) {
        let (sender, requests) = mpsc::channel(1);
        let renewal = Self {
            authority: Authority::new(settings),
            clock,
            publisher,
            metrics,
            has_certificate,
            requests,
        };
        (renewal, RenewalRequests(sender))
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            match self.certify().await {
                Ok(due) => {
                    backoff.reset();
                    self.wait_until(due).await;
                }
                Err(error) => {
                    let wait = backoff.after_failure(jitter());
                    self.report(&error, wait);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Gets a certificate, verifies it, publishes it, and says when the next one
    /// is due.
    async fn certify(&self) -> Result<SystemTime, RenewalError> {
        let key = PrivateKey::generate()?;
        let id = self.authority.caller();
        let csr = csr::create(&key, Some(id))?;
        let answer = self.authority.sign(csr).await?;
        let chain = SvidChain::from_pem(&answer.chain.concat())?;
        let bundle = TrustBundle::from_pem(self.authority.trust_domain().clone(), &answer.roots)?;
        let now = self.clock.now();
        let identity = WorkloadIdentity::new(id, &key, chain, bundle, now)?;
        let due = renewal::point(identity.not_before(), identity.not_after(), jitter());
        self.publish(identity)?;
        Ok(due.max(now + SHORTEST_WAIT))
    }

    fn publish(&self, identity: WorkloadIdentity) -> Result<(), RenewalError> {
        let first_root = identity
            .bundle()
            .roots()
            .certificates()
            .iter()
            .map(|root| seconds(root.not_after()))
            .fold(f64::INFINITY, f64::min);
        self.metrics
            .expiry(seconds(identity.not_after()), first_root);
        self.metrics.renewal("success");
        tracing::info!(
            id = %identity.id(),
            serial = identity.serial(),
            lifetime_seconds = seconds(identity.not_after()) - seconds(identity.not_before()),
            "got a certificate"
        );
        let credentials = Credentials::new(identity)?;
        self.publisher.send_replace(Some(Arc::new(credentials)));
        self.has_certificate.set(true);
        Ok(())
    }

    /// Sleeps by the wall clock, in pieces, or until somebody asks.
    async fn wait_until(&mut self, due: SystemTime) {
        while let Ok(left) = due.duration_since(self.clock.now())
            && !left.is_zero()
        {
            tokio::select! {
                () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => {}
                Some(()) = self.requests.recv() => return,
            }
        }
    }

    fn report(&self, error: &RenewalError, wait: Duration) {
        self.metrics.renewal(error.outcome());
        let current = self.publisher.borrow().clone();
        let valid_for = current.as_ref().and_then(|current| {
            let not_after = current.identity().not_after();
            not_after.duration_since(self.clock.now()).ok()
        });
        if valid_for.is_none() {
            // Without a valid certificate nothing can be done here.
            self.has_certificate.set(false);
        }
        tracing::warn!(
            %error,
            outcome = error.outcome(),
            ca = self.authority.address(),
            retry_in_seconds = wait.as_secs_f64(),
            own_time = seconds(self.clock.now()),
            valid_for_seconds = valid_for.map_or(0, |left| left.as_secs()),
            "getting a certificate failed; the old one serves for as long as it is valid"
        );
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("making a key: {0}")]
    Key(#[from] KeyError),
    #[error(transparent)]
    Csr(#[from] CreateError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the CA's chain is not one: {0}")]
    Chain(#[from] SvidError),
    #[error("the CA's trust roots are none: {0}")]
    Bundle(#[from] BundleError),
    #[error("the CA's certificate would not serve: {0}")]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl RenewalError {
    /// The metric label.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Key(_) | Self::Csr(_) | Self::Tls(_) => "local_failure",
            Self::Authority(error) => error.outcome(),
            Self::Chain(_) | Self::Bundle(_) => "malformed_answer",
            Self::Identity(_) => "certificate_rejected",
        }
    }
}
