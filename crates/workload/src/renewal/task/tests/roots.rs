//! Roots that come and go while a workload runs.

use super::world::{DAY, FIRST, HOUR, Line, MINUTE, SECOND, World};

/// Longer than it takes to see what a file says.
const SEEN: std::time::Duration = SECOND.saturating_mul(10);

#[tokio::test(start_paused = true)]
async fn a_new_root_is_taken_from_the_file_before_the_ca_was_asked() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    let serial = world.serial();
    world.ca.publish(&[&old, &next.root], FIRST + 1);
    world.write_document(&[&old, &next.root], FIRST + 1);
    world.next_bundle().await;
    assert_eq!(world.roots(), [old, next.root]);
    assert_eq!(world.sequence(), FIRST + 1);
    assert_eq!(world.serial(), serial, "with the certificate that it had");
    assert_eq!(world.ca.asked_at().len(), 1);
    assert!(world.is_ready());

    // Then the CA is asked whether it knows it, and once.
    let taken = world.ca.now();
    world.next_certificate().await;
    assert!(world.ca.now().duration_since(taken).unwrap() <= 11 * MINUTE);
    world.pass(6 * HOUR).await;
    assert_eq!(world.ca.asked_at().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_root_that_somebody_else_wrote_into_the_file_is_held_for_minutes_and_not_again() {
    let mut world = World::start().await;
    let (ours, forged) = (world.ca.root(), Line::new(world.ca.now()));
    world.pass(HOUR).await;
    let now = FIRST + HOUR.as_secs();
    world.write_document(&[&ours, &forged.root], now);
    world.next_bundle().await;
    assert_eq!(world.roots().len(), 2, "nobody can tell yet");
    // As the CA puts it right; the file alone takes nothing back.
    world.write_document(&[&ours], FIRST);
    world.pass(21 * MINUTE).await;
    assert_eq!(world.roots(), std::slice::from_ref(&ours));
    assert_eq!(world.sequence(), FIRST);
    assert_eq!(world.counted_bundles("refuted"), 1);

    // From then on the CA is asked first.
    world.write_document(&[&ours, &forged.root], now + HOUR.as_secs() / 2);
    world.pass(HOUR).await;
    assert_eq!(world.roots(), std::slice::from_ref(&ours));
    assert_eq!(world.counted_bundles("unconfirmed"), 1, "said once");

    let next = Line::new(world.ca.now());
    let later = now + 2 * HOUR.as_secs();
    world.ca.publish(&[&ours, &next.root], later);
    world.write_document(&[&ours, &next.root], later);
    world.pass(2 * HOUR).await;
    assert_eq!(world.roots(), [ours, next.root], "which says so");
    assert_eq!(world.state().trust.problem, None);
}

#[tokio::test(start_paused = true)]
async fn a_version_of_the_future_in_the_file_is_never_held_and_holds_nothing_up() {
    let world = World::start().await;
    let (ours, forged) = (world.ca.root(), Line::new(world.ca.now()));
    for sequence in [u64::MAX, 2 * FIRST, FIRST + DAY.as_secs()] {
        world.write_document(&[&ours, &forged.root], sequence);
        world.pass(20 * MINUTE).await;
        assert_eq!(world.roots(), std::slice::from_ref(&ours));
        assert!(world.state().trust.problem.unwrap().contains("the future"));
    }
    let asks = world.ca.asked_at().len();
    assert!(
        (2..30).contains(&asks),
        "the CA is asked, with pauses: {asks}"
    );

    let next = Line::new(world.ca.now());
    let now = FIRST + HOUR.as_secs();
    world.ca.publish(&[&ours, &next.root], now);
    world.write_document(&[&ours, &next.root], now);
    world.pass(SEEN).await;
    assert_eq!(world.roots(), [ours, next.root], "a rotation goes on");
}

#[tokio::test(start_paused = true)]
async fn a_ca_whose_clock_was_wrong_once_is_followed_all_the_same() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    let ahead = FIRST + 30 * DAY.as_secs();
    world.ca.publish(&[&old, &next.root], ahead);
    world.write_document(&[&old, &next.root], ahead);
    world.next_certificate().await;
    assert_eq!(
        world.roots(),
        [old, next.root.clone()],
        "the CA said it too"
    );
    world.write_document(&[&next.root, &world.ca.root()], ahead + 1);
    world.pass(SEEN).await;
    assert_eq!(world.sequence(), ahead + 1);
}

