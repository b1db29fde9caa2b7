//! The certificate that the API server verifies us by: where it comes from,
//! when it is renewed, and when a new one may be served.
//!
//! ```text
//!  Secret (or memory)  slots ─ plan ─▶ step ─┐
//!                                            ├─▶ wanted ─ gate ─▶ TLS, from the next
//!  files               read, checked ────────┘     ▲              handshake on
//!                                                  │
//!  registration ◀── our CAs ───────────────────────┤
//!       └──── CAs that the API server has ─────────┘
//! ```
//!
//! The API server refuses us the moment it sees a certificate that its CA
//! bundle does not cover, and pods of namespaces that opted in are not created
//! then. So a certificate of another CA waits at the gate until that CA has
//! been in the API server's configuration for a while.
//!
//! In reading order:
//! - `slots`: a CA of our own and its certificate, with a plan that renews
//!   them in time; pure.
//! - `secret`: the slots in a Secret, which replicas share, or in memory.
//! - `files`: a certificate that somebody else makes and renews.
//! - `gate`: whether a certificate may be served yet; pure.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::serving::{ServerName, ServingCertificate, ServingError};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::registration::keeper::Registered;

pub(crate) mod files;
mod gate;
pub(crate) mod secret;
pub(crate) mod slots;

pub use files::TlsFiles;

/// The API server speaks HTTP/1.1 to Services, and HTTP/2 to URLs on loopback.
const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// How long things last. The defaults are what an installation runs with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetimes {
    pub certificate: Duration,
    pub authority: Duration,
    /// How long a CA must have been in the API server's configuration before a
    /// certificate of it is served: every API server of the cluster hears of a
    /// change by its own watch, within a second when all is well.
    pub grace: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            certificate: 30 * DAY,
            authority: 365 * DAY,
            grace: Duration::from_secs(60),
        }
    }
}

/// A certificate, and the CAs by which it and its neighbours in time are
/// verified.
#[derive(Clone, Debug)]
pub(crate) struct Credential {
    pub(crate) certificate: ServingCertificate,
    /// The CA that vouches for `certificate`.
    pub(crate) authority: Certificate,
    /// All CAs that the API server should know.
    pub(crate) bundle: Vec<Certificate>,
}

/// Where a credential comes from does not matter from here on: it waits at the
/// gate, is served, and its CAs are registered.
pub(crate) struct Publisher {
    serving: Option<Credential>,
    wanted: Option<(Credential, Instant)>,
    tls: watch::Sender<Option<Arc<ServerConfig>>>,
    authorities: watch::Sender<Vec<Certificate>>,
    /// What the API server has; nothing where nobody registers us there.
    registered: Option<watch::Receiver<Registered>>,
    grace: Duration,
    metrics: Metrics,
}

