//! Replicas that cannot see the store: what they still do, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bulkhead_ca::issuer::rotating::{IssuerError, RotatingIssuer};
use bulkhead_ca::issuer::{IssueError, Issuer};
use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::rotation::orders::{FileOrders, Order};
use bulkhead_ca::store::deadline::DEADLINE;
use bulkhead_ca::store::directory::Directory;
use bulkhead_ca::store::{Files, Store, StoreError, Stored, Version, Written};
use bulkhead_ca::vet::VettedCsr;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Readiness;
use tokio::sync::watch;

use crate::support::{DAY, HOUR, Place, given, issuer, now};
use crate::upstream_files::vetted;

/// A directory behind a connection that may go dead without a word.
struct Remote {
    directory: Directory,
    is_dead: Arc<AtomicBool>,
}

impl Remote {
    async fn reach(&self) {
        if self.is_dead.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }
}

#[tonic::async_trait]
impl Store for Remote {
    async fn load(&self) -> Result<Option<Stored>, StoreError> {
        self.reach().await;
        self.directory.load().await
    }

    async fn write(
        &self,
        files: &Files,
        previous: Option<&Version>,
    ) -> Result<Written, StoreError> {
        self.reach().await;
        self.directory.write(files, previous).await
    }
}

/// A replica whose way to the store can be cut.
struct Replica {
    issuer: Arc<RotatingIssuer>,
    is_dead: Arc<AtomicBool>,
    leads: watch::Sender<bool>,
    readiness: Readiness,
}

impl Replica {
    async fn start(place: &Place, clock: &Clock, leads: bool) -> Self {
        let mut given = given(place, clock, place.config().lifetimes, Metrics::default());
        let is_dead = Arc::<AtomicBool>::default();
        let leads = watch::Sender::new(leads);
        let readiness = Readiness::default();
        given.store = Box::new(Remote {
            directory: Directory::open(place.store()).unwrap(),
            is_dead: Arc::clone(&is_dead),
        });
        given.steering.leads = leads.subscribe();
        given.ready = readiness.condition("store_seen");
        Self {
            issuer: Arc::new(RotatingIssuer::open(given).await.unwrap()),
            is_dead,
            leads,
            readiness,
        }
    }

    fn cut(&self, is_dead: bool) {
        self.is_dead.store(is_dead, Ordering::Relaxed);
    }

    async fn signs(&self, csr: &VettedCsr) -> bool {
        let token_key = self.issuer.jwt_signer();
        match self.issuer.issue(csr, DAY).await {
            Ok(_) => token_key.is_ok(),
            Err(error) => {
                assert!(matches!(error, IssueError::StoreUnseen(_)), "{error}");
                assert!(token_key.is_err());
                false
            }
        }
    }
}

fn order_a_rotation(place: &Place) {
    let order = Order {
        root_generation: Some(2),
        force_generation: None,
    };
    FileOrders::write(&place.store(), order).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_given_up_and_asked_again() {
    let (place, clock) = (Place::new(), Clock::paced_from(now()));
    let replica = Replica::start(&place, &clock, true).await;
    replica.cut(true);
    let gives_up = tokio::time::timeout(2 * DEADLINE, replica.issuer.look());
    let error = gives_up.await.expect("it does not wait for ever");
    let silent = IssuerError::Store(StoreError::Silent(DEADLINE));
    assert_eq!(error.unwrap_err().to_string(), silent.to_string());
    replica.cut(false);
    replica.issuer.look().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_never_signs_under_a_root_that_left_while_it_did_not_see_the_store() {
    let (_, csr) = vetted().await;
    // How long the rotation goes on before the replica does not see it any more.
    for seen in [0, 15, 31, 59] {
        let (place, clock) = (Place::new(), Clock::paced_from(now()));
        let leader = issuer(&place, &clock).await;
        let replica = Replica::start(&place, &clock, false).await;
        tokio::time::advance(HOUR).await;
        leader.look().await.unwrap();
        replica.issuer.look().await.unwrap();
        order_a_rotation(&place);
        let mut has_refused = false;
        for second in 0..140 {
            tokio::time::advance(Duration::from_secs(1)).await;
            leader.look().await.unwrap();
            if second < seen {
                replica.issuer.look().await.unwrap();
            }
            let signs = replica.signs(&csr).await;
            let root = replica.issuer.issue(&csr, DAY).await;
            let bundle = leader.trust_bundle();
            let trusts = |root| {
                let mut roots = bundle.roots().certificates().iter();
                roots.any(|trusted| trusted.fingerprint() == root)
            };
            let is_trusted = root.map_or(true, |issued| trusts(issued.signing_root));
            assert!(is_trusted, "second {second}, seen until {seen}");
            has_refused |= !signs;
        }
        assert!(has_refused);
        assert_eq!(leader.status().borrow().root_generation, 2);
        assert_eq!(leader.trust_bundle().roots().certificates().len(), 1);
        replica.issuer.look().await.unwrap();
        assert!(replica.signs(&csr).await, "it sees the store again");
    }
}

#[tokio::test(start_paused = true)]
async fn who_leads_signs_on_without_the_store_and_who_does_not_is_not_ready() {
    let (_, csr) = vetted().await;
    let (place, clock) = (Place::new(), Clock::paced_from(now()));
    let replica = Replica::start(&place, &clock, true).await;
    let (trigger, drain) = drain::channel();
    let running = tokio::spawn(Arc::clone(&replica.issuer).run(drain));
    replica.cut(true);
    tokio::time::sleep(HOUR).await;
    assert!(replica.signs(&csr).await);
    assert!(replica.readiness.missing().is_empty());

    replica.leads.send_replace(false);
    assert!(!replica.signs(&csr).await);
    let becomes = async |ready: bool| {
        let so = async {
            while replica.readiness.missing().is_empty() != ready {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(HOUR, so).await.unwrap();
    };
    becomes(false).await;
    assert_eq!(replica.readiness.missing(), ["store_seen"]);
    replica.cut(false);
    becomes(true).await;
    assert!(replica.signs(&csr).await);
    drop(trigger);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_ca_was_replaced_signs_on_as_long_as_it_sees_that_without_the_lead() {
    let (_, csr) = vetted().await;
    let (place, other) = (Place::new(), Place::new());
    let clock = Clock::paced_from(now());
    let replica = Replica::start(&place, &clock, false).await;
    drop(issuer(&other, &clock).await);
    let [store, elsewhere] = [&place, &other].map(|place| Directory::open(place.store()).unwrap());
    let own = store.load().await.unwrap().unwrap();
    let foreign = elsewhere.load().await.unwrap().unwrap();
    let written = store.write(&foreign.files, Some(&own.version)).await;
    assert_eq!(written.unwrap(), Written::Done);
    for _ in 0..60 {
        let error = replica.issuer.look().await.unwrap_err();
        assert!(matches!(error, IssuerError::Replaced), "{error}");
        assert!(replica.signs(&csr).await, "nobody rotates what it knows");
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    // What it knew may be back, and rotate.
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(!replica.signs(&csr).await);
}
