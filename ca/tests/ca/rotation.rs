//! Rotations of roots and intermediates: whatever happens in whatever order, at
//! each instant any two workloads that live verify each other.

mod world;

use std::time::Duration;

use bulkhead_ca::issuer::status::{AuthorityState, Phase};
use proptest::prelude::*;

use self::world::{Above, Event, World};
use crate::support::DAY;

const MINUTE: Duration = Duration::from_secs(60);

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1_u64..600).prop_map(|seconds| Event::Pass(Duration::from_secs(seconds))),
        2 => (1_u64..200).prop_map(|hours| Event::Pass(Duration::from_secs(hours * 3600))),
        4 => Just(Event::Rotate),
        3 => Just(Event::Undo),
        1 => (0_u64..6).prop_map(Event::Order),
        1 => (0_u64..6).prop_map(Event::Force),
        1 => Just(Event::Withdraw),
        3 => any::<u8>().prop_map(Event::Join),
        2 => any::<u8>().prop_map(Event::Leave),
        2 => any::<u8>().prop_map(Event::Lead),
        2 => any::<u8>().prop_map(Event::Restart),
        2 => (any::<u8>(), -200_000_i64..200_000).prop_map(|(who, by)| Event::Leap(who, by)),
        1 => any::<u8>().prop_map(Event::RightClock),
        2 => any::<u8>().prop_map(Event::Deaf),
        2 => any::<u8>().prop_map(Event::Hear),
        1 => any::<bool>().prop_map(Event::Reports),
        1 => (0_u64..11).prop_map(|seconds| Event::Delay(Duration::from_secs(seconds))),
        1 => any::<bool>().prop_map(Event::Orders),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_two_workloads_verify_each_other_whatever_happens(
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut world = World::new(3, 4);
        for event in events {
            world.happen(event);
        }
        // Whatever state that left: once people and machines behave again, what
        // is ordered last is what comes to be.
        world.calm();
        let target = world.order_a_rotation();
        world.pass(2 * DAY);
        prop_assert_eq!(world.active_root(), target);
        prop_assert_eq!(world.trusted_roots(), vec![target]);
        prop_assert_eq!(world.phase(), Phase::Settled);
    }
}

#[test]
fn a_rotation_begun_twice_is_one_rotation() {
    let mut world = World::new(2, 5);
    let first = world.order_a_rotation();
    world.happen(Event::Order(first));
    world.pass(MINUTE);
    world.happen(Event::Order(first));
    world.pass(2 * DAY);
    assert_eq!(world.active_root(), first);
    assert_eq!(world.roots_ever_made(), 2);
}

#[test]
fn a_workload_that_does_not_hold_the_new_root_holds_the_rotation_up_and_is_named() {
    let mut world = World::new(2, 5);
    world.happen(Event::Deaf(2));
    let target = world.order_a_rotation();
    world.pass(30 * MINUTE);
    assert_eq!(world.active_root(), 1);
    assert_eq!(world.phase(), Phase::Blocked);
    assert_eq!(world.missing(), ["workload-2"]);
    world.happen(Event::Hear(2));
    world.pass(2 * DAY);
    assert_eq!(world.trusted_roots(), [target]);
}

#[test]
fn force_goes_on_without_a_workload_and_waits_until_the_old_certificates_have_expired() {
    let mut world = World::new(2, 5);
    world.happen(Event::Deaf(2));
    let target = world.order_a_rotation();
    world.pass(30 * MINUTE);
    world.give_up_on_the_deaf();
    world.happen(Event::Force(target));
    world.pass(10 * MINUTE);
    assert_eq!(world.active_root(), target);
    assert_eq!(world.trusted_roots(), [target, 1], "nobody else is cut off");
    world.pass(2 * DAY);
    assert_eq!(world.trusted_roots(), [target]);
}

