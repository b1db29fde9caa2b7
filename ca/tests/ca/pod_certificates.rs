//! PodCertificateRequests that get no certificate, or from somebody else: what kubelet
//! sees of it, what is on record, and that nobody else waits for them. Time is paused.

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead_ca::config::Lifetimes;
use bulkhead_ca::issuer::rotating::RotatingIssuer;
use bulkhead_ca::issuer::status::Status;
use bulkhead_ca::issuer::{IssueError, Issued, Issuer};
use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::pod_certificate::Signer;
use bulkhead_ca::upstream::{Reason, UpstreamError};
use bulkhead_ca::vet::VettedCsr;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_crds::lease::{Holder, Settings};
use bulkhead_crds::owner::Owner;
use bulkhead_pki::bundle::TrustBundle;
use bulkhead_pki::jwt::JwtKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_pki::svid::SvidChain;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use self::cluster::ApiServer;
use crate::support::{Logs, Place, cart, issuer, until};

/// Longer than anybody waits before trying again.
const LONG: Duration = Duration::from_secs(45);

/// An issuer that signs for whom it is let.
struct Choosy {
    signs: Arc<RotatingIssuer>,
    /// The account that it refuses.
    refuses: watch::Sender<Option<&'static str>>,
    signed: AtomicUsize,
}

#[tonic::async_trait]
impl Issuer for Choosy {
    async fn issue(&self, csr: &VettedCsr, lifetime: Duration) -> Result<Issued, IssueError> {
        let refused = *self.refuses.borrow();
        if refused.is_some_and(|account| csr.id().as_str().ends_with(account)) {
            return Err(UpstreamError::new(Reason::Refused, "not for this one").into());
        }
        self.signed.fetch_add(1, Ordering::SeqCst);
        self.signs.issue(csr, lifetime).await
    }

    async fn issue_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<ServingCertificate, IssueError> {
        self.signs.issue_serving(names, lifetime).await
    }

    fn trust_bundle(&self) -> TrustBundle {
        self.signs.trust_bundle()
    }

    fn roots_pem(&self) -> watch::Receiver<Arc<str>> {
        self.signs.roots_pem()
    }

    fn bundle_document(&self) -> watch::Receiver<Arc<str>> {
        self.signs.bundle_document()
    }

    fn store_seen(&self) -> watch::Receiver<Instant> {
        self.signs.store_seen()
    }

    fn is_replaced(&self) -> watch::Receiver<bool> {
        self.signs.is_replaced()
    }

    fn status(&self) -> watch::Receiver<Arc<Status>> {
        Issuer::status(self.signs.as_ref())
    }

    fn jwt_signer(&self) -> Result<Arc<JwtKey>, IssueError> {
        self.signs.jwt_signer()
    }
}

/// A replica that holds the Lease and answers requests.
struct World {
    api: ApiServer,
    issuer: Arc<Choosy>,
    metrics: Metrics,
    logs: Logs,
    _place: Place,
    _trigger: drain::Trigger,
}

impl World {
    async fn start(api: ApiServer, lifetimes: impl FnOnce(&mut Lifetimes)) -> Self {
        let (place, clock) = (Place::new(), Clock::system());
        let choosy = Arc::new(Choosy {
            signs: issuer(&place, &clock).await,
            refuses: watch::Sender::new(None),
            signed: AtomicUsize::new(0),
        });
        let (trigger, drain) = drain::channel();
        let lease = Settings {
            namespace: "bulkhead-system".to_owned(),
            name: "bulkhead-ca".to_owned(),
            instance: "bulkhead-ca-0".to_owned(),
            owner: Owner::nobody(),
            clock: clock.clone(),
        };
        let (holder, held) = Holder::new(api.client(), lease);
        let metrics = Metrics::default();
        let mut signer = Signer {
            client: api.client(),
            trust_domain: default_trust_domain(),
            lifetimes: place.config().lifetimes,
            issuer: choosy.clone(),
            held,
            clock,
            metrics: metrics.clone(),
        };
        lifetimes(&mut signer.lifetimes);
        let logs = Logs::capture();
        tokio::spawn(holder.run(drain.clone()));
        tokio::spawn(signer.run(drain));
        Self {
            api,
            issuer: choosy,
            metrics,
            logs,
            _place: place,
            _trigger: trigger,
        }
    }

    async fn is_answered(&self, name: &str) -> [String; 3] {
        until(|| self.api.answer_to(name).is_some()).await;
        self.api.answer_to(name).unwrap()
    }

    async fn is_issued(&self, name: &str) {
        let [what, ..] = self.is_answered(name).await;
        assert_eq!(what, "Issued", "{name}");
    }

    fn signed(&self) -> usize {
        self.issuer.signed.load(Ordering::SeqCst)
    }

    fn refusals(&self, reason: &str) -> u64 {
        self.metrics
            .refusals()
            .get(reason)
            .copied()
            .unwrap_or_default()
    }

    /// The outcome on record of each request, in the order of the log.
    fn on_record(&self) -> Vec<(String, String)> {
        let word = |record: &Value, field: &str| record[field].as_str().unwrap().to_owned();
        let records = self.logs.records().into_iter();
        records
            .map(|record| (word(&record, "request"), word(&record, "outcome")))
            .collect()
    }
}

