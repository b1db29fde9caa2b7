//! A workload with its files, and a CA that does what a test says.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::authority::Authority as Signer;
use bulkhead_pki::bundle::document::TrustBundleDocument;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::csr::ParsedCsr;
use bulkhead_pki::key::PublicKey;
use bulkhead_pki::svid::SvidChain;
use bulkhead_proto::ca::CertificateAnswer;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::readiness::Readiness;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::super::{Task, Told};
use super::LIFETIME;
use super::logs::always_listen;
use crate::authority::{Ask, Authority, AuthorityError, Grant};
use crate::credentials::{self, Credentials, Latest};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::state::State;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The sequence of the first bundle: it was made at noon.
pub(super) const FIRST: u64 = 20_000 * DAY.as_secs();

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

pub(super) fn workload(name: &str) -> SpiffeId {
    SpiffeId::workload(&trust_domain(), "shop", name).unwrap()
}

/// A root with its intermediate.
pub(super) struct Line {
    pub(super) root: Certificate,
    pub(super) intermediate: Signer,
}

impl Line {
    pub(super) fn new(now: SystemTime) -> Self {
        let root = Signer::new_root(&trust_domain(), 10 * YEAR, now).unwrap();
        Self {
            intermediate: root.new_intermediate(YEAR, now).unwrap(),
            root: root.certificate().clone(),
        }
    }
}

/// What a test changes about an honest answer.
pub(super) type Twist = Box<dyn Fn(&Ca, &PublicKey, Grant) -> Grant + Send>;

/// A CA in memory. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Ca(Arc<Mutex<Inner>>);

struct Inner {
    clock: Clock,
    lifetime: Duration,
    signs: Line,
    roots: Vec<Certificate>,
    sequence: u64,
    failure: Option<fn() -> AuthorityError>,
    twist: Option<Twist>,
    asks: Vec<Asked>,
}

struct Asked {
    at: SystemTime,
    key: PublicKey,
    holds: Option<(String, SystemTime)>,
}

impl Ca {
    fn new(clock: Clock, lifetime: Duration) -> Self {
        let signs = Line::new(clock.now());
        Self(Arc::new(Mutex::new(Inner {
            clock,
            lifetime,
            roots: vec![signs.root.clone()],
            signs,
            sequence: FIRST,
            failure: None,
            twist: None,
            asks: Vec::new(),
        })))
    }

    pub(super) fn now(&self) -> SystemTime {
        self.0.lock().unwrap().clock.now()
    }

    pub(super) fn fail_with(&self, failure: fn() -> AuthorityError) {
        self.0.lock().unwrap().failure = Some(failure);
    }

    /// Answers with something else than it should.
    pub(super) fn twist(&self, twist: impl Fn(&Self, &PublicKey, Grant) -> Grant + Send + 'static) {
        self.0.lock().unwrap().twist = Some(Box::new(twist));
    }

    /// Answers, and honestly.
    pub(super) fn answer(&self) {
        let mut inner = self.0.lock().unwrap();
        inner.failure = None;
        inner.twist = None;
    }

    /// Gives out these roots from now on, the first of which signs.
    pub(super) fn publish(&self, roots: &[&Certificate], sequence: u64) {
        let mut inner = self.0.lock().unwrap();
        inner.roots = roots.iter().map(|root| (*root).clone()).collect();
        inner.sequence = sequence;
    }

    /// Signs by another line.
    pub(super) fn sign_by(&self, line: Line) {
        self.0.lock().unwrap().signs = line;
    }

    pub(super) fn root(&self) -> Certificate {
        self.0.lock().unwrap().signs.root.clone()
    }

    pub(super) fn issue(&self, id: &SpiffeId, key: &PublicKey) -> SvidChain {
        let inner = self.0.lock().unwrap();
        inner.issue(id, key)
    }

    pub(super) fn asked_at(&self) -> Vec<SystemTime> {
        let inner = self.0.lock().unwrap();
        inner.asks.iter().map(|asked| asked.at).collect()
    }

