//! Two processes on one directory: one rotates, and with the callers of the other
//! in mind.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_ca::issuer::Issuer;
use bulkhead_ca::issuer::rotating::RotatingIssuer;
use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::rotation::orders::{FileOrders, Order};
use bulkhead_ca::rotation::reports::Reports;
use bulkhead_ca::store::directory::election::Election;
use bulkhead_runtime::clock::Clock;

use crate::support::{HOUR, Place, given, now};
use crate::upstream_files::vetted;

/// The issuer of a process as the program has it.
async fn process(place: &Place, clock: &Clock) -> RotatingIssuer {
    let lifetimes = place.config().lifetimes;
    let mut given = given(place, clock, lifetimes, Metrics::default());
    let election = Election::join(&place.store()).unwrap();
    let reports = Reports::new(lifetimes.max, clock.clone());
    given.steering.leads = election.leads();
    given.steering.holders = Arc::new(reports.beside(election));
    RotatingIssuer::open(given).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_root_waits_for_the_callers_of_every_process_on_the_directory() {
    let (place, clock) = (Place::new(), Clock::paced_from(now()));
    let lifetime = place.config().lifetimes.max;
    let first = process(&place, &clock).await;
    let second = process(&place, &clock).await;
    // Only the second one knows of this workload, which holds the old root alone.
    let (_, csr) = vetted().await;
    let old = second.issue(&csr, lifetime).await.unwrap();
    let order = Order {
        root_generation: Some(2),
        force_generation: None,
    };
    FileOrders::write(&place.store(), order).unwrap();
    let pass = async |time: Duration| {
        let end = clock.now() + time;
        while clock.now() < end {
            tokio::time::advance(Duration::from_secs(600)).await;
            for process in [&first, &second] {
                process.look().await.unwrap();
            }
        }
        let signs = first.status().borrow().root_generation;
        (signs, first.trust_bundle().roots().certificates().len())
    };
    assert_eq!(pass(HOUR).await, (1, 2), "published, and no more");
    assert_eq!(pass(lifetime - 2 * HOUR).await, (1, 2));
    assert!(old.svid.not_after() > clock.now());
    assert_eq!(pass(2 * HOUR).await, (2, 2), "all have renewed since");
    // The second one may have signed under the old root until it saw the step.
    assert_eq!(pass(lifetime - 2 * HOUR).await, (2, 2));
    assert_eq!(pass(3 * HOUR).await, (2, 1));
    assert_eq!(second.trust_bundle(), first.trust_bundle());
}