#[test]
fn a_rotation_can_be_undone_until_the_old_root_is_gone() {
    // Published, and signing for a while: the old root comes back.
    for state in [AuthorityState::Published, AuthorityState::Active] {
        let mut world = World::new(2, 5);
        let before = world.fingerprint(1);
        let new = world.order_a_rotation();
        world.pass_until(|world| world.state_of_root(new) == Some(state));
        world.happen(Event::Order(1));
        world.pass(2 * DAY);
        assert_eq!(world.active_root(), 1);
        assert_eq!(world.fingerprint(1), before);
        assert_eq!(world.trusted_roots(), [1]);
        assert_eq!(world.state_of_root(new), Some(AuthorityState::Retired));
    }
    // Afterwards it is too late, and that is what people are told.
    let mut world = World::new(2, 5);
    let new = world.order_a_rotation();
    world.pass(2 * DAY);
    world.happen(Event::Order(1));
    world.pass(MINUTE);
    assert_eq!(world.active_root(), new);
    assert_eq!(world.phase(), Phase::Blocked);
    assert!(
        world
            .message()
            .contains("root 1 was ordered and is not there")
    );
}

#[test]
fn a_rotation_is_not_given_up_while_its_order_cannot_be_read() {
    let mut world = World::new(2, 3);
    let new = world.order_a_rotation();
    world.pass_until(|world| world.trusted_roots().len() == 2);
    world.happen(Event::Orders(false));
    world.happen(Event::Lead(1));
    world.pass(20 * MINUTE);
    assert_eq!(world.state_of_root(new), Some(AuthorityState::Published));
    assert_eq!(world.phase(), Phase::Blocked);
    world.happen(Event::Orders(true));
    world.pass(2 * DAY);
    assert_eq!(world.trusted_roots(), [new]);
}

#[test]
fn the_number_of_a_root_that_was_given_up_is_not_used_again() {
    let mut world = World::new(2, 3);
    for _ in 0..10 {
        let new = world.order_a_rotation();
        world.pass(Duration::from_secs(10));
        world.happen(Event::Order(1));
        world.pass(MINUTE);
        assert_eq!(world.state_of_root(new), Some(AuthorityState::Retired));
        assert_eq!(world.next_root(), new + 1);
    }
}

#[test]
fn a_root_is_followed_by_another_before_it_grows_old_without_an_order() {
    let mut world = World::new(2, 5);
    // 40 days of life; a rotation begins when a sixth is left.
    world.pass(32 * DAY);
    assert_eq!(world.active_root(), 1);
    world.pass(4 * DAY);
    assert_eq!(world.trusted_roots(), [2]);
    world.pass(120 * DAY);
    assert_eq!(world.active_root(), 5, "and so on");
}

#[test]
fn an_undone_automatic_rotation_does_not_begin_again_by_itself() {
    let mut world = World::new(2, 5);
    world.pass(33 * DAY);
    world.pass_until(|world| world.state_of_root(2).is_some());
    world.happen(Event::Order(1));
    world.pass(DAY);
    assert_eq!(world.active_root(), 1);
    assert_eq!(world.roots_ever_made(), 2);
    // But when half of what was left then is over: a root that expires takes all
    // along.
    world.pass(4 * DAY);
    assert_eq!(world.trusted_roots(), [3]);
}

#[test]
fn a_workload_that_started_just_before_a_root_was_published_is_waited_for() {
    // Its replica of the CA and its file are of before, and the report, which may be
    // late, does not know of it yet.
    for (ahead, delay) in [(0, 0), (5, 0), (0, 10), (5, 10)] {
        let mut world = World::new(2, 4);
        world.happen(Event::Delay(Duration::from_secs(delay)));
        world.pass(Duration::from_secs(ahead));
        let new = world.order_a_rotation();
        world.pass_until(|world| world.state_of_root(new) == Some(AuthorityState::Published));
        for _ in 0..4 {
            world.happen(Event::Join(181));
            world.pass(Duration::from_secs(5));
        }
        world.pass(2 * DAY);
        assert_eq!(world.trusted_roots(), [new]);
    }
}