    pub(super) fn keys_asked_for(&self) -> usize {
        let inner = self.0.lock().unwrap();
        let mut keys: Vec<&PublicKey> = Vec::new();
        for asked in &inner.asks {
            if !keys.contains(&&asked.key) {
                keys.push(&asked.key);
            }
        }
        keys.len()
    }

    /// What the workload said that it holds, when it asked for the nth time.
    pub(super) fn told(&self, nth: usize) -> Option<(String, SystemTime)> {
        self.0.lock().unwrap().asks[nth].holds.clone()
    }
}

impl Inner {
    fn issue(&self, id: &SpiffeId, key: &PublicKey) -> SvidChain {
        let now = self.clock.now();
        let signer = &self.signs.intermediate;
        signer.issue_svid(id, key, self.lifetime, now).unwrap()
    }

    fn grant(&self, key: &PublicKey) -> Grant {
        let chain = self.issue(&workload("cart"), key);
        Grant {
            answer: CertificateAnswer {
                chain: vec![chain.to_pem()],
                roots: self.roots.iter().map(Certificate::to_pem).collect(),
            },
            sequence: self.sequence,
            authority_now: Some(self.clock.now()),
        }
    }
}

impl Authority for Ca {
    async fn sign(&self, ask: Ask) -> Result<Grant, AuthorityError> {
        let csr = ParsedCsr::from_pem(&ask.csr).unwrap();
        let key = csr.public_key().clone();
        let grant = {
            let mut inner = self.0.lock().unwrap();
            let at = inner.clock.now();
            inner.asks.push(Asked {
                at,
                key: key.clone(),
                holds: ask
                    .holds
                    .map(|holds| (holds.bundle.id().to_string(), holds.certificate_expires)),
            });
            if let Some(failure) = inner.failure {
                return Err(failure());
            }
            inner.grant(&key)
        };
        let twist = self.0.lock().unwrap().twist.take();
        let Some(twist) = twist else {
            return Ok(grant);
        };
        let twisted = twist(self, &key, grant);
        self.0.lock().unwrap().twist.get_or_insert(twist);
        Ok(twisted)
    }

    fn address(&self) -> &str {
        "ca.test:15012"
    }
}

pub(super) struct World {
    pub(super) ca: Ca,
    /// The workload's.
    pub(super) clock: Clock,
    latest: Latest,
    state: watch::Receiver<State>,
    requests: mpsc::Sender<()>,
    readiness: Readiness,
    registry: Registry,
    directory: TempDir,
    task: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl World {
    /// When the CA's clock begins.
    pub(super) fn noon() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(FIRST)
    }

    /// With a first certificate.
    pub(super) async fn start() -> Self {
        Self::start_with(Self::noon(), LIFETIME).await
    }

    /// The same, where the workload's own clock says `start`.
    pub(super) async fn start_with(start: SystemTime, lifetime: Duration) -> Self {
        let mut world = Self::new(start, lifetime, true);
        world.next_certificate().await;
        world
    }

    /// With a first certificate, and nobody but the CA to tell what it holds.
    pub(super) async fn start_without_control() -> Self {
        let mut world = Self::new(Self::noon(), LIFETIME, false);
        world.next_certificate().await;
        world
    }

    /// With a first certificate of a replica that does not know yet that another
    /// root signs, and is the only one; the others answer from then on.
    pub(super) async fn start_behind() -> Self {
        let mut world = Self::new(Self::noon(), LIFETIME, true);
        let next = Line::new(world.ca.now());
        let root = next.root.clone();
        world.write_document(&[&root], FIRST + 2);
        world.next_certificate().await;
        world.ca.sign_by(next);
        world.ca.publish(&[&root], FIRST + 2);
        world
    }

    pub(super) async fn start_without_ca() -> Self {
        let world = Self::new(Self::noon(), LIFETIME, true);
        world.ca.fail_with(super::unreachable_ca);
        world
    }

