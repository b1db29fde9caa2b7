//! This server's own certificate: issued by the CA itself, and renewed before it
//! expires, without a restart.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bulkhead_pki::certificate::Fingerprint;
use bulkhead_pki::renewal;
use bulkhead_pki::serving::{ServerName, TlsError};
use bulkhead_runtime::backoff::jitter;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use rustls::ServerConfig;

use crate::issuer::{IssueError, Issuer};
use crate::metrics::Metrics;

/// gRPC is HTTP/2.
const ALPN: [&str; 1] = ["h2"];

/// How long a certificate is valid. Nobody but clients that connect sees it, so
/// that it may as well be short.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How often the wall clock is asked whether renewal is due, and how long to
/// wait after a failure: half a lifetime is left then.
const LOOK: Duration = Duration::from_secs(30);

/// The TLS configuration that new connections get.
pub struct ServingTls {
    issuer: Arc<dyn Issuer>,
    names: Vec<ServerName>,
    clock: Clock,
    metrics: Metrics,
    current: ArcSwap<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
    not_after: SystemTime,
    /// The root that signed when this was issued.
    root: Fingerprint,
}

impl ServingTls {
    pub async fn open(
        issuer: Arc<dyn Issuer>,
        names: Vec<ServerName>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, ServingTlsError> {
        let first = issue(issuer.as_ref(), &names, &metrics).await?;
        Ok(Self {
            issuer,
            names,
            clock,
            metrics,
            current: ArcSwap::from_pointee(first),
        })
    }

    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    /// When the certificate in use expires.
    pub fn not_after(&self) -> SystemTime {
        self.current.load().not_after
    }

    /// Renews in time, until the drain starts.
    pub async fn run(self: Arc<Self>, mut drain: drain::Watch) {
        let mut ticks = tokio::time::interval(LOOK);
        let mut roots = self.issuer.roots_pem();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = roots.changed() => {}
                () = drain.started() => return,
            }
            if let Err(error) = self.renew_if_due().await {
                tracing::error!(
                    %error,
                    "renewing this server's own certificate failed; the current one stays in use and this is tried again"
                );
            }
        }
    }

    /// Renews the certificate if its time has come, or if another root signs:
    /// the one that it is under may leave the trust bundle of clients.
    pub async fn renew_if_due(&self) -> Result<(), ServingTlsError> {
        let current = self.current.load();
        let is_signed_by_the_same = signing_root(self.issuer.as_ref()) == current.root;
        if self.clock.now() < current.renew_at && is_signed_by_the_same {
            return Ok(());
        }
        drop(current);
        let next = issue(self.issuer.as_ref(), &self.names, &self.metrics).await?;
        self.current.store(Arc::new(next));
        tracing::info!("this server's own certificate was due and is renewed");
        Ok(())
    }
}

async fn issue(
    issuer: &dyn Issuer,
    names: &[ServerName],
    metrics: &Metrics,
) -> Result<Current, ServingTlsError> {
    // Asked for first: if it changes in between, this is renewed once more.
    let root = signing_root(issuer);
    let certificate = issuer.issue_serving(names, LIFETIME).await?;
    let (not_before, not_after) = (certificate.not_before(), certificate.not_after());
    metrics.serving_expires(not_after);
    Ok(Current {
        config: certificate.server_config(ALPN)?,
        renew_at: renewal::point(not_before, not_after, jitter()),
        not_after,
        root,
    })
}

/// The root that signs is the first of the bundle.
fn signing_root(issuer: &dyn Issuer) -> Fingerprint {
    issuer.trust_bundle().roots().certificates()[0].fingerprint()
}

/// Why this server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingTlsError {
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}
