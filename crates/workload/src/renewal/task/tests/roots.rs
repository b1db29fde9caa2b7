//! Roots that come and go while a workload runs.

use super::world::{DAY, FIRST, HOUR, Line, MINUTE, SECOND, World};

/// Longer than it takes to see what a file says.
const SEEN: std::time::Duration = SECOND.saturating_mul(10);

#[tokio::test(start_paused = true)]
async fn a_new_root_is_taken_from_the_file_without_asking_the_ca() {
    let world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    let serial = world.serial();
    world.write_document(&[&old, &next.root], FIRST + 1);
    world.pass(SEEN).await;
    assert_eq!(world.roots(), [old, next.root]);
    assert_eq!(world.sequence(), FIRST + 1);
    assert_eq!(world.serial(), serial, "with the certificate that it had");
    assert_eq!(world.ca.asked_at().len(), 1);
    assert!(world.is_ready());
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
    assert_eq!(world.roots(), [old, next.root]);
    assert_eq!(world.sequence(), FIRST + 1);
}

#[tokio::test(start_paused = true)]
async fn workloads_renew_early_and_once_when_another_root_signs() {
    let mut world = World::start().await;
    let (old, next) = (world.ca.root(), Line::new(world.ca.now()));
    let new_root = next.root.clone();
    world.write_document(&[&old, &new_root], FIRST + 1);
    world.pass(SEEN).await;
    assert_eq!(world.ca.asked_at().len(), 1, "it does not sign yet");
    assert_eq!(world.signing_root(), old);

    world.ca.sign_by(next);
    world.ca.publish(&[&new_root, &old], FIRST + 2);
    world.write_document(&[&new_root, &old], FIRST + 2);
    let switched = world.ca.now();
    world.next_certificate().await;
    let took = world.ca.now().duration_since(switched).unwrap();
    assert!(took <= 10 * MINUTE + SEEN, "{took:?}");
    assert_eq!(world.signing_root(), new_root);
    world.pass(6 * HOUR).await;
    assert_eq!(world.ca.asked_at().len(), 2, "once");

    world.write_document(&[&new_root], FIRST + 3);
    world.pass(SEEN).await;
    assert_eq!(world.roots(), [new_root]);
    assert_eq!(world.ca.asked_at().len(), 2, "its own root signs");
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

    world.ca.sign_by(next);
    world.ca.publish(&[&new_root], FIRST + 1);
    world.renew();
    world.next_certificate().await;
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