    fn new(start: SystemTime, lifetime: Duration, reports_to_control: bool) -> Self {
        always_listen();
        let ca = Ca::new(Clock::paced_from(Self::noon()), lifetime);
        let clock = Clock::paced_from(start);
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            id: workload("cart"),
            trust_domain: trust_domain(),
            ca_address: "ca.test:15012".into(),
            ca_roots_path: directory.path().join("ca.crt").display().to_string(),
            token_path: String::new(),
            certificate_lifetime: lifetime,
            reports_to_control,
        };
        let (publisher, latest) = credentials::channel();
        let (readiness, metrics) = (Readiness::default(), Metrics::default());
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let told = Told {
            publisher,
            metrics,
            has_certificate: readiness.condition("certificate"),
        };
        let (requests, receiver) = mpsc::channel(1);
        let task = Task::new(&settings, ca.clone(), clock.clone(), told, receiver);
        let world = Self {
            ca,
            clock,
            latest,
            state: task.state(),
            requests,
            readiness,
            registry,
            directory,
            task: tokio::spawn(task.run()),
        };
        let roots = [world.ca.root()];
        world.write_document(&[&roots[0]], FIRST);
        world
    }

    pub(super) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Waits for a certificate with another serial number.
    pub(super) async fn next_certificate(&mut self) {
        let before = self.current().map(|current| current.identity().serial());
        loop {
            let next = self.latest.changed().await.unwrap();
            if Some(next.identity().serial()) != before {
                return;
            }
        }
    }

    /// Waits for another trust bundle, or the next certificate.
    pub(super) async fn next_bundle(&mut self) {
        self.latest.changed().await.unwrap();
    }

    pub(super) fn renew(&self) {
        self.requests.try_send(()).unwrap();
    }

    fn current(&self) -> Option<Arc<Credentials>> {
        self.latest.get()
    }

    pub(super) fn serial(&self) -> String {
        self.current().unwrap().identity().serial()
    }

    /// The roots in use, in their order.
    pub(super) fn roots(&self) -> Vec<Certificate> {
        let current = self.current().unwrap();
        current.identity().bundle().roots().certificates().to_vec()
    }

    pub(super) fn sequence(&self) -> u64 {
        self.current().unwrap().identity().bundle().sequence()
    }

    pub(super) fn signing_root(&self) -> Certificate {
        self.current().unwrap().identity().signing_root().clone()
    }

    /// What the CA should be told.
    pub(super) fn held(&self) -> (String, SystemTime) {
        let current = self.current().unwrap();
        let identity = current.identity();
        (identity.bundle().id().to_string(), identity.not_after())
    }

    pub(super) fn is_valid_at(&self, now: SystemTime) -> bool {
        let current = self.current().unwrap();
        let identity = current.identity();
        (identity.not_before()..identity.not_after()).contains(&now)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.readiness.missing().is_empty()
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// How many renewals ended like this.
    pub(super) fn counted(&self, outcome: &str) -> u64 {
        self.metric("bulkhead_certificate_renewals_total", outcome)
    }

    /// How many bundles ended like this.
    pub(super) fn counted_bundles(&self, outcome: &str) -> u64 {
        self.metric("bulkhead_trust_bundle_changes_total", outcome)
    }

    fn metric(&self, name: &str, outcome: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let outcome = format!("outcome=\"{outcome}\"");
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(&outcome));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).unwrap();
    }

    pub(super) fn remove(&self, name: &str) {
        std::fs::remove_file(self.directory.path().join(name)).unwrap();
    }

    /// Writes the SPIFFE bundle, as the kubelet would.
    pub(super) fn write_document(&self, roots: &[&Certificate], sequence: u64) {
        let document = TrustBundleDocument {
            x509_authorities: roots.iter().map(|root| (*root).clone()).collect(),
            jwt_authorities: Vec::new(),
            sequence,
            refresh_hint: None,
        };
        self.write("bundle.json", &document.to_json().unwrap());
        self.write_roots(roots);
    }

    pub(super) fn write_roots(&self, roots: &[&Certificate]) {
        let pem: String = roots.iter().map(|root| root.to_pem()).collect();
        self.write("ca.crt", &pem);
    }
}

pub(super) fn bundle(roots: &[&Certificate]) -> TrustBundle {
    let roots = Roots::new(roots.iter().map(|root| (*root).clone())).unwrap();
    TrustBundle::new(trust_domain(), roots)
}
