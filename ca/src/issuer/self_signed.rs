//! The CA's own root, which signs an intermediate now and then, which signs
//! everything else.
//!
//! The root's key is in memory only while an intermediate is made. The
//! intermediate is renewed at two thirds of its life; leaves carry it with them,
//! so that nothing else must learn of it first. Replicas follow what is stored:
//! whichever finds the renewal due does it, and the others take it over.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::document::{JwtAuthority, TrustBundleDocument};
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::jwt::JwtKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use tokio::sync::watch;

use super::status::{
    AuthorityKind, AuthorityState, AuthorityStatus, Phase, Status, TrustBundleStatus,
    UpstreamSigns, UpstreamStatus,
};
use super::{IssueError, Issued, Issuer};
use crate::config::Lifetimes;
use crate::metrics::Metrics;
use crate::rotation::holders::HolderReport;
use crate::store::{self, Authorities, Store, StoreError, Written};
use crate::vet::VettedCsr;

/// How often the store is looked at: for what another replica changed, and for
/// what is due. The intermediate's remaining third is far longer.
const FOLLOW: Duration = Duration::from_secs(60);

/// How often consumers of the bundle should look at it again.
const REFRESH_HINT: Duration = Duration::from_secs(300);

/// Signs by a root of its own.
pub struct SelfSigned {
    store: Box<dyn Store>,
    trust_domain: TrustDomain,
    lifetimes: Lifetimes,
    clock: Clock,
    metrics: Metrics,
    current: ArcSwap<Current>,
    /// The roots of `current`, for those who wait for a change.
    published: watch::Sender<Arc<str>>,
    document: watch::Sender<Arc<str>>,
    status: watch::Sender<Arc<Status>>,
    /// Signs tokens for as long as the process lives: they are minutes short.
    jwt_key: Arc<JwtKey>,
}

/// What signs now. Replaced as a whole, read without a lock.
struct Current {
    intermediate: Authority,
    roots: Roots,
    intermediates_pem: Arc<[String]>,
    roots_pem: Arc<str>,
}

impl SelfSigned {
    /// Loads what is stored, or begins with a new root.
    pub async fn open(
        store: Box<dyn Store>,
        trust_domain: TrustDomain,
        lifetimes: Lifetimes,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let make = || begin(&trust_domain, &lifetimes, clock.now());
        let authorities = store::load_or_create(store.as_ref(), &trust_domain, make).await?;
        let current = Current::new(authorities, &metrics);
        let (published, _) = watch::channel(Arc::clone(&current.roots_pem));
        let jwt_key = Arc::new(JwtKey::generate()?);
        let (document, _) = watch::channel(current.document(&jwt_key)?);
        let (status, _) = watch::channel(Arc::new(current.status()));
        let issuer = Self {
            jwt_key,
            current: ArcSwap::from_pointee(current),
            published,
            document,
            status,
            store,
            trust_domain,
            lifetimes,
            clock,
            metrics,
        };
        issuer.follow_store().await?;
        Ok(issuer)
    }

    /// Follows the store until the drain starts.
    pub async fn run(self: Arc<Self>, mut drain: drain::Watch) {
        let mut ticks = tokio::time::interval(FOLLOW);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.started() => return,
            }
            if let Err(error) = self.follow_store().await {
                self.metrics.store_failures.inc();
                tracing::error!(
                    %error,
                    not_after = unix(self.current.load().intermediate.not_after()),
                    "looking after the intermediate failed; the current one signs on and this is tried again"
                );
            }
        }
    }

    /// Takes over what is stored, and renews the intermediate if that is due.
    pub async fn follow_store(&self) -> Result<(), StoreError> {
        let stored = self.store.load().await?.ok_or(StoreError::Vanished)?;
        let mut authorities = Authorities::from_files(&self.trust_domain, &stored.files)?;
        let now = self.clock.now();
        if is_due(&authorities, now) {
            authorities.intermediate = authorities
                .root
                .new_intermediate(self.lifetimes.intermediate, now)?;
            let files = authorities.to_files()?;
            if self.store.write(&files, Some(&stored.version)).await? == Written::Overtaken {
                // What the other replica wrote is taken over at the next look.
                return Ok(());
            }
            tracing::info!(
                serial = authorities.intermediate.certificate().serial(),
                not_after = unix(authorities.intermediate.not_after()),
                "the intermediate was due and is renewed"
            );
        }
        let current = self.current.load();
        if *authorities.intermediate.certificate() != *current.intermediate.certificate()
            || authorities.roots != current.roots
        {
            let next = Current::new(authorities, &self.metrics);
            let roots = Arc::clone(&next.roots_pem);
            let document = next.document(&self.jwt_key)?;
            self.status.send_replace(Arc::new(next.status()));
            self.current.store(Arc::new(next));
            self.document.send_if_modified(|published| {
                let has_changed = *published != document;
                *published = document;
                has_changed
            });
            self.published.send_if_modified(|published| {
                let has_changed = *published != roots;
                *published = roots;
                has_changed
            });
        }
        Ok(())
    }
}

