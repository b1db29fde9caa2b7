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
                successor(generation, facts)
            }
            None => None,
        };
    }
    let has_changed = facts.upstream.is_some_and(|upstream| upstream.has_changed);
    if has_changed
        && facts.wanted.is_some()
        && !is_turned_down(slots, facts)
        && let Some(asked) = successor(generation, facts)
    {
        return Some(asked);
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
        None if current.authority.has_lived(HALF, now) && can_grow => successor(generation, facts),
        None => None,
    }
}

/// How another comes about: by this root, or by the upstream, if that is not
/// being asked already. Nothing else waits for its answer.
fn successor(root: u64, facts: &Facts) -> Option<Step> {
    match facts.upstream {
        None => Some(Step::MakeIntermediate { root }),
        Some(upstream) => (!upstream.is_asked).then_some(Step::AskUpstream),
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

/// Whether people undid what the upstream began, and want the root that signs:
/// asked again, it would begin again. At half of the life of what signs it is
/// asked all the same, because nothing else could sign after that.
fn is_turned_down(slots: &Slots, facts: &Facts) -> bool {
    let (Some(root), Some(current)) = (slots.active_root(), slots.active_intermediate()) else {
        return false;
    };
    let generation = root.authority.generation;
    let ordered = facts.wanted.and_then(|order| order.root_generation);
    let mut roots = slots.roots.iter();
    ordered == Some(generation)
        && super::wanted_root(slots, ordered) == generation
        && roots.any(|other| other.authority.generation > generation)
        && !current.authority.has_lived(HALF, facts.now)
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
            leaf_life: Some(DAY),
        };
        let intermediate = |generation, state, made| Intermediate {
            authority: authority(generation, state, made, 30 * DAY),
            root: generation,
            own: false,
        };
        Slots {
            sequence: 1,
            upstream: None,
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

    fn facts(now: SystemTime) -> Facts {
        Facts {
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
        }
    }

    #[test]
    fn a_rotation_of_the_upstreams_that_was_undone_begins_again_only_when_it_must() {
        let began = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let asked_again = |now| Facts {
            wanted: Some(Order {
                root_generation: Some(1),
                force_generation: None,
            }),
            // As after a restart: nobody knows whether it has changed.
            upstream: Some(UpstreamFacts {
                has_changed: true,
                is_asked: false,
            }),
            ..facts(now)
        };
        let ask = Step::AskUpstream;
        let undone = gone_on(began, began + DAY);
        let stays = next(&undone, &asked_again(began + 2 * DAY));
        assert_ne!(stays, ask, "somebody has just said no");
        let late = next(&undone, &asked_again(began + 16 * DAY));
        assert_eq!(late, ask, "nothing else could sign soon");
        // Without that, whatever may have changed is asked for.
        let first = Slots {
            roots: vec![undone.roots[0].clone()],
            intermediates: vec![undone.intermediates[0].clone()],
            ..undone
        };
        assert_eq!(next(&first, &asked_again(began + 2 * DAY)), ask);
    }

    #[test]
    fn an_upstream_with_a_new_root_is_asked_once_and_the_root_is_published() {
        let began = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        for (days, what) in [(16, "at half of its life"), (31, "when it has expired")] {
            let now = began + days * DAY;
            assert_eq!(
                next(&gone_on(began, now), &facts(now)),
                Step::PublishRoot { generation: 2 },
                "{what}"
            );
        }
    }
    /// One of the CA's own roots, and what signs below it: for a month, since then.
    fn own(began: SystemTime, root_life: Duration) -> Slots {
        Slots {
            sequence: 1,
            roots: vec![Root {
                authority: authority(1, State::Active, began, root_life),
                has_key: true,
                listed: false,
                leaf_life: Some(DAY),
            }],
            intermediates: vec![below(1, State::Active, began, 30 * DAY)],
            ..Slots::default()
        }
    }

    fn below(generation: u64, state: State, made: SystemTime, life: Duration) -> Intermediate {
        Intermediate {
            authority: authority(generation, state, made, life),
            root: 1,
            own: false,
        }
    }

    /// What is to be done about intermediates, where nothing changed for this long.
    fn step(slots: &Slots, now: SystemTime, settled_for: Duration) -> Option<Step> {
        let facts = Facts {
            upstream: None,
            settled_for,
            ..facts(now)
        };
        super::next(slots, &facts)
    }

    #[test]
    fn a_successor_is_made_at_half_of_a_life_and_signs_when_all_replicas_know_it() {
        let began = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let (half, second) = (began + 15 * DAY, Duration::from_secs(1));
        let mut slots = own(began, 3650 * DAY);
        assert_eq!(step(&slots, half - second, DAY), None);
        let made = Some(Step::MakeIntermediate { root: 1 });
        assert_eq!(step(&slots, half, Duration::ZERO), made);
        let successor = below(2, State::Published, half, 30 * DAY);
        slots.intermediates.push(successor);
        let minute = 60 * second;
        assert_eq!(step(&slots, half + minute, minute - second), None);
        let signs = Some(Step::ActivateIntermediate { generation: 2 });
        assert_eq!(step(&slots, half + minute, minute), signs);
    }

    #[test]
    fn below_a_root_at_its_end_no_successor_is_made_that_is_good_for_no_longer() {
        let began = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let late = began + 20 * DAY;
        let ends = 30 * DAY + WORTHWHILE;
        assert_eq!(step(&own(began, ends), late, DAY), None);
        let longer = own(began, ends + Duration::from_secs(1));
        let made = Some(Step::MakeIntermediate { root: 1 });
        assert_eq!(step(&longer, late, DAY), made);
    }

    #[test]
    fn a_successor_that_is_not_in_the_first_half_of_its_life_never_signs() {
        let began = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let mut slots = own(began, 3650 * DAY);
        // By a replica whose clock was some days ahead.
        let made = began + 4 * DAY;
        slots
            .intermediates
            .push(below(2, State::Published, made, 10 * DAY));
        let dropped = Some(Step::RetireIntermediate { generation: 2 });
        let signs = Some(Step::ActivateIntermediate { generation: 2 });
        for (days, what) in [(3, &dropped), (4, &signs), (8, &signs), (9, &dropped)] {
            assert_eq!(&step(&slots, began + days * DAY, DAY), what, "day {days}");
        }
    }
}
