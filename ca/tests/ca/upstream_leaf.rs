//! A CA that has every leaf signed by the CA above it, and keeps no key that
//! could sign one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bulkhead_ca::config::{Lifetimes, UpstreamConfig, UpstreamSource};
use bulkhead_ca::issuer::rotating::upstream::Above;
use bulkhead_ca::issuer::rotating::{Given, RotatingIssuer, Steering};
use bulkhead_ca::issuer::status::{AuthorityKind, AuthorityState, UpstreamSigns};
use bulkhead_ca::issuer::{IssueError, Issuer};
use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::rotation::SETTLE;
use bulkhead_ca::rotation::orders::FileOrders;
use bulkhead_ca::rotation::reports::Reports;
use bulkhead_ca::store::directory::Directory;
use bulkhead_ca::upstream::files::Files;
use bulkhead_ca::upstream::{SignedChain, SignedServing, Upstream, UpstreamError};
use bulkhead_ca::vet::VettedCsr;
use bulkhead_core::identity::TrustDomain;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::elsewhere::Signed;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;
use bulkhead_pki::svid::SvidChain;
use bulkhead_pki::verifier::{PeerVerifier, Role};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Readiness;
use tokio::sync::watch;

use crate::company::{CA, Company, P256};
use crate::support::{
    Ca, Client, DAY, HOUR, Place, SERVER_NAME, cart, now, request, token_for_cart,
};
use crate::upstream_files::vetted;

const MINUTE: Duration = Duration::from_secs(60);

/// Nothing may be below it but leaves.
const LAST: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n";

/// A company whose CA for the mesh may sign leaves and no CA.
fn company() -> Company {
    let company = Company::new();
    company.authority("last", P256, Some("upper"), LAST);
    company.show("tls.crt", &["last.crt", "upper.crt"]);
    company.show("tls.key", &["last.key"]);
    company.show("ca.crt", &["root.crt"]);
    company
}

/// A root that signs leaves itself.
fn show_root(company: &Company, name: &str) {
    company.authority(name, P256, None, CA);
    let certificate = format!("{name}.crt");
    company.show("tls.crt", &[&certificate]);
    company.show("tls.key", &[&format!("{name}.key")]);
    company.show("ca.crt", &[&certificate]);
}

fn leaves_of(company: &Company) -> UpstreamConfig {
    UpstreamConfig {
        source: UpstreamSource::Files(company.shown()),
        signs: UpstreamSigns::Leaf,
        roots_file: None,
    }
}

