//! Rotations of everything, one after the other, by the real CA and under traffic:
//! roots that are ordered, some in vain; intermediates that grow old; and
//! certificates of both proxies all the while. For thousands, with the figures:
//!
//! ```console
//! $ BULKHEAD_SOAK_ROOTS=1000 cargo test --release -p bulkhead-tests --test loopback soak -- --nocapture
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_ca::steer::Wish;
use bulkhead_pki::certificate::{Certificate, Fingerprint};
use bulkhead_tests::config;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::world::World;
use super::{SOON, renew, roots};

/// Two proxies hear of everything from the CA itself, with their next certificate.
const PAUSE: Duration = Duration::from_millis(20);

/// Of an intermediate: the next one takes over when half of it is over, and no
/// certificate is good for less than the other half.
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(120);

/// One rotation in so many is undone before the new root signs.
const UNDONE: usize = 4;

/// So often, and after no fewer than so many, an intermediate is left to grow old,
/// which takes a minute: a shorter life would end while a busy machine is held up.
const GROWN_OLD: usize = 5;
const GROWS_OLD: usize = 16;

/// How long a proxy keeps a certificate here.
const RENEW_EVERY: Duration = Duration::from_millis(20);

/// What the certificates of both proxies were, and what signed them.
#[derive(Default)]
struct Seen {
    leaves: BTreeSet<String>,
    intermediates: BTreeSet<Fingerprint>,
    roots: BTreeSet<Fingerprint>,
    undone: usize,
    grown_old: usize,
}

impl Seen {
    fn note(&mut self, world: &World) {
        for held in world.holdings() {
            let identity = held.identity();
            self.leaves.insert(identity.serial());
            let above = identity.chain().intermediates();
            self.intermediates
                .extend(above.iter().map(Certificate::fingerprint));
            self.roots.insert(identity.signing_root().fingerprint());
        }
    }

    /// Has both proxies renew without an end, until something is so.
    async fn renew_until(&mut self, world: &World, what: &str, is_so: impl Fn(&World) -> bool) {
        let deadline = Instant::now() + SOON;
        let mut pace = interval(RENEW_EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !is_so(world) {
            assert!(Instant::now() < deadline, "{what}");
            pace.tick().await;
            for proxy in world.proxies() {
                renew(proxy).await;
            }
            self.note(world);
        }
    }

    /// A new root is ordered and given out, and then nobody wants it any more.
    async fn undo(&mut self, world: &mut World) {
        let before = world.roots().remove(0);
        world.order(Wish::Rotate).await;
        world.is_published().await;
        world.order(Wish::Undo).await;
        self.is_alone(world, &before).await;
        self.undone += 1;
    }

    /// A new root signs, and the one before it goes.
    async fn replace(&mut self, world: &mut World) {
        let before = world.roots().remove(0);
        world.order(Wish::Rotate).await;
        world.is_published().await;
        let published = world.roots();
        let next = published.into_iter().find(|root| *root != before).unwrap();
        let signs = |world: &World| world.roots().first() == Some(&next);
        self.renew_until(world, "another root signs", signs).await;
        world.is_active(&next).await;
        self.is_alone(world, &next).await;
    }

    async fn is_alone(&mut self, world: &mut World, root: &Certificate) {
        let is_alone = |world: &World| {
            let held = world.holdings();
            world.roots() == std::slice::from_ref(root) && held.iter().all(|held| roots(held) == 1)
        };
        self.renew_until(world, "the other root leaves", is_alone)
            .await;
        world.is_alone(root).await;
    }

    /// The intermediate that signs is followed by another under the same root.
    async fn grow_old(&mut self, world: &mut World) {
        self.note(world);
        let before = self.intermediates.len();
        let signer = |world: &World| {
            let held = world.holdings().map(|held| {
                let above = held.identity().chain().intermediates();
                above.iter().map(Certificate::fingerprint).collect()
            });
            BTreeSet::<Vec<Fingerprint>>::from(held)
        };
        let old = signer(world);
        let is_another = |world: &World| signer(world).is_disjoint(&old);
        self.renew_until(world, "another intermediate signs", is_another)
            .await;
        world.goes_on().await;
        assert!(self.intermediates.len() > before);
        self.grown_old += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_follow_each_other_without_an_end_and_no_request_or_connection_is_lost() {
    let mut world = World::start(|config| {
        config.rotation_pause = PAUSE;
        config.lifetimes.intermediate = INTERMEDIATE_LIFE;
    })
    .await;
    let mut seen = Seen::default();
    let rounds = config::soak_roots();
    let grows_old = GROWS_OLD.max(rounds / GROWN_OLD);
    let began = Instant::now();
    for round in 0..rounds {
        if round % grows_old == grows_old - 1 {
            seen.grow_old(&mut world).await;
        }
        if round % UNDONE == 0 {
            seen.undo(&mut world).await;
        }
        seen.replace(&mut world).await;
    }
    world.had_no_failure();
    assert!(seen.roots.len() > rounds, "every root signed");
    assert!(seen.intermediates.len() >= seen.roots.len());
    println!(
        "{} rotations without a failed request: {} roots ({} more were given up), {} intermediates ({} grown old), {} certificates and {} requests in {:?}",
        seen.roots.len() + seen.intermediates.len() + seen.leaves.len(),
        seen.roots.len(),
        seen.undone,
        seen.intermediates.len(),
        seen.grown_old,
        seen.leaves.len(),
        world.traffic.answered(),
        began.elapsed(),
    );
}