#[test]
fn a_report_of_the_first_moment_is_not_believed_when_nobody_reports_since() {
    for ahead in [0, 5] {
        let mut world = World::new(2, 4);
        world.happen(Event::Delay(Duration::ZERO));
        world.pass(Duration::from_secs(ahead));
        let new = world.order_a_rotation();
        world.pass_until(|world| world.state_of_root(new) == Some(AuthorityState::Published));
        // Everybody holds it, and says so; then a late replica serves somebody.
        world.pass(Duration::from_secs(5));
        world.happen(Event::Join(181));
        world.happen(Event::Reports(false));
        world.pass(3 * MINUTE);
        assert_eq!(world.active_root(), 1);
        world.happen(Event::Reports(true));
        world.pass(2 * DAY);
        assert_eq!(world.trusted_roots(), [new]);
    }
}

#[test]
fn a_root_is_followed_in_time_though_a_rotation_was_ordered_and_undone_before() {
    let mut world = World::new(2, 5);
    let new = world.order_a_rotation();
    world.pass_until(|world| world.state_of_root(new) == Some(AuthorityState::Published));
    world.happen(Event::Order(1));
    world.pass(32 * DAY);
    assert_eq!(world.trusted_roots(), [1]);
    world.pass(4 * DAY);
    assert_eq!(world.trusted_roots(), [3]);
}

#[test]
fn intermediates_follow_each_other_at_half_of_their_lives() {
    let mut world = World::new(2, 2);
    let first = world.active_intermediate();
    // 10 days of life.
    world.pass(5 * DAY - 30 * MINUTE);
    assert_eq!(world.active_intermediate(), first);
    world.pass(60 * MINUTE);
    assert_eq!(world.active_intermediate(), first + 1);
}

fn above(world: &mut World, does: Above) {
    world.happen(Event::Upstream(does));
}

#[test]
fn a_new_root_above_is_followed_however_late_it_answers_and_whoever_leads_meanwhile() {
    for late in [Duration::ZERO, MINUTE, 20 * MINUTE] {
        let mut world = World::below_an_upstream(3, 4);
        world.pass(2 * DAY);
        above(&mut world, Above::Delay(late));
        above(&mut world, Above::Another);
        world.pass(late / 2);
        // Who leads next knows neither of the question nor of its answer.
        world.happen(Event::Lead(1));
        world.pass(3 * DAY);
        assert!(world.follows_upstream(), "{late:?}");
        assert_eq!(world.trusted_roots().len(), 1);
        assert_eq!(world.phase(), Phase::Settled);
    }
}

#[test]
fn an_upstream_that_is_away_is_asked_until_it_signs() {
    let mut world = World::below_an_upstream(2, 4);
    above(&mut world, Above::Away(true));
    above(&mut world, Above::Another);
    // Half of the intermediate's life is over, and it signs on.
    world.pass(6 * DAY);
    assert!(!world.follows_upstream());
    above(&mut world, Above::Away(false));
    world.pass(2 * DAY);
    assert!(world.follows_upstream());
    assert_eq!(world.trusted_roots().len(), 1);
}

#[test]
fn a_rotation_above_that_is_taken_back_there_is_taken_back_here() {
    let mut world = World::below_an_upstream(2, 4);
    let before = world.active_root();
    above(&mut world, Above::Another);
    world.pass_until(|world| world.trusted_roots().len() == 2);
    above(&mut world, Above::Back);
    world.pass(3 * DAY);
    assert_eq!(world.active_root(), before);
    assert_eq!(world.trusted_roots(), [before]);
}

#[test]
fn a_root_that_an_answer_names_beside_the_one_that_signs_stays_trusted() {
    let mut world = World::below_an_upstream(2, 4);
    above(&mut world, Above::Both(true));
    above(&mut world, Above::Another);
    world.pass(3 * DAY);
    assert!(world.follows_upstream());
    assert_eq!(world.trusted_roots().len(), 2);
    above(&mut world, Above::Both(false));
    above(&mut world, Above::Rumour);
    world.pass(3 * DAY);
    assert_eq!(world.trusted_roots().len(), 1);
}
