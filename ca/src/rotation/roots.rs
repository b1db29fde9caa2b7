//! The steps of a root rotation: there, and back again until the old root is
//! gone.

use std::time::Duration;

use super::intermediates::newest_usable;
use super::slots::{Automatic, Intermediate, Root, Slots};
use super::{Facts, STUCK, Step, Waiting};
use crate::issuer::status::{AuthorityState as State, Phase};

/// A rotation begins by itself when this part of the root's life is left ...
const LAST_PART: f64 = 1.0 / 6.0;

/// ... or when it is this long, whichever is less.
const LAST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How much longer than a certificate's life is waited for its end: replicas
/// learn late that another root signs, and clocks differ.
const MARGIN: Duration = Duration::from_secs(300);

/// The root that is to sign.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) generation: u64,
    automatic: bool,
}

/// What an order cannot be fulfilled for.
pub(super) struct BadOrder(String);

/// The next step, or what a rotation waits for.
pub(super) fn next(slots: &Slots, facts: &Facts) -> Result<Step, Waiting> {
    let active = slots
        .active_root()
        .ok_or_else(|| waiting(0, Phase::Blocked, ""))?;
    if facts.wanted.is_none() {
        return Err(unknown(active, slots, facts));
    }
    let target = target(slots, facts).map_err(|BadOrder(message)| {
        waiting(active.authority.generation, Phase::Blocked, message)
    })?;
    if let Some(dropped) = slots.roots.iter().find(|root| is_unwanted(root, target)) {
        return Ok(Step::RetireRoot {
            generation: dropped.authority.generation,
        });
    }
    let Some(root) = slots.root(target.generation) else {
        return make(target, facts);
    };
    match root.authority.state {
        State::Prepared => Ok(Step::PublishRoot {
            generation: target.generation,
        }),
        State::Published => switch_to(root, active, slots, facts),
        State::Active | State::Retired => retire_others(root, slots, facts),
    }
}

/// Which root is to sign: what was ordered, unless the CA began a rotation by
/// itself since; else the one that signs, until that grows old.
pub(super) fn target(slots: &Slots, facts: &Facts) -> Result<Target, BadOrder> {
    let ordered = facts.wanted.and_then(|order| order.root_generation);
    let there = |generation| {
        slots
            .root(generation)
            .is_some_and(|root| !root.authority.is_gone())
    };
    let active = slots
        .active_root()
        .ok_or_else(|| BadOrder("no root signs".to_owned()))?;
    let current = active.authority.generation;
    let generation = wanted(slots, ordered);
    if generation != slots.next_root() && !there(generation) {
        return Err(BadOrder(format!(
            "root {generation} was ordered and is not there: it is retired, or was never made; \
             the one to order for a rotation is {}",
            slots.next_root()
        )));
    }
    // Where a newer root was made and given up, somebody wants this one.
    let is_newest = current + 1 == slots.next_root();
    if generation == current && is_newest && active.has_key && grows_old(active, facts) {
        return Ok(Target {
            generation: slots.next_root(),
            automatic: true,
        });
    }
    Ok(Target {
        generation,
        automatic: false,
    })
}

/// The root that is wanted, whether or not it can be had.
pub(super) fn wanted(slots: &Slots, ordered: Option<u64>) -> u64 {
    let begun = slots.automatic.filter(|begun| {
        let root = slots.root(begun.generation);
        begun.ordered == ordered && root.is_some_and(|root| !root.authority.is_gone())
    });
    let active = slots.active_root().map(|root| root.authority.generation);
    begun
        .map(|Automatic { generation, .. }| generation)
        .or(ordered)
        .or(active)
        .unwrap_or_default()
}

fn grows_old(root: &Root, facts: &Facts) -> bool {
    let authority = &root.authority;
    let last = LAST.min(authority.life().mul_f64(LAST_PART));
    facts.has_settled() && facts.now + last >= authority.not_after
}

/// A root that never signed and that nobody wants any more.
fn is_unwanted(root: &Root, target: Target) -> bool {
    root.authority.generation != target.generation
        && !root.authority.is_gone()
        && !root.authority.has_signed()
        && !root.listed
}

fn make(target: Target, facts: &Facts) -> Result<Step, Waiting> {
    let generation = target.generation;
    if facts.upstream.is_some() {
        return Err(waiting(
            generation,
            Phase::Blocked,
            "the root is the upstream issuer's: a rotation begins there",
        ));
    }
    Ok(Step::MakeRoot {
        generation,
        automatic: target.automatic,
    })
}

