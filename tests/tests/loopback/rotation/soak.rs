//! Rotations of everything, one after the other, under traffic. For thousands:
//!
//! ```console
//! $ BULKHEAD_SOAK_ROUNDS=5000 cargo test --release -p bulkhead-tests --test loopback soak
//! ```

use bulkhead_tests::config;

use super::authority::RotatingAuthority;
use super::{Pair, roots};

/// One round in so many replaces the intermediate, and one the root.
const INTERMEDIATE: usize = 3;
const ROOT: usize = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_rotations_under_traffic_lose_no_request() {
    let authority = RotatingAuthority::start().await;
    let pair = Pair::start(&authority).await;
    let rounds = config::soak_rounds();
    for round in 0..rounds {
        if round % ROOT == 0 {
            authority.publish();
            pair.renew().await;
            assert_eq!(pair.proxies().map(held), [2, 2]);
            pair.traffic.settles().await;
            authority.activate();
            pair.renew().await;
            pair.traffic.settles().await;
            authority.retire();
        } else if round % INTERMEDIATE == 0 {
            authority.rotate_intermediate();
        }
        pair.renew().await;
        pair.traffic.settles().await;
    }
    let signing = authority.signing_root();
    for proxy in pair.proxies() {
        let latest = proxy.latest.get().unwrap();
        assert_eq!(*latest.identity().signing_root(), signing);
        assert_eq!(roots(&latest), 1);
    }
    assert_eq!(pair.failures(), 0.0);
    pair.traffic.had_no_failure();
    let issued = authority.issued();
    assert!(issued >= 2 * rounds as u64, "{issued} certificates");
}

fn held(proxy: &bulkhead_proxy::app::Proxy) -> usize {
    roots(&proxy.latest.get().unwrap())
}