#[tokio::test(start_paused = true)]
async fn roots_without_a_version_are_not_taken_where_the_ca_says_versions() {
    let world = World::start().await;
    let (ours, forged) = (world.ca.root(), Line::new(world.ca.now()));
    world.pass(SEEN).await;
    world.remove("bundle.json");
    world.write_roots(&[&ours, &forged.root]);
    world.pass(HOUR).await;
    assert_eq!(world.roots(), [ours]);
    assert_eq!(world.counted_bundles("unconfirmed"), 1, "said once");
}

#[tokio::test(start_paused = true)]
async fn a_first_certificate_of_a_replica_that_is_behind_is_replaced_soon() {
    let mut world = World::start_behind().await;
    let (old, new_root) = (world.signing_root(), world.ca.root());
    assert_ne!(old, new_root);
    let started = world.ca.now();
    world.next_certificate().await;
    let took = world.ca.now().duration_since(started).unwrap();
    assert!(took <= MINUTE, "{took:?}");
    assert_eq!(world.signing_root(), new_root);
    world.pass(SEEN).await;
    assert_eq!(world.roots(), [new_root]);
    assert_eq!(world.state().trust.problem, None);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_behind_takes_nothing_back() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    world.ca.publish(&[&old, &next.root], FIRST + 2);
    world.renew();
    world.next_certificate().await;
    assert_eq!(world.roots().len(), 2);
    for sequence in [FIRST, FIRST + 1, FIRST + 2] {
        world.write_document(&[&old], sequence);
        world.pass(SEEN).await;
        assert_eq!(world.roots().len(), 2);
    }
    world.write_document(&[&old], FIRST + 3);
    world.pass(SEEN).await;
    assert_eq!(world.roots().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_replica_of_the_ca_that_is_behind_takes_nothing_back() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    world.write_document(&[&old, &next.root], FIRST + 1);
    world.pass(SEEN).await;
    world.renew();
    world.next_certificate().await;
    assert_eq!(world.roots(), [old.clone(), next.root.clone()]);
    assert_eq!(world.sequence(), FIRST + 1);

    // Another replica knows it; after that no one that is behind is believed.
    world.ca.publish(&[&old, &next.root], FIRST + 1);
    world.renew();
    world.next_certificate().await;
    world.ca.publish(&[&old], FIRST);
    world.pass(HOUR).await;
    world.renew();
    world.next_certificate().await;
    assert_eq!(world.roots(), [old, next.root]);
}

#[tokio::test(start_paused = true)]
async fn workloads_renew_early_and_once_when_another_root_signs() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    let new_root = next.root.clone();
    world.ca.publish(&[&old, &new_root], FIRST + 1);
    world.write_document(&[&old, &new_root], FIRST + 1);
    world.next_certificate().await;
    assert_eq!(world.signing_root(), old, "the new one does not sign yet");

    world.ca.sign_by(next);
    world.ca.publish(&[&new_root, &old], FIRST + 2);
    world.write_document(&[&new_root, &old], FIRST + 2);
    let switched = world.ca.now();
    world.next_certificate().await;
    let took = world.ca.now().duration_since(switched).unwrap();
    assert!(took <= 10 * MINUTE + SEEN, "{took:?}");
    assert_eq!(world.signing_root(), new_root);
    world.pass(6 * HOUR).await;
    assert_eq!(world.ca.asked_at().len(), 3, "once");

    world.write_document(&[&new_root], FIRST + 3);
    world.pass(HOUR).await;
    assert_eq!(world.roots(), [new_root]);
    assert_eq!(world.ca.asked_at().len(), 3, "its own root signs");
}

