//! Rotations that people order of a CA outside Kubernetes, and that go on by
//! themselves then.

use std::time::Duration;

use bulkhead_ca::steer::Wish;

use super::world::World;

/// Programs on one machine hear of each other at once.
const PAUSE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_was_ordered_ends_by_itself_and_one_that_was_undone_goes_back() {
    let mut world = World::start(|config| config.rotation_pause = PAUSE).await;
    let first = world.roots().remove(0);

    world.order(Wish::Rotate).await;
    world.is_published().await;
    let published = world.roots();
    let second = published.iter().find(|root| **root != first).unwrap();
    world.is_active(second).await;
    world.is_alone(second).await;

    world.order(Wish::Rotate).await;
    world.is_published().await;
    let published = world.roots();
    let third = published.iter().find(|root| *root != second).unwrap();
    world.is_active(third).await;
    world.order(Wish::Undo).await;
    world.is_active(second).await;
    world.is_alone(second).await;
    world.had_no_failure();
}
