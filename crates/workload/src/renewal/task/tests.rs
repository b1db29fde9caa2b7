//! A workload and a CA in paused time: days pass in no time.

mod awkward;
mod logs;
mod roots;
mod world;

use std::time::Duration;

use bulkhead_proto::retry::too_busy;

use crate::authority::AuthorityError;
use world::{DAY, HOUR, MINUTE, SECOND, World};

#[tokio::test(start_paused = true)]
async fn certificates_follow_each_other_within_their_lifetimes() {
    let mut world = World::start().await;
    for _ in 0..4 {
        world.next_certificate().await;
    }
    let asks = world.ca.asked_at();
    for pair in asks.windows(2) {
        let gap = pair[1].duration_since(pair[0]).unwrap();
        assert!((HOUR * 119 / 10..HOUR * 193 / 10).contains(&gap), "{gap:?}");
    }
    assert_eq!(world.ca.keys_asked_for(), asks.len(), "a new key each time");
}

#[tokio::test(start_paused = true)]
async fn a_clock_half_a_minute_off_either_way_never_leaves_a_gap() {
    for (ahead, behind) in [(30, 0), (0, 30)] {
        let lifetime = 5 * MINUTE;
        let start = World::noon() + ahead * SECOND - behind * SECOND;
        let world = World::start_with(start, lifetime).await;
        let until = world.ca.now() + 2 * HOUR;
        while world.ca.now() < until {
            world.pass(10 * SECOND).await;
            for now in [world.ca.now(), world.clock.now()] {
                assert!(world.is_valid_at(now), "{:?}", world.state());
            }
        }
        assert_eq!(world.state().failures, 0);
        let skew = f64::from(ahead) - f64::from(behind);
        let measured = world.state().clock_skew.unwrap();
        assert!((measured - skew).abs() < 1.5, "{measured}");
        let asks = world.ca.asked_at().len();
        // Seven minutes with the backdated two, renewed when 50 to 80 % of them are over:
        // each serves for 90 s to 216 s, wherever in there chance puts it.
        assert!((33..=81).contains(&asks), "{asks} in two hours");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_for_longer_than_half_a_lifetime_leaves_no_gap() {
    let mut world = World::start().await;
    let serial = world.serial();
    world.ca.fail_with(unreachable_ca);
    while world.ca.now() < World::noon() + 22 * HOUR {
        world.pass(10 * MINUTE).await;
        assert!(world.is_ready() && world.is_valid_at(world.ca.now()));
    }
    assert_eq!(world.serial(), serial, "the old one serves");
    let state = world.state();
    let tries = state.failures;
    assert!(
        (100..1500).contains(&tries),
        "{tries} in three hours or more"
    );
    let failure = state.last_failure.unwrap();
    assert_eq!(failure.reason, "authority_unreachable");
    assert!(world.counted("authority_unreachable") == tries);

    world.ca.answer();
    let back = world.ca.now();
    world.next_certificate().await;
    let took = world.ca.now().duration_since(back).unwrap();
    assert!(took <= 61 * SECOND, "{took:?}");
    assert_eq!(world.state().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_expired_while_the_ca_was_away_is_replaced_when_it_is_back() {
    let mut world = World::start().await;
    world.ca.fail_with(unreachable_ca);
    world.pass(25 * HOUR).await;
    assert!(!world.is_ready());
    assert!(!world.is_valid_at(world.ca.now()));
    world.ca.answer();
    world.next_certificate().await;
    assert!(world.is_ready());
    assert!(world.is_valid_at(world.ca.now()));
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_when_a_workload_starts_is_waited_for() {
    let mut world = World::start_without_ca().await;
    world.pass(HOUR).await;
    assert!(!world.is_ready());
    world.ca.answer();
    world.next_certificate().await;
    assert!(world.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_busy_ca_is_left_alone_for_as_long_as_it_asks_and_not_much_longer() {
    let mut world = World::start().await;
    world
        .ca
        .fail_with(|| AuthorityError::Call(too_busy("later", 20 * SECOND)));
    let before = world.ca.asked_at().len();
    world.renew();
    world.pass(5 * MINUTE).await;
    let asks = world.ca.asked_at().split_off(before);
    assert!(asks.len() > 4, "{}", asks.len());
    for pair in asks.windows(2) {
        let gap = pair[1].duration_since(pair[0]).unwrap();
        assert!((20 * SECOND..61 * SECOND).contains(&gap), "{gap:?}");
    }
    assert_eq!(world.state().last_failure.unwrap().reason, "authority_busy");
    world.ca.answer();
    world.next_certificate().await;
}

#[tokio::test(start_paused = true)]
async fn somebody_who_asks_for_a_renewal_does_not_wait_for_the_next_try() {
    let mut world = World::start().await;
    world
        .ca
        .fail_with(|| AuthorityError::Call(too_busy("later", 200 * SECOND)));
    world.renew();
    world.pass(MINUTE).await;
    world.ca.answer();
    let asked = world.ca.now();
    world.renew();
    world.next_certificate().await;
    assert!(world.ca.now().duration_since(asked).unwrap() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_ca_is_told_what_the_workload_holds() {
    let mut world = World::start().await;
    assert_eq!(world.ca.told(0), None, "nothing yet");
    let held = world.held();
    world.next_certificate().await;
    assert_eq!(world.ca.told(1), Some(held));
}

fn unreachable_ca() -> AuthorityError {
    AuthorityError::Connect(std::io::ErrorKind::ConnectionRefused.into())
}

/// A lifetime that everybody here has who says nothing else.
const LIFETIME: Duration = DAY;