#[tokio::test(start_paused = true)]
async fn a_ca_whose_first_root_does_not_sign_is_not_asked_again_and_again() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    world.ca.publish(&[&next.root, &old], FIRST + 1);
    world.renew();
    world.next_certificate().await;
    world.next_certificate().await;
    let asks = world.ca.asked_at().len();
    world.pass(11 * HOUR).await;
    assert_eq!(world.ca.asked_at().len(), asks);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_without_the_root_of_ones_own_certificate_is_refused_until_it_fits() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    let new_root = next.root.clone();
    world.write_document(&[&new_root], FIRST + 1);
    world.pass(MINUTE).await;
    assert_eq!(world.roots(), [old]);
    let problem = world.state().trust.problem.unwrap();
    assert!(problem.contains("peers would not accept"), "{problem}");
    assert_eq!(world.counted_bundles("own_chain_rejected"), 1, "said once");

    // Nobody has to ask for it: the CA is tried until its answer fits.
    assert!(world.ca.asked_at().len() > 1);
    world.ca.sign_by(next);
    world.ca.publish(&[&new_root], FIRST + 1);
    let signs = world.ca.now();
    world.next_certificate().await;
    let took = world.ca.now().duration_since(signs).unwrap();
    assert!(took <= 5 * MINUTE, "{took:?}");
    world.pass(SEEN).await;
    assert_eq!(world.roots(), [new_root]);
    assert_eq!(world.state().trust.problem, None);
}

#[tokio::test(start_paused = true)]
async fn files_that_say_nothing_usable_change_nothing_and_are_looked_at_again() {
    let world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    world.pass(SEEN).await;
    for (text, outcome) in [
        ("", "malformed"),
        ("{", "malformed"),
        (r#"{"keys": [], "spiffe_sequence": 999}"#, "malformed"),
        (&"x".repeat(2 * 1024 * 1024), "unreadable"),
    ] {
        let before = world.counted_bundles(outcome);
        world.write("bundle.json", text);
        world.pass(MINUTE).await;
        assert_eq!(world.counted_bundles(outcome), before + 1, "said once");
        assert_eq!(world.roots(), std::slice::from_ref(&old));
        assert!(world.state().trust.problem.is_some());
        assert!(world.is_ready());
    }
    world.write_document(&[&old, &next.root], FIRST + 1);
    world.pass(SEEN).await;
    assert_eq!(world.roots(), [old, next.root]);
    assert_eq!(world.state().trust.problem, None);
}

#[tokio::test(start_paused = true)]
async fn files_that_go_leave_the_bundle_as_it_is() {
    let world = World::start().await;
    let old = world.ca.root();
    world.pass(SEEN).await;
    world.remove("bundle.json");
    world.remove("ca.crt");
    world.pass(SEEN).await;
    assert_eq!(world.roots(), std::slice::from_ref(&old));
    assert_eq!(world.counted_bundles("unreadable"), 1);
    world.write_document(&[&old], FIRST);
    world.pass(SEEN).await;
    assert_eq!(world.state().trust.problem, None);
}

#[tokio::test(start_paused = true)]
async fn roots_without_a_version_are_believed_when_they_change_and_not_before() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    world.remove("bundle.json");
    world.ca.publish(&[&old], 0);
    world.renew();
    world.next_certificate().await;
    world.pass(SEEN).await;
    let other = Line::new(world.ca.now());
    world.write_roots(&[&old, &next.root]);
    world.pass(SEEN).await;
    assert_eq!(world.roots(), [old.clone(), next.root.clone()]);
    assert_eq!(world.sequence(), 0);

    world.renew();
    world.next_certificate().await;
    assert_eq!(world.roots().len(), 2, "the CA says what it said before");

    world.ca.publish(&[&old, &other.root], 0);
    world.renew();
    world.next_certificate().await;
    assert_eq!(world.roots(), [old, other.root]);
    world.pass(DAY).await;
    assert_eq!(world.roots().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn workloads_that_nobody_reports_tell_the_ca_soon_and_once_what_they_hold() {
    let mut world = World::start_without_control().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    world.pass(HOUR).await;
    assert_eq!(world.ca.asked_at().len(), 1, "it holds what it was given");

    world.ca.publish(&[&old, &next.root], FIRST + 1);
    world.write_document(&[&old, &next.root], FIRST + 1);
    let published = world.ca.now();
    world.next_certificate().await;
    let took = world.ca.now().duration_since(published).unwrap();
    assert!(took <= 10 * MINUTE + SEEN, "{took:?}");
    assert_eq!(world.roots().len(), 2, "the CA hears of both");
    world.pass(HOUR).await;
    assert_eq!(world.ca.asked_at().len(), 2, "once");

    // The keys of tokens have changed, and no root.
    world.write_document(&[&old, &next.root], FIRST + 2);
    world.pass(HOUR).await;
    assert_eq!(world.sequence(), FIRST + 2);
    assert_eq!(world.ca.asked_at().len(), 2);
}
