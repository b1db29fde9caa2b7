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
            None if root.authority.is_valid_at(now) && !has_gone_on(slots, facts) => {
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
    let can_grow = root.authority.not_after > current.authority.not_after + WORTHWHILE
        && !has_gone_on(slots, facts);
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

/// Whether the upstream signs under another root by now: what it signs next is of
/// no use before that root signs, and one of those is here already.
fn has_gone_on(slots: &Slots, facts: &Facts) -> bool {
    let others = slots.roots.iter().filter(|root| {
        !root.authority.is_gone()
            && !root
                .authority
                .is(crate::issuer::status::AuthorityState::Active)
    });
    facts.upstream.is_some()
        && others
            .map(|root| root.authority.generation)
            .any(|root| newest_usable(slots, root, facts.now).is_some())
}

fn activate(intermediate: &Intermediate) -> Step {
    Step::ActivateIntermediate {
        generation: intermediate.authority.generation,
    }
}

fn pause(current: &Intermediate) -> Duration {
    MAX_PAUSE.min(current.authority.life() / PAUSE_PART)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Lifetimes;
    use crate::issuer::status::AuthorityState as State;
    use crate::rotation::holders::HolderReport;
    use crate::rotation::orders::Order;
    use crate::rotation::slots::{Authority, Automatic, Root};
    use crate::rotation::{UpstreamFacts, next};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn authority(generation: u64, state: State, made: SystemTime, life: Duration) -> Authority {
        Authority {
            generation,
            state,
            fingerprint: generation.to_string(),
            serial: generation.to_string(),
            key_type: "P-256".to_owned(),
            made,
            not_before: made,
            not_after: made + life,
            stopped: None,
        }
    }

    /// An upstream that signed under root 1, and then once under root 2.
    fn gone_on(first: SystemTime, second: SystemTime) -> Slots {
        let root = |generation, state, made| Root {
            authority: authority(generation, state, made, 3650 * DAY),
            has_key: false,
            listed: true,
        };
        let intermediate = |generation, state, made| Intermediate {
            authority: authority(generation, state, made, 30 * DAY),
            root: generation,
        };
        Slots {
            sequence: 1,
            automatic: Some(Automatic {
                generation: 2,
                ordered: None,
            }),
            roots: vec![
                root(1, State::Active, first),
                root(2, State::Prepared, second),
            ],
            intermediates: vec![
                intermediate(1, State::Active, first),
                intermediate(2, State::Published, second),
            ],
            token_keys: Vec::new(),
        }
    }

    #[test]
    fn an_upstream_with_a_new_root_is_asked_once_and_the_root_is_published() {
        let began = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        for (days, what) in [(16, "at half of its life"), (31, "when it has expired")] {
            let now = began + days * DAY;
            let facts = Facts {
                now,
                settled_for: Duration::ZERO,
                settle: Duration::from_secs(30),
                wanted: Some(Order::default()),
                holders: HolderReport::default(),
                lifetimes: Lifetimes {
                    default: DAY,
                    max: DAY,
                    root: 3650 * DAY,
                    intermediate: 30 * DAY,
                },
                upstream: Some(UpstreamFacts::default()),
            };
            assert_eq!(
                next(&gone_on(began, now), &facts),
                Step::PublishRoot { generation: 2 },
                "{what}"
            );
        }
    }
}