#[tokio::test]
async fn leaves_and_the_cas_own_certificate_come_from_above_and_no_signing_key_is_kept() {
    let company = company();
    let ca = Ca::start_with(|config| config.upstream = Some(leaves_of(&company))).await;
    let root = company.read(&["root.crt"]);
    let bundle = TrustBundle::from_pem(default_trust_domain(), &root).unwrap();
    // The server is known by the company's root, and by nothing of ours.
    let mut client = Client::connect(ca.app.address(), bundle.roots()).await;
    let (key, wish) = request(Some(&cart()));
    let token = ca.token(&token_for_cart());
    let answer = client.call(Some(&token), wish).await.unwrap();
    let svid = SvidChain::from_pem(&answer.chain.concat()).unwrap();
    let above: Vec<_> = svid.intermediates().iter().map(|ca| ca.subject()).collect();
    assert_eq!(above, ["O=Acme, CN=last", "O=Acme, CN=upper"]);
    WorkloadIdentity::new(&cart(), &key, svid, bundle, now()).unwrap();

    for file in std::fs::read_dir(ca.place.store()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let key = path.with_extension("key");
            let is_root = name.starts_with("root-");
            assert_eq!(key.exists(), !is_root, "{name}");
            let chain = std::fs::read_to_string(&path).unwrap();
            company.show_text("own.pem", &chain);
            let said = company.openssl("x509 -in shown/own.pem -noout -ext basicConstraints");
            assert_eq!(said.contains("CA:TRUE"), is_root, "{name}: {said}");
        }
    }
    let metrics = ca.monitoring.metrics();
    for line in [
        "bulkhead_ca_upstream_requests_total{signs=\"leaf\",outcome=\"signed\"} 2",
        "bulkhead_ca_upstream_requests_total{signs=\"serving\",outcome=\"signed\"} 1",
        "bulkhead_ca_upstream_requests_total{signs=\"intermediate\",outcome=\"signed\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ca_below_another_goes_over_to_having_each_leaf_signed_and_back() {
    let company = Company::new();
    company.show_mesh();
    let place = Place::new();
    let mut lengths = Vec::new();
    for signs in [
        UpstreamSigns::Intermediate,
        UpstreamSigns::Leaf,
        UpstreamSigns::Intermediate,
    ] {
        let clock = Clock::paced_from(now());
        let above = above_with(Arc::new(files(&company, signs, &clock).await), signs);
        let issuer = issuer(&place, &clock, above).await;
        let (trigger, drain) = drain::channel();
        let running = tokio::spawn(Arc::clone(&issuer).run(drain));
        let mut status = issuer.status();
        let is_so = |status: &Arc<bulkhead_ca::issuer::status::Status>| {
            let intermediate = status.authorities.iter().find(|authority| {
                authority.kind == AuthorityKind::Intermediate
                    && authority.state == AuthorityState::Active
            });
            intermediate.is_some() == (signs == UpstreamSigns::Intermediate)
        };
        let waited = tokio::time::timeout(5 * MINUTE, status.wait_for(is_so));
        waited.await.expect("it goes over").unwrap();
        assert_eq!(status.borrow().upstream.signs, signs);
        let (_, csr) = vetted().await;
        let issued = issuer.issue(&csr, HOUR).await.unwrap();
        lengths.push(issued.intermediates_pem.len());
        trigger.drain(Duration::from_secs(5)).await;
        running.await.unwrap();
    }
    assert_eq!(lengths, [3, 2, 3], "with and without one of ours");
}

/// An upstream that can be made to answer nothing.
struct Moody {
    files: Files,
    hangs: AtomicBool,
}

impl Moody {
    async fn mood(&self) {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending().await
        }
    }
}

#[tonic::async_trait]
impl Upstream for Moody {
    fn kind(&self) -> &'static str {
        "files"
    }

    async fn sign_intermediate(
        &self,
        key: &PrivateKey,
        trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<SignedChain, UpstreamError> {
        self.mood().await;
        self.files
            .sign_intermediate(key, trust_domain, lifetime)
            .await
    }

    async fn sign_leaf(
        &self,
        csr: &VettedCsr,
        lifetime: Duration,
    ) -> Result<Signed<SvidChain>, UpstreamError> {
        self.mood().await;
        self.files.sign_leaf(csr, lifetime).await
    }

    async fn sign_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<SignedServing, UpstreamError> {
        self.mood().await;
        self.files.sign_serving(names, lifetime).await
    }

    fn origin(&self) -> String {
        self.files.origin()
    }

    async fn changed(&self) {
        self.files.changed().await;
    }
}

async fn files(company: &Company, signs: UpstreamSigns, clock: &Clock) -> Files {
    Files::open(
        company.shown(),
        default_trust_domain(),
        signs,
        clock.clone(),
    )
    .await
}

fn above_with(upstream: Arc<dyn Upstream>, signs: UpstreamSigns) -> Above {
    Above {
        upstream,
        signs,
        server_names: vec![ServerName::parse(SERVER_NAME).unwrap()],
    }
}

