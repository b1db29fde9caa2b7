//! Intermediates: the next one is made at half of the life of the one that
//! signs, and takes over a little later. Leaves carry their intermediate with
//! them, so that no workload must have heard of it.

use std::time::{Duration, SystemTime};

use super::slots::{Intermediate, Slots};
use super::{Facts, Step};

/// The part of its life after which an intermediate gets a successor.
const HALF: f64 = 0.5;

/// The longest time between the making of a successor and its taking over, in
/// which the other replicas learn of it.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What of the pause a short-lived intermediate has, as a part of its life.
const PAUSE_PART: u32 = 100;

/// A successor that would not be good for longer than this beyond the one that
/// signs is not worth making: it is the root that is at its end.
const WORTHWHILE: Duration = Duration::from_secs(60);

pub(super) fn next(slots: &Slots, facts: &Facts) -> Option<Step> {
    let (root, current) = (slots.active_root()?, slots.active_intermediate()?);
    let generation = root.authority.generation;
    let now = facts.now;
    let usable = newest_usable(slots, generation, now);
    if !current.authority.is_valid_at(now) {
        // Nothing can be signed meanwhile: there is nothing to wait for.
        return match usable {
            Some(next) => Some(activate(next)),
            None if root.authority.is_valid_at(now) => {
                Some(Step::MakeIntermediate { root: generation })
            }
            None => None,
        };
    }
    let has_changed = facts.upstream.is_some_and(|upstream| upstream.has_changed);
    if has_changed && facts.wanted.is_some() {
        return Some(Step::MakeIntermediate { root: generation });
    }
    if let Some(useless) = useless(slots, now) {
        return Some(Step::RetireIntermediate {
            generation: useless.authority.generation,
        });
    }
    let can_grow = root.authority.not_after > current.authority.not_after + WORTHWHILE;
    match usable {
        Some(next) if facts.settled_for >= pause(current) => Some(activate(next)),
        Some(_) => None,
        None if current.authority.has_lived(HALF, now) && can_grow => {
            Some(Step::MakeIntermediate { root: generation })
        }
        None => None,
    }
}

/// An intermediate of a root that may begin to sign: it is valid, and in the
/// first half of its life.
pub(super) fn newest_usable(slots: &Slots, root: u64, now: SystemTime) -> Option<&Intermediate> {
    let below = slots.intermediates.iter().rev();
    below
        .filter(|intermediate| intermediate.root == root)
        .find(|intermediate| {
            let authority = &intermediate.authority;
            authority.is(crate::issuer::status::AuthorityState::Published)
                && authority.stopped.is_none()
                && authority.is_valid_at(now)
                && !authority.has_lived(HALF, now)
        })
}

/// One of the signing root's that will never sign: it was made by a clock that
/// was wrong, or too long ago, or another took its place. Those of other roots
/// stay as long as their root, which may yet sign again.
fn useless(slots: &Slots, now: SystemTime) -> Option<&Intermediate> {
    let root = slots.active_root()?.authority.generation;
    let next = newest_usable(slots, root, now).map(|next| next.authority.generation);
    slots.intermediates.iter().find(|intermediate| {
        intermediate.root == root
            && intermediate
                .authority
                .is(crate::issuer::status::AuthorityState::Published)
            && next != Some(intermediate.authority.generation)
    })
}

fn activate(intermediate: &Intermediate) -> Step {
    Step::ActivateIntermediate {
        generation: intermediate.authority.generation,
    }
}

fn pause(current: &Intermediate) -> Duration {
    MAX_PAUSE.min(current.authority.life() / PAUSE_PART)
}