/// The target is published, and another root signs.
fn switch_to(target: &Root, active: &Root, slots: &Slots, facts: &Facts) -> Result<Step, Waiting> {
    let generation = target.authority.generation;
    let wait = |phase, message: String| Err(waiting(generation, phase, message));
    if !target.authority.is_valid_at(facts.now) {
        return wait(
            Phase::Blocked,
            format!("root {generation} is not valid now: was a clock wrong when it was made?"),
        );
    }
    let Some(intermediate) = signer_of(target, slots, facts) else {
        if target.has_key {
            return Ok(Step::MakeIntermediate { root: generation });
        }
        return wait(
            Phase::Blocked,
            format!("nothing below root {generation} can sign, and its key is the upstream's"),
        );
    };
    let step = Ok(Step::ActivateRoot {
        root: generation,
        intermediate: intermediate.authority.generation,
    });
    if !facts.has_settled() {
        return wait(
            Phase::Publishing,
            format!("root {generation} is on its way to the workloads"),
        );
    }
    // Once it has expired, nothing that it signed is valid: there is nobody to
    // wait for.
    if facts.is_forced(generation) || facts.now >= active.authority.not_after {
        return step;
    }
    let report = &facts.holders;
    let all_hold = report.at.is_some() && report.holding >= report.total;
    let adopted = |delay| facts.now >= target.authority.made + delay + MARGIN;
    if all_hold && report.silent.is_none_or(adopted) {
        return step;
    }
    if all_hold {
        return wait(
            Phase::Publishing,
            format!(
                "all workloads that say so hold root {generation}; node proxies and pods without \
                 a sidecar, which do not say, are given time to adopt it"
            ),
        );
    }
    let phase = stuck(facts, Phase::Publishing);
    let message = match report.at {
        None => {
            format!("it is not known yet which workloads hold root {generation}: nobody reported")
        }
        Some(_) => format!(
            "{} of {} workloads hold root {generation}; the rest would be cut off if it signed now",
            report.holding, report.total
        ),
    };
    Err(Waiting {
        missing: report.missing.clone(),
        ..waiting(generation, phase, message)
    })
}

/// What may sign below the target. One that signed before may sign again as long
/// as it is valid: a root that is signed with again after an upstream changed
/// has no other.
fn signer_of<'a>(target: &Root, slots: &'a Slots, facts: &Facts) -> Option<&'a Intermediate> {
    let generation = target.authority.generation;
    let again = || {
        slots.intermediates.iter().rev().find(|intermediate| {
            intermediate.root == generation
                && intermediate.authority.is(State::Published)
                && intermediate.authority.is_valid_at(facts.now)
                && !target.has_key
        })
    };
    newest_usable(slots, generation, facts.now).or_else(again)
}

/// The target signs: whatever signed before it leaves when nobody needs it.
fn retire_others(target: &Root, slots: &Slots, facts: &Facts) -> Result<Step, Waiting> {
    let generation = target.authority.generation;
    let mut others = slots.roots.iter().filter(|root| {
        root.authority.is(State::Published) && root.authority.has_signed() && !root.listed
    });
    let Some(old) = others.next() else {
        return Err(settled(target, facts));
    };
    let old_generation = old.authority.generation;
    let report = &facts.holders;
    let all_expired = old
        .authority
        .stopped
        .is_some_and(|stopped| facts.now >= stopped + facts.lifetimes.max + MARGIN);
    let all_renewed = report.at.is_some() && report.renewed >= report.total;
    let is_free = match all_renewed {
        true => report.silent.is_none() || all_expired,
        false => facts.is_forced(generation) && all_expired,
    };
    if is_free && facts.has_settled() {
        return Ok(Step::RetireRoot {
            generation: old_generation,
        });
    }
    if is_free {
        return Err(waiting(
            generation,
            Phase::Retiring,
            format!("nobody needs root {old_generation} any more: it leaves the trust bundle"),
        ));
    }
    let message = match report.at {
        Some(_) if all_renewed => format!(
            "root {generation} signs; node proxies and pods without a sidecar, which do not say \
             what they hold, may need root {old_generation} until all that it signed has expired"
        ),
        None => format!(
            "root {generation} signs; it is not known yet which workloads still need root {old_generation}: nobody reported"
        ),
        Some(_) => format!(
            "root {generation} signs; {} of {} workloads have renewed under it",
            report.renewed, report.total
        ),
    };
    Err(Waiting {
        missing: report.missing.clone(),
        ..waiting(generation, Phase::Renewing, message)
    })
}