fn once(name: &str, outcome: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), outcome.to_owned())]
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_denied_or_failed_is_left_as_it_is() {
    let api = ApiServer::default();
    for what in ["Denied", "Failed"] {
        api.asks(what, "cart");
        api.somebody_answers(what, what);
    }
    let world = World::start(api, |_| ()).await;
    world.api.asks("later", "cart");
    world.is_issued("later").await;
    sleep(LONG).await;
    assert_eq!(world.api.answers(), [("later".to_owned(), true)]);
    assert_eq!(world.on_record(), once("later", "issued"));
    assert_eq!(world.signed(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_or_gone_before_the_ca_can_sign_gets_no_certificate() {
    let world = World::start(ApiServer::default(), |_| ()).await;
    world.issuer.refuses.send_replace(Some("cart"));
    world.api.asks("denied", "cart");
    world.api.asks("gone", "cart");
    until(|| world.refusals("pod_certificate_delayed") >= 2).await;
    world.api.somebody_answers("denied", "Denied");
    world.api.forgets("gone");
    // They are told of it before anybody signs again.
    tokio::task::yield_now().await;
    sleep(Duration::from_millis(1)).await;
    world.issuer.refuses.send_replace(None);
    sleep(LONG).await;
    assert_eq!((world.signed(), world.api.answers()), (0, Vec::new()));
    assert_eq!(world.on_record(), Vec::new());
    world.api.asks("next", "cart");
    world.is_issued("next").await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_the_ca_cannot_sign_for_hold_up_no_others_and_get_theirs_when_it_can() {
    let world = World::start(ApiServer::default(), |_| ()).await;
    world.issuer.refuses.send_replace(Some("pay"));
    let names: Vec<_> = (0..50).map(|number| format!("pay-{number}")).collect();
    for name in &names {
        world.api.asks(name, "pay");
    }
    until(|| world.refusals("pod_certificate_delayed") >= 50).await;
    world.api.asks("cart", "cart");
    world.is_issued("cart").await;
    world.issuer.refuses.send_replace(None);
    for name in &names {
        world.is_issued(name).await;
    }
    assert_eq!(world.signed(), 51);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_with_its_reason_put_on_record_once_and_never_tried_again() {
    let world = World::start(ApiServer::default(), |_| ()).await;
    let otherwise = json!({"podUID": "uid of another"});
    world.api.asks_otherwise("foreign", "cart", &otherwise);
    let answer = world.is_answered("foreign").await;
    let [what, reason, message] = answer.each_ref().map(String::as_str);
    assert_eq!((what, reason), ("Denied", "NotThePod"));
    assert!(message.contains("no such pod"), "{message}");
    sleep(LONG).await;
    assert_eq!(world.api.answers(), [("foreign".to_owned(), true)]);
    assert_eq!(world.api.certificate_of("foreign"), None);
    assert_eq!(world.signed(), 0);
    assert_eq!(world.refusals("pod_certificate"), 1);
    let records = world.logs.records();
    assert_eq!(records.len(), 1, "{records:?}");
    for (field, value) in [
        ("outcome", "refused"),
        ("request", "foreign"),
        ("namespace", "shop"),
        ("pod", "cart-0"),
        ("node", "node-1"),
        ("reason", reason),
        ("detail", message),
    ] {
        assert_eq!(records[0][field], value, "{field}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ca_whose_certificates_are_too_short_for_kubernetes_says_so_once_and_for_all() {
    let short = |lifetimes: &mut Lifetimes| lifetimes.max = Duration::from_secs(1800);
    let world = World::start(ApiServer::default(), short).await;
    world.api.asks("first", "cart");
    let [what, reason, message] = world.is_answered("first").await;
    let told = (what.as_str(), reason.as_str());
    assert_eq!(told, ("Failed", "LifetimeTooShort"));
    assert!(message.contains("less than an hour"), "{message}");
    sleep(LONG).await;
    assert_eq!(world.api.answers(), [("first".to_owned(), true)]);
    assert_eq!(world.on_record(), once("first", "refused"));
    assert_eq!(world.signed(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_somebody_else_was_faster_with_stands_and_what_was_signed_is_on_record() {
    let api = ApiServer::default();
    api.somebody_overtakes("first");
    let world = World::start(api, |_| ()).await;
    world.api.asks("first", "cart");
    let [what, reason, _] = world.is_answered("first").await;
    assert_eq!((what.as_str(), reason.as_str()), ("Denied", "Policy"));
    sleep(LONG).await;
    assert_eq!(world.api.answers(), [("first".to_owned(), false)]);
    assert_eq!(world.api.certificate_of("first"), None);
    // Nobody has the certificate; that it was signed is known all the same.
    assert_eq!(world.on_record(), once("first", "issued"));

    // A refusal that nobody was told of is none.
    world.api.somebody_overtakes("second");
    let otherwise = json!({"nodeName": "another"});
    world.api.asks_otherwise("second", "cart", &otherwise);
    sleep(LONG).await;
    assert_eq!(world.api.answers().len(), 2);
    assert_eq!(world.on_record(), once("first", "issued"));
}

#[tokio::test(start_paused = true)]
async fn what_kubelet_gets_is_for_its_pod() {
    let world = World::start(ApiServer::default(), |_| ()).await;
    world.api.asks("first", "cart");
    world.is_issued("first").await;
    let chain = world.api.certificate_of("first").unwrap();
    assert_eq!(SvidChain::from_pem(&chain).unwrap().id(), &cart());
}