async fn issuer(place: &Place, clock: &Clock, above: Above) -> Arc<RotatingIssuer> {
    let lifetimes = Lifetimes {
        intermediate: 20 * MINUTE,
        ..place.config().lifetimes
    };
    let given = Given {
        store: Box::new(Directory::open(place.store()).unwrap()),
        trust_domain: default_trust_domain(),
        lifetimes,
        clock: clock.clone(),
        metrics: Metrics::default(),
        upstream: Some(above),
        settle: SETTLE,
        steering: Steering {
            holders: Arc::new(Reports::new(lifetimes.max, clock.clone())),
            orders: Arc::new(FileOrders::new(&place.store())),
            leads: watch::Sender::new(true).subscribe(),
        },
        ready: Readiness::default().condition("store_seen"),
    };
    Arc::new(RotatingIssuer::open(given).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_new_root_above_is_held_by_all_before_any_leaf_is_under_it() {
    let company = Company::new();
    show_root(&company, "one");
    let (place, clock) = (Place::new(), Clock::paced_from(now()));
    let files = files(&company, UpstreamSigns::Leaf, &clock).await;
    let above = above_with(Arc::new(files), UpstreamSigns::Leaf);
    let issuer = issuer(&place, &clock, above).await;
    let (_trigger, drain) = drain::channel();
    tokio::spawn(Arc::clone(&issuer).run(drain));
    let (_, csr) = vetted().await;
    let first = issuer.issue(&csr, HOUR).await.unwrap();
    // What this workload holds, which it says each time that it asks.
    let mut held = issuer.trust_bundle();
    assert!(accepts(&held, &first.svid, &clock));

    show_root(&company, "two");
    let two = Roots::from_pem(&company.read(&["two.crt"])).unwrap();
    let (mut put_off, mut seconds) = (0, 0);
    let issued = loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        seconds += 1;
        assert!(seconds < 600, "it never signs under the new root");
        issuer.claimed(csr.holder(), held.id());
        match issuer.issue(&csr, HOUR).await {
            Ok(issued) => {
                // Whoever holds what this one held until now talks with it.
                assert!(accepts(&held, &issued.svid, &clock), "after {seconds} s");
                if issued.signing_root == two.certificates()[0].fingerprint() {
                    break issued;
                }
            }
            Err(IssueError::NewRoot(_)) => put_off += 1,
            Err(error) => panic!("{error}"),
        }
        // It is seconds late with what it is told.
        if seconds % 10 == 0 {
            held = issuer.trust_bundle();
        }
    };
    assert!(put_off > 0, "nothing had to wait");
    let own = issuer.issue_serving(&[], DAY).await.unwrap();
    assert!(own.chain_pem().contains("BEGIN CERTIFICATE"));
    assert!(issued.roots_pem.contains(&two.to_pem()));
}

fn accepts(bundle: &TrustBundle, svid: &SvidChain, clock: &Clock) -> bool {
    let verifier = PeerVerifier::only(Arc::new(bundle.clone()), cart());
    let presented = svid.to_der();
    let verified = verifier.verify(&presented[0], &presented[1..], Role::Client, clock.now());
    verified.is_ok()
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_hangs_is_waited_for_a_bounded_time_and_holds_up_nothing_else() {
    let company = Company::new();
    company.show_mesh();
    for signs in [UpstreamSigns::Leaf, UpstreamSigns::Intermediate] {
        let (place, clock) = (Place::new(), Clock::paced_from(now()));
        let moody = Arc::new(Moody {
            files: files(&company, signs, &clock).await,
            hangs: AtomicBool::new(false),
        });
        let upstream = Arc::clone(&moody) as Arc<dyn Upstream>;
        let issuer = issuer(&place, &clock, above_with(upstream, signs)).await;
        let (_trigger, drain) = drain::channel();
        tokio::spawn(Arc::clone(&issuer).run(drain));
        moody.hangs.store(true, Ordering::SeqCst);
        // Its successor is due, and so is that of the key of tokens.
        tokio::time::sleep(11 * MINUTE).await;
        let mut status = issuer.status();
        let keys = |kind: AuthorityKind| {
            move |status: &Arc<bulkhead_ca::issuer::status::Status>| {
                let of_kind = status.authorities.iter();
                of_kind.filter(|one| one.kind == kind).count() > 1
            }
        };
        let waited = tokio::time::timeout(5 * MINUTE, status.wait_for(keys(AuthorityKind::Jwt)));
        waited.await.expect("another key is made").unwrap();

        let (_, csr) = vetted().await;
        let began = tokio::time::Instant::now();
        let issued = issuer.issue(&csr, HOUR).await;
        if signs == UpstreamSigns::Intermediate {
            issued.unwrap();
            assert!(!keys(AuthorityKind::Intermediate)(&status.borrow()));
        } else {
            let error = issued.unwrap_err();
            assert_eq!(error.reason(), "upstream_unreachable", "{error}");
            assert!(began.elapsed() <= Duration::from_secs(5));
        }
    }
}