impl Publisher {
    pub(crate) fn new(
        tls: watch::Sender<Option<Arc<ServerConfig>>>,
        authorities: watch::Sender<Vec<Certificate>>,
        registered: Option<watch::Receiver<Registered>>,
        grace: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            serving: None,
            wanted: None,
            tls,
            authorities,
            registered,
            grace,
            metrics,
        }
    }

    /// Takes a credential; the one before it is served until the gate opens.
    pub(crate) fn offer(&mut self, credential: Credential, wall: SystemTime) {
        let now = Instant::now();
        let is_news = |other: &Credential| {
            other.certificate.leaf() != credential.certificate.leaf()
                || other.bundle != credential.bundle
        };
        let latest = self
            .wanted
            .as_ref()
            .map(|(credential, _)| credential)
            .or(self.serving.as_ref());
        if latest.is_none_or(is_news) {
            let since = match &self.wanted {
                Some((wanted, since)) if wanted.authority == credential.authority => *since,
                _ => now,
            };
            self.wanted = Some((credential, since));
        }
        self.pass(wall);
    }

    /// Serves the wanted credential where it may be, and says what the API
    /// server should know. Call it again when [`Publisher::changed`] returns.
    pub(crate) fn pass(&mut self, wall: SystemTime) {
        if let Some((wanted, since)) = self.wanted.take() {
            let known = self.known_since(&wanted.authority, since);
            if gate::is_open(
                self.serving.as_ref(),
                &wanted.authority,
                known,
                self.grace,
                wall,
                Instant::now(),
            ) {
                self.serve(wanted);
            } else {
                self.wanted = Some((wanted, since));
            }
        }
        let mut authorities: Vec<Certificate> = match (&self.serving, &self.wanted) {
            // The newest word on the bundle, and what is served until then.
            (serving, Some((wanted, _))) => serving
                .iter()
                .map(|serving| &serving.authority)
                .chain(&wanted.bundle)
                .cloned()
                .collect(),
            (Some(serving), None) => serving.bundle.clone(),
            (None, None) => Vec::new(),
        };
        authorities.sort_by_key(Certificate::fingerprint);
        authorities.dedup();
        self.authorities.send_if_modified(|current| {
            let changed = *current != authorities;
            *current = authorities;
            changed
        });
    }

    fn serve(&mut self, credential: Credential) {
        let leaf = credential.certificate.leaf();
        let served = self.serving.as_ref();
        if served.is_some_and(|served| served.certificate.leaf() == leaf) {
            // Only what is said of the bundle is new.
            self.serving = Some(credential);
            return;
        }
        match credential.certificate.server_config(ALPN) {
            Ok(config) => {
                self.tls.send_replace(Some(config));
                self.metrics
                    .certificate_expires("serving", credential.certificate.not_after());
                self.metrics
                    .certificate_expires("authority", credential.authority.not_after());
                tracing::info!(serial = leaf.serial(), "serving a new certificate");
                self.serving = Some(credential);
            }
            Err(error) => {
                self.metrics.certificate_errors.inc();
                tracing::error!(%error, "a new certificate cannot be served; the one before it stays");
            }
        }
    }

    /// Since when the API server has known a CA. Where nobody registers us,
    /// whoever reads our bundle has had it since we wanted it.
    fn known_since(&self, authority: &Certificate, wanted: Instant) -> Option<Instant> {
        match &self.registered {
            Some(registered) => registered.borrow().get(&authority.fingerprint()).copied(),
            None => Some(wanted),
        }
    }

    /// How long the API server has known a CA, which was `published` then.
    pub(crate) fn known_for(
        &self,
        authority: &Certificate,
        published: Instant,
    ) -> Option<Duration> {
        self.known_since(authority, published)
            .map(|since| since.elapsed())
    }

    /// Returns when the gate may open: the API server has heard of a CA, or has
    /// known one for long enough. Never where nothing waits.
    pub(crate) async fn changed(&mut self) {
        let opens = self.wanted.as_ref().and_then(|(wanted, since)| {
            let known = self.known_since(&wanted.authority, *since)?;
            Some(known + self.grace)
        });
        let opens = async {
            match opens {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let heard = async {
            let is_news = match &mut self.registered {
                Some(registered) => registered.changed().await.is_ok(),
                None => false,
            };
            if !is_news {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = opens => {}
            () = heard => {}
        }
    }
}

/// Whether clients that know `authority`, and no other CA, accept this
/// certificate under every one of `names`.
pub(crate) fn verify(
    certificate: &ServingCertificate,
    authority: &Certificate,
    names: &[ServerName],
    now: SystemTime,
) -> Result<(), CredentialError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let chain = certificate.chain();
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(CredentialError::Serving(ServingError::Empty));
    };
    let intermediates: Vec<_> = intermediates
        .iter()
        .map(|part| part.der().clone())
        .collect();
    for name in names {
        let tls_name = match name {
            ServerName::Dns(name) => rustls_pki_types::ServerName::try_from(name.clone())
                .map_err(|_| ServingError::Name(name.clone()))?,
            ServerName::Ip(address) => rustls_pki_types::ServerName::from(*address),
        };
        verifier
            .verify_server_cert(
                leaf.der(),
                &intermediates,
                &tls_name,
                &[],
                UnixTime::since_unix_epoch(since),
            )
            .map_err(|error| CredentialError::Refused(name.to_string(), error))?;
    }
    Ok(())
}

/// Why there is no certificate, or no new one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error(transparent)]
    Serving(#[from] ServingError),
    #[error("setting up TLS failed: {0}")]
    Tls(#[from] rustls::Error),
    #[error("clients that trust the CA would not accept the certificate for {0}: {1}")]
    Refused(String, #[source] rustls::Error),
    #[error("no CA in the CA file vouches for the certificate: {0}")]
    NoAuthority(#[source] Box<Self>),
    #[error("reading {path} failed: {error}; check that the file is mounted and readable")]
    File {
        path: String,
        #[source]
        error: std::io::Error,
    },
    #[error("the CA file cannot be used: {0}")]
    Bundle(#[from] bulkhead_pki::bundle::BundleError),
    #[error("the Secret has no usable {0}")]
    Slot(&'static str),
    #[error("a CA certificate cannot be read: {0}")]
    Certificate(#[from] bulkhead_pki::certificate::CertificateError),
}
