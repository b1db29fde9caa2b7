//! This server's own certificate: issued by the CA itself, and renewed before it
//! expires, without a restart.
//!
//! While nothing can sign, because an intermediate or a root has expired, there is
//! none. The process lives on without: it is what makes the next authority.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::renewal;
use bulkhead_pki::serving::{ServerName, TlsError};
use bulkhead_runtime::backoff::jitter;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use rustls::ServerConfig;

use crate::issuer::{IssueError, Issuer};
use crate::metrics::Metrics;

/// gRPC is HTTP/2.
const ALPN: [&str; 1] = ["h2"];

/// How long a certificate is valid. Nobody but clients that connect sees it, so
/// that it may as well be short.
pub(crate) const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How often the wall clock is asked whether renewal is due, and how long to
/// wait after a failure: half a lifetime is left then.
const LOOK: Duration = Duration::from_secs(30);

/// The TLS configuration that new connections get.
pub struct ServingTls {
    issuer: Arc<dyn Issuer>,
    names: Vec<ServerName>,
    /// Whether clients are asked for a certificate.
    asks: bool,
    clock: Clock,
    metrics: Metrics,
    /// Holds while clients can verify this server.
    ready: Condition,
    current: ArcSwapOption<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
    not_after: SystemTime,
    /// The root that signed when this was issued.
    root: Certificate,
    leaf: Certificate,
}

impl ServingTls {
    /// Issues the first certificate, where that can be done now. With `asks`,
    /// clients may show one of their own, which proves nothing yet.
    pub async fn open(
        issuer: Arc<dyn Issuer>,
        names: Vec<ServerName>,
        asks: bool,
        clock: Clock,
        metrics: Metrics,
        ready: Condition,
    ) -> Self {
        let tls = Self {
            issuer,
            names,
            asks,
            clock,
            metrics,
            ready,
            current: ArcSwapOption::empty(),
        };
        tls.look().await;
        tls
    }

    /// What new connections get; nothing where no client would accept it.
    pub fn config(&self) -> Option<Arc<ServerConfig>> {
        let current = self.current.load();
        let valid = current.as_ref().filter(|current| self.is_valid(current));
        valid.map(|current| Arc::clone(&current.config))
    }

    /// When the certificate in use expires.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.current
            .load()
            .as_ref()
            .map(|current| current.not_after)
    }

    /// Renews in time, until the drain starts.
    pub async fn run(self: Arc<Self>, mut drain: drain::Watch) {
        let mut ticks = tokio::time::interval(LOOK);
        let mut roots = self.issuer.roots_pem();
        let mut status = self.issuer.status();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = roots.changed() => {}
                // Another intermediate may sign, after one that had expired.
                Ok(()) = status.changed() => {}
                () = drain.started() => return,
            }
            self.look().await;
        }
    }

    /// Renews the certificate where it is due, and says whether there is one.
    pub async fn look(&self) {
        let renewed = self.renew_if_due().await;
        let serves = self.config().is_some();
        self.ready.set(serves);
        match renewed {
            Ok(()) => {}
            Err(error) if serves => tracing::error!(
                %error,
                "renewing this server's own certificate failed; the current one stays in use and this is tried again"
            ),
            Err(error) => tracing::error!(
                %error,
                "this server has no certificate that clients would accept, so that it serves nobody; it goes on as soon as an authority can sign again: see the lines about the CA's own certificates"
            ),
        }
    }

    /// Renews the certificate if its time has come, or if another root signs:
    /// the one that it is under may leave the trust bundle of clients.
    pub async fn renew_if_due(&self) -> Result<(), ServingTlsError> {
        if !self.is_due() {
            return Ok(());
        }
        let next = issue(self.issuer.as_ref(), &self.names, self.asks, &self.metrics).await?;
        // An upstream that signs it may not have done so yet.
        let current = self.current.load();
        if current
            .as_ref()
            .is_some_and(|current| current.leaf == next.leaf)
        {
            return Ok(());
        }
        drop(current);
        self.current.store(Some(Arc::new(next)));
        tracing::info!("this server has a new certificate of its own");
        Ok(())
    }

    fn is_due(&self) -> bool {
        let current = self.current.load();
        current.as_ref().is_none_or(|current| {
            self.clock.now() >= current.renew_at
                || signing_root(self.issuer.as_ref()) != current.root
        })
    }

    /// Whether clients accept it: one below a root that has left the trust bundle
    /// would be refused, as one that has expired.
    fn is_valid(&self, current: &Current) -> bool {
        let bundle = self.issuer.trust_bundle();
        let roots = bundle.roots().certificates();
        self.clock.now() < current.not_after && roots.contains(&current.root)
    }
}

async fn issue(
    issuer: &dyn Issuer,
    names: &[ServerName],
    asks: bool,
    metrics: &Metrics,
) -> Result<Current, ServingTlsError> {
    // Asked for first: if it changes in between, this is renewed once more.
    let root = signing_root(issuer);
    let certificate = issuer.issue_serving(names, LIFETIME).await?;
    let (not_before, not_after) = (certificate.not_before(), certificate.not_after());
    metrics.serving_expires(not_after);
    Ok(Current {
        config: match asks {
            true => certificate.server_config_that_asks(ALPN)?,
            false => certificate.server_config(ALPN)?,
        },
        renew_at: renewal::point(not_before, not_after, jitter()),
        not_after,
        root,
        leaf: certificate.leaf().clone(),
    })
}

/// The root that signs is the first of the bundle.
fn signing_root(issuer: &dyn Issuer) -> Certificate {
    issuer.trust_bundle().roots().certificates()[0].clone()
}

/// Why this server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingTlsError {
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}
