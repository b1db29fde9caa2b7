//! Workloads: what each of them holds, and when it takes something else.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use bulkhead_ca::rotation::slots::Slots;

use super::authorities::{Dates, LIFETIMES, dates, lifetime, trusted};

#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) root: u64,
    /// Those of the whole chain.
    pub(super) dates: Dates,
}

#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) name: String,
    pub(super) leaf: Leaf,
    pub(super) bundle: BTreeSet<u64>,
    pub(super) first: u64,
    pub(super) sequence: u64,
    /// Seconds that its clock is off.
    pub(super) off: i64,
    /// How long what the file says takes to reach it.
    pub(super) lag: Duration,
    pub(super) is_deaf: bool,
    pub(super) renew_at: SystemTime,
    pub(super) given_up: bool,
}

pub(super) fn issue(slots: &Slots, now: SystemTime) -> Option<Leaf> {
    let intermediate = slots.active_intermediate()?;
    let root = slots.root(intermediate.root)?;
    let above = dates(&intermediate.authority).within(dates(&root.authority));
    above.hold_at(now).then(|| Leaf {
        root: intermediate.root,
        dates: lifetime(now, LIFETIMES.max).within(above),
    })
}

/// A workload goes to a later bundle if its own certificate holds under it.
pub(super) fn adopt(workload: &mut Workload, slots: &Slots, now: SystemTime) {
    let bundle = trusted(slots);
    let root = slots.root(workload.leaf.root);
    let holds = bundle.contains(&workload.leaf.root)
        && root.is_some_and(|root| root.authority.is_valid_at(now));
    if slots.sequence > workload.sequence && (holds || !workload.leaf.dates.hold_at(now)) {
        workload.bundle = bundle;
        workload.sequence = slots.sequence;
        workload.first = slots.active_root().unwrap().authority.generation;
    }
}

/// A workload takes a new certificate if it holds under its bundle.
pub(super) fn renew(workload: &mut Workload, leaf: Leaf, now: SystemTime) {
    if leaf.dates.hold_at(now) && workload.bundle.contains(&leaf.root) {
        let life = leaf.dates.until.duration_since(now).unwrap_or_default();
        workload.renew_at = now + life / 2;
        workload.leaf = leaf;
    }
}
