//! A CA above this one, which holds the root: it signs when it likes, or not at
//! all, or under another root than it had.

use std::time::{Duration, SystemTime};

use bulkhead_ca::issuer::status::AuthorityState as State;
use bulkhead_ca::rotation::UpstreamFacts;
use bulkhead_ca::rotation::orders::Order;
use bulkhead_ca::rotation::slots::{Automatic, Root, Slots};

use super::authorities::{Dates, LIFETIMES, authority, lifetime, make_intermediate};

/// How long one that refused is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// How long after it signed it is not asked only because somebody else leads.
const FRESH: Duration = Duration::from_secs(3600);

/// A root of the upstream's, which has a name of its own in each mesh.
#[derive(Clone, Debug)]
struct Above {
    name: String,
    dates: Dates,
}

#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    /// All that it ever had.
    roots: Vec<Above>,
    /// Which of them signs.
    signs: usize,
    /// Whether an answer names the root before as well, as one does that is about
    /// to leave it.
    lists_both: bool,
    is_away: bool,
    delay: Duration,
    /// When what was asked for is answered.
    answers: Option<SystemTime>,
    left_alone_until: Option<SystemTime>,
    /// Whether somebody was told that it signs otherwise by now.
    told: bool,
}

impl Upstream {
    pub(super) fn new(now: SystemTime) -> Self {
        let mut upstream = Self {
            roots: Vec::new(),
            signs: 0,
            lists_both: false,
            is_away: false,
            delay: Duration::ZERO,
            answers: None,
            left_alone_until: None,
            told: false,
        };
        upstream.make_root(now);
        upstream
    }

    fn make_root(&mut self, now: SystemTime) {
        let name = format!("upstream root {}", self.roots.len() + 1);
        let dates = lifetime(now, LIFETIMES.root);
        self.roots.push(Above { name, dates });
        self.signs = self.roots.len() - 1;
    }

    /// It signs under a new root from now on.
    pub(super) fn turn_to_another(&mut self, now: SystemTime) {
        self.make_root(now);
        self.tell();
    }

    /// It signs under the root before again: somebody put back a copy.
    pub(super) fn turn_back(&mut self) {
        self.signs = self.signs.saturating_sub(1);
        self.tell();
    }

    pub(super) fn tell(&mut self) {
        self.told = true;
        self.left_alone_until = None;
    }

    pub(super) fn list_both(&mut self, both: bool) {
        self.lists_both = both;
    }

    /// Whether nobody answers there.
    pub(super) fn go_away(&mut self, is_away: bool) {
        self.is_away = is_away;
    }

    pub(super) fn take_its_time(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// Another process leads, which knows of no question and no answer.
    pub(super) fn forget(&mut self, slots: &Slots, now: SystemTime) {
        self.answers = None;
        self.left_alone_until = None;
        let last = slots.active_intermediate();
        self.told = last.is_none_or(|last| now >= last.authority.made + FRESH);
    }

    pub(super) fn signing_root(&self) -> &str {
        &self.roots[self.signs].name
    }

    pub(super) fn facts(&self, now: SystemTime) -> UpstreamFacts {
        let is_left_alone = self.left_alone_until.is_some_and(|until| now < until);
        UpstreamFacts {
            has_changed: self.told,
            is_asked: self.answers.is_some() || is_left_alone,
        }
    }

    pub(super) fn ask(&mut self, now: SystemTime) {
        self.told = false;
        self.answers = Some(now + self.delay);
    }

    /// Whether there is an answer by now; one that is none is waited out.
    pub(super) fn has_answered(&mut self, now: SystemTime) -> bool {
        if self.answers.is_none_or(|at| now < at) {
            return false;
        }
        self.answers = None;
        let refuses = self.is_away || !self.roots[self.signs].dates.hold_at(now);
        if refuses {
            self.left_alone_until = Some(now + LEFT_ALONE);
            self.told = true;
        }
        !refuses
    }

    /// What the CA does with an answer, whose root may be one that nobody has heard
    /// of.
    pub(super) fn sign(&self, slots: &mut Slots, now: SystemTime, order: Option<Order>) {
        let is_first = slots.is_empty();
        let signing = slot_of(slots, &self.roots[self.signs], is_first, now);
        let mut listed = vec![signing];
        if self.lists_both && self.signs > 0 {
            listed.push(slot_of(slots, &self.roots[self.signs - 1], is_first, now));
        }
        for root in &mut slots.roots {
            root.listed = listed.contains(&root.authority.generation);
        }
        let state = if is_first {
            State::Active
        } else {
            State::Published
        };
        make_intermediate(slots, signing, state, now);
        let active = slots.active_root().map(|root| root.authority.generation);
        let begun = slots.automatic.map(|begun| begun.generation);
        if active != Some(signing) || begun.is_some_and(|begun| begun != signing) {
            slots.automatic = Some(Automatic {
                generation: signing,
                ordered: order.and_then(|order| order.root_generation),
            });
        }
    }
}

fn slot_of(slots: &mut Slots, above: &Above, is_first: bool, now: SystemTime) -> u64 {
    let known = slots
        .roots
        .iter()
        .find(|root| root.authority.fingerprint == above.name && !root.authority.is_gone());
    if let Some(known) = known {
        return known.authority.generation;
    }
    let generation = slots.next_root();
    let state = match (is_first, slots.active_root()) {
        (true, None) => State::Active,
        (true, Some(_)) => State::Published,
        (false, _) => State::Prepared,
    };
    let mut slot = authority(generation, state, now, above.dates);
    slot.fingerprint.clone_from(&above.name);
    slots.roots.push(Root {
        authority: slot,
        has_key: false,
        listed: false,
        leaf_life: None,
    });
    generation
}
