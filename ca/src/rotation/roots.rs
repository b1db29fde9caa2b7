//! The steps of a root rotation: there, and back again until the old root is
//! gone.

use std::time::Duration;

use super::intermediates::newest_usable;
use super::slots::{Automatic, Intermediate, Root, Slots};
use super::{FOLLOW, Facts, STUCK, Step, Waiting};
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
        State::Prepared | State::Published if !root.authority.is_valid_at(facts.now) => {
            let generation = target.generation;
            Err(waiting(
                generation,
                Phase::Blocked,
                format!("root {generation} is not valid now: was a clock wrong when it was made?"),
            ))
        }
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
    if generation == current && active.has_key && is_due(active, slots, facts) {
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

/// Whether the root that signs is old enough to be followed without an order.
///
/// Where a newer one was given up when it was already, somebody wants this one
/// for longer: half of what was left then. One that was given up before has no
/// say in it.
fn is_due(root: &Root, slots: &Slots, facts: &Facts) -> bool {
    let authority = &root.authority;
    let end = authority.not_after;
    let last = LAST.min(authority.life().mul_f64(LAST_PART));
    let newer = slots.roots.iter().map(|root| &root.authority);
    let given_up = newer
        .filter(|other| other.generation > authority.generation && other.made <= facts.now)
        .map(|other| other.made)
        .max();
    let left = given_up
        .and_then(|made| end.duration_since(made).ok())
        .filter(|left| *left <= last);
    let wait = left.map_or(last, |left| left / 2);
    facts.has_settled() && facts.now + wait >= end
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
    let report = &facts.holders;
    let all_hold = report.at.is_some() && report.holding >= report.total;
    let adopted = |delay| facts.now >= target.authority.made + delay + MARGIN;
    let is_held = all_hold && report.silent.is_none_or(adopted);
    // Once it has expired, nothing that it signed is valid: there is nobody to
    // wait for.
    // An order to go on without some is of the first time that a root is to
    // sign, and not of going back to it.
    let is_forced = facts.is_forced(generation) && !target.authority.has_signed();
    let waits_for_nobody = is_forced || facts.now >= active.authority.not_after;
    let has_settled = facts.has_settled();
    if has_settled && (waits_for_nobody || is_held && is_reported_anew(facts)) {
        return step;
    }
    if is_held {
        let when = match has_settled {
            true => "when that is reported once more",
            false => "in a moment",
        };
        return wait(
            Phase::Switching,
            format!("all workloads hold root {generation}: it signs {when}"),
        );
    }
    if !has_settled {
        return wait(
            Phase::Publishing,
            format!("root {generation} is on its way to the workloads"),
        );
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
    // What was issued counts, and not what would be by now.
    let leaf_life = old.leaf_life.unwrap_or(facts.lifetimes.max);
    let all_expired = old
        .authority
        .stopped
        .is_some_and(|stopped| facts.now >= stopped + leaf_life + MARGIN);
    let all_renewed = report.at.is_some() && report.renewed >= report.total;
    let is_free = match all_renewed {
        true => report.silent.is_none() || all_expired,
        false => facts.is_forced(generation) && all_expired,
    };
    // Whether all have expired is told by the clock of this machine alone; one that is
    // hours ahead takes every report for an old one.
    if is_free && is_reported_anew(facts) && facts.has_settled() {
        return Ok(Step::RetireRoot {
            generation: old_generation,
        });
    }
    if is_free {
        let when = if facts.has_settled() {
            "it leaves when workloads are reported once more, and this clock is right"
        } else {
            "it leaves the trust bundle"
        };
        return Err(waiting(
            generation,
            Phase::Retiring,
            format!("nobody needs root {old_generation} any more: {when}"),
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
    // By now whoever can renew has: what is left does not come by itself.
    let phase = match report.at {
        Some(_) if all_expired && !all_renewed => Phase::Blocked,
        _ => Phase::Renewing,
    };
    Err(Waiting {
        missing: report.missing.clone(),
        ..waiting(generation, phase, message)
    })
}

/// Whether the report is of after the last change, when all replicas had long
/// followed that: whoever was served by one that had not is in it. One that says
/// the right thing may be of the first moment that somebody could say it, and
/// nobody may have reported since.
fn is_reported_anew(facts: &Facts) -> bool {
    // As much for replicas as for a report under way and clocks that disagree; where
    // the whole wait is less than usual, the same part of that.
    let late = (2 * FOLLOW).min(facts.settle * 2 / 3);
    facts.holders.at.is_some_and(|at| {
        let age = facts.now.duration_since(at).unwrap_or_default();
        age + late <= facts.settled_for
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
mod tests;