impl Current {
    /// Keeps what signing needs; the root's key is dropped here.
    fn new(authorities: Authorities, metrics: &Metrics) -> Self {
        let Authorities {
            root,
            intermediate,
            roots,
        } = authorities;
        metrics.expires("root", root.not_after());
        metrics.expires("intermediate", intermediate.not_after());
        let intermediates = intermediate.intermediates().iter();
        Self {
            intermediates_pem: intermediates.map(Certificate::to_pem).collect(),
            roots_pem: roots.to_pem().into(),
            intermediate,
            roots,
        }
    }

    fn document(&self, jwt_key: &JwtKey) -> Result<Arc<str>, StoreError> {
        let document = TrustBundleDocument {
            x509_authorities: self.roots.certificates().to_vec(),
            jwt_authorities: vec![JwtAuthority {
                key_id: jwt_key.id().to_owned(),
                key: jwt_key.private_key().public_key().clone(),
            }],
            sequence: 0,
            refresh_hint: Some(REFRESH_HINT),
        };
        Ok(document.to_json()?.into())
    }

    fn status(&self) -> Status {
        let describe = |kind, certificate: &Certificate, issuer| AuthorityStatus {
            kind,
            generation: 1,
            state: AuthorityState::Active,
            fingerprint: certificate.fingerprint().to_string(),
            serial: certificate.serial(),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
            key_type: certificate
                .public_key()
                .map_or_else(|error| error.to_string(), |key| key.kind().to_string()),
            issuer,
        };
        Status {
            phase: Phase::Settled,
            message: "the root and the intermediate are in use".to_owned(),
            root_generation: 1,
            target_generation: 1,
            trust_bundle: TrustBundleStatus {
                id: self.roots.id(),
                sequence: 0,
                roots: self.roots.certificates().len(),
            },
            authorities: vec![
                describe(AuthorityKind::Root, self.intermediate.root(), None),
                describe(
                    AuthorityKind::Intermediate,
                    self.intermediate.certificate(),
                    Some(1),
                ),
            ],
            upstream: UpstreamStatus {
                kind: "self-signed",
                signs: UpstreamSigns::Intermediate,
                failure: None,
                last_success: None,
            },
            holders: HolderReport::default(),
        }
    }
}

#[tonic::async_trait]
impl Issuer for SelfSigned {
    async fn issue(&self, csr: &VettedCsr, lifetime: Duration) -> Result<Issued, IssueError> {
        let current = self.current.load();
        let svid = current.intermediate.issue_svid(
            csr.id(),
            csr.public_key(),
            lifetime,
            self.clock.now(),
        )?;
        Ok(Issued {
            svid,
            intermediates_pem: Arc::clone(&current.intermediates_pem),
            roots_pem: Arc::clone(&current.roots_pem),
        })
    }

    async fn issue_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<ServingCertificate, IssueError> {
        let current = self.current.load();
        let certificate = current
            .intermediate
            .issue_serving(names, lifetime, self.clock.now())?;
        Ok(certificate)
    }

    fn trust_bundle(&self) -> TrustBundle {
        let roots = self.current.load().roots.clone();
        TrustBundle::new(self.trust_domain.clone(), roots)
    }

    fn roots_pem(&self) -> watch::Receiver<Arc<str>> {
        self.published.subscribe()
    }

    fn bundle_document(&self) -> watch::Receiver<Arc<str>> {
        self.document.subscribe()
    }

    fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    fn jwt_signer(&self) -> Arc<JwtKey> {
        Arc::clone(&self.jwt_key)
    }
}

/// A new root, and an intermediate below it.
fn begin(
    trust_domain: &TrustDomain,
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<Authorities, StoreError> {
    let root = Authority::new_root(trust_domain, lifetimes.root, now)?;
    let intermediate = root.new_intermediate(lifetimes.intermediate, now)?;
    let roots = Roots::new([root.certificate().clone()])?;
    Ok(Authorities {
        root,
        intermediate,
        roots,
    })
}

/// At two thirds of its life, unless the root would not let a new one live
/// longer: then the root is what must be renewed.
fn is_due(authorities: &Authorities, now: SystemTime) -> bool {
    let certificate = authorities.intermediate.certificate();
    let (from, until) = (certificate.not_before(), certificate.not_after());
    let lifetime = until.duration_since(from).unwrap_or_default();
    now >= from + lifetime / 3 * 2 && authorities.root.not_after() > until
}

/// A time as log lines have it.
fn unix(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
