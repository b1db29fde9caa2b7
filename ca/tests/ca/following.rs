//! A replica of the CA that hears that another one has stored something, or does
//! not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_ca::issuer::Issuer;
use bulkhead_ca::issuer::rotating::{Given, RotatingIssuer};
use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::rotation::orders::{FileOrders, NoOrders, Order};
use bulkhead_ca::store::{Files, Store, StoreError, Stored, Version, Written};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{Place, given, now};

/// A store that many share, as a Secret is.
#[derive(Clone)]
struct Shared {
    stored: Arc<Mutex<Option<(Files, u64)>>>,
    changes: watch::Sender<()>,
    /// Whether whoever has this one hears of changes.
    hears: bool,
}

impl Shared {
    fn new() -> Self {
        Self {
            stored: Arc::default(),
            changes: watch::Sender::new(()),
            hears: true,
        }
    }
}

#[tonic::async_trait]
impl Store for Shared {
    async fn load(&self) -> Result<Option<Stored>, StoreError> {
        let stored = self.stored.lock().unwrap();
        Ok(stored.as_ref().map(|(files, version)| Stored {
            files: files.clone(),
            version: Version(version.to_string()),
        }))
    }

    async fn write(
        &self,
        files: &Files,
        previous: Option<&Version>,
    ) -> Result<Written, StoreError> {
        let mut stored = self.stored.lock().unwrap();
        let version = stored.as_ref().map(|(_, version)| *version);
        if version.map(|version| version.to_string()) != previous.map(|it| it.0.clone()) {
            return Ok(Written::Overtaken);
        }
        *stored = Some((files.clone(), version.unwrap_or(0) + 1));
        drop(stored);
        self.changes.send_replace(());
        Ok(Written::Done)
    }

    async fn changed(&self) {
        if !self.hears {
            return std::future::pending().await;
        }
        let mut changes = self.changes.subscribe();
        changes.changed().await.expect("the store is there");
    }
}

/// How long a replica that runs takes to give out a root that another one, which
/// leads, has just published.
async fn follows_after(hears: bool) -> Duration {
    let place = Place::new();
    let clock = Clock::paced_from(now());
    let store = Shared::new();
    let leader = Given {
        store: Box::new(store.clone()),
        ..given(&place, &clock, place.config().lifetimes, Metrics::default())
    };
    let leader = RotatingIssuer::open(leader).await.unwrap();
    let mut follower = Given {
        store: Box::new(Shared { hears, ..store }),
        ..given(&place, &clock, place.config().lifetimes, Metrics::default())
    };
    follower.steering.leads = watch::Sender::new(false).subscribe();
    follower.steering.orders = Arc::new(NoOrders);
    let follower = Arc::new(RotatingIssuer::open(follower).await.unwrap());
    let mut roots = follower.roots_pem();
    let (trigger, drain) = drain::channel();
    tokio::spawn(Arc::clone(&follower).run(drain));
    // Between two looks.
    tokio::time::sleep(Duration::from_secs(24)).await;
    FileOrders::write(
        &place.store(),
        Order {
            root_generation: Some(2),
            force_generation: None,
        },
    )
    .unwrap();
    let began = tokio::time::Instant::now();
    leader.look().await.unwrap();
    assert_eq!(leader.trust_bundle().roots().certificates().len(), 2);
    timeout(Duration::from_secs(60), roots.changed())
        .await
        .expect("it follows")
        .unwrap();
    assert_eq!(follower.trust_bundle().id(), leader.trust_bundle().id());
    let took = began.elapsed();
    trigger.drain(Duration::ZERO).await;
    took
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_hears_of_a_change_follows_at_once() {
    let took = follows_after(true).await;
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_hears_of_nothing_follows_within_ten_seconds() {
    let took = follows_after(false).await;
    assert!(took <= Duration::from_secs(10), "{took:?}");
}