/// Whether a rotation is to go on or back cannot be told.
fn unknown(active: &Root, slots: &Slots, facts: &Facts) -> Waiting {
    let others = slots.roots.iter().filter(|root| !root.authority.is_gone());
    let phase = match others.count() {
        1 => Phase::Settled,
        _ => stuck(facts, Phase::Publishing),
    };
    let message = "it is not known which root is wanted: the order cannot be read now";
    waiting(active.authority.generation, phase, message)
}

fn settled(root: &Root, facts: &Facts) -> Waiting {
    let generation = root.authority.generation;
    let message = if root.authority.is_valid_at(facts.now) {
        format!("root {generation} signs, and no rotation is under way")
    } else {
        format!("root {generation} is not valid now: nothing can be issued")
    };
    waiting(generation, Phase::Settled, message)
}

fn stuck(facts: &Facts, phase: Phase) -> Phase {
    if facts.settled_for >= STUCK {
        Phase::Blocked
    } else {
        phase
    }
}

fn waiting(target: u64, phase: Phase, message: impl Into<String>) -> Waiting {
    Waiting {
        phase,
        message: message.into(),
        target,
        missing: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Lifetimes;
    use crate::rotation::holders::HolderReport;
    use crate::rotation::orders::Order;
    use crate::rotation::slots::Authority;
    use std::time::SystemTime;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + 50 * YEAR
    }

    fn authority(generation: u64, state: State, made: SystemTime) -> Authority {
        Authority {
            generation,
            state,
            fingerprint: generation.to_string(),
            serial: generation.to_string(),
            key_type: "P-256".to_owned(),
            made,
            not_before: made,
            not_after: made + YEAR,
            stopped: None,
        }
    }

    /// Root 1 signs, and root 2 was made and published at noon.
    fn published() -> Slots {
        let pair = |generation, state, below, made| {
            let root = Root {
                authority: authority(generation, state, made),
                has_key: true,
                listed: false,
            };
            let intermediate = Intermediate {
                authority: authority(generation, below, made),
                root: generation,
            };
            (root, intermediate)
        };
        let old = pair(1, State::Active, State::Active, noon() - DAY);
        let new = pair(2, State::Published, State::Published, noon());
        Slots {
            sequence: 2,
            automatic: None,
            roots: vec![old.0, new.0],
            intermediates: vec![old.1, new.1],
            token_keys: Vec::new(),
        }
    }

    /// Everybody who says anything holds and has what is wanted.
    fn facts(after: Duration, silent: Option<Duration>) -> Facts {
        let now = noon() + after;
        Facts {
            now,
            settled_for: HOUR,
            settle: Duration::from_secs(30),
            wanted: Some(Order {
                root_generation: Some(2),
                force_generation: None,
            }),
            holders: HolderReport {
                at: Some(now),
                silent,
                ..HolderReport::default()
            },
            lifetimes: Lifetimes {
                default: DAY,
                max: DAY,
                root: YEAR,
                intermediate: YEAR,
            },
            upstream: None,
        }
    }

    #[test]
    fn who_never_says_what_it_holds_is_given_time_to_adopt_a_root_and_to_leave_one() {
        let switch = Step::ActivateRoot {
            root: 2,
            intermediate: 2,
        };
        let mut slots = published();
        assert_eq!(next(&slots, &facts(HOUR, None)), Ok(switch.clone()));
        let waiting = next(&slots, &facts(HOUR, Some(2 * HOUR))).unwrap_err();
        assert_eq!(waiting.phase, Phase::Publishing);
        assert_eq!(next(&slots, &facts(3 * HOUR, Some(2 * HOUR))), Ok(switch));

        slots.activate_root(2, 2, noon() + 3 * HOUR);
        let retire = Step::RetireRoot { generation: 1 };
        assert_eq!(next(&slots, &facts(4 * HOUR, None)), Ok(retire.clone()));
        let waiting = next(&slots, &facts(DAY, Some(2 * HOUR))).unwrap_err();
        assert_eq!(waiting.phase, Phase::Renewing);
        assert_eq!(
            next(&slots, &facts(DAY + 4 * HOUR, Some(2 * HOUR))),
            Ok(retire)
        );
    }

    #[test]
    fn a_clock_that_leapt_beyond_the_end_of_a_root_does_not_change_roots_at_once() {
        let mut slots = published();
        slots.roots[1].authority.not_after = noon() + 10 * YEAR;
        slots.intermediates[1].authority.not_after = noon() + 10 * YEAR;
        let leapt = Facts {
            settled_for: Duration::ZERO,
            ..facts(2 * YEAR, None)
        };
        assert_eq!(next(&slots, &leapt).unwrap_err().phase, Phase::Publishing);
        assert!(next(&slots, &facts(2 * YEAR, None)).is_ok());
    }
}
