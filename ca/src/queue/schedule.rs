//! Whose turn it is: start-time fair queueing (Goyal, Vin and Cheng 1996) with
//! rounds for virtual time, and urgency within a round. Pure: no clock, no task.
//!
//! ```text
//!  enter ─▶ waits, by caller ── the first of each caller ──▶ next ─▶ in service ─▶ finish
//!     └──▶ full: the longest line gives up its last, or the newcomer is turned away
//! ```
//!
//! Each caller has one turn a round. Within a round the more urgent go first, so
//! that what a caller says of its urgency, which nobody can check, moves it
//! ahead in one round and never into an earlier one: a caller who always says
//! that it is urgent has its turn as often as every other. A round ends when
//! nobody of it waits, or after a number of turns, so that a stream of urgent
//! newcomers delays the others and starves nobody.

use std::collections::{BTreeMap, BTreeSet};

/// After so many turns those who wait go before whoever comes, however urgent.
const TURNS_IN_ROUND: usize = 1024;

/// What is bounded.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most that are served at once.
    pub in_service: usize,
    /// The most that wait, of all callers together.
    pub waiting: usize,
    /// The most that wait of one caller.
    pub waiting_of_one: usize,
}

/// Why somebody is in a hurry; the most urgent first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Urgency {
    /// Has no certificate, and does nothing until there is one.
    NoCertificate,
    /// Has one that is about to expire.
    ExpiresSoon,
    /// Has one that is good for a while.
    Renewal,
}

/// A place in the line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ticket<K> {
    pub caller: K,
    pub number: u64,
    urgency: Urgency,
}

/// What became of somebody who came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entered<K> {
    /// Waits; and of a longer or less urgent line somebody was sent away for it.
    Waits {
        ticket: Ticket<K>,
        displaced: Option<Ticket<K>>,
    },
    /// Turned away.
    Full,
}

/// The lines of all callers.
#[derive(Debug)]
pub struct Schedule<K> {
    limits: Limits,
    let_wait: usize,
    round: u64,
    turns_in_round: usize,
    next_number: u64,
    waiting: usize,
    in_service: usize,
    callers: BTreeMap<K, Line>,
    /// The first of each line.
    heads: BTreeMap<Place, K>,
    /// Who waits, by how many there are of it.
    lengths: BTreeSet<(usize, K)>,
}

/// One caller's.
#[derive(Debug, Default)]
struct Line {
    waiting: BTreeSet<(Urgency, u64)>,
    in_service: usize,
    /// The first round in which it may have a turn.
    next_round: u64,
    /// Where its first is among the heads.
    head: Option<Place>,
}

/// The order of turns.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Place {
    round: u64,
    urgency: Urgency,
    number: u64,
}

impl<K: Clone + Ord> Schedule<K> {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            let_wait: limits.waiting,
            round: 0,
            turns_in_round: 0,
            next_number: 0,
            waiting: 0,
            in_service: 0,
            callers: BTreeMap::new(),
            heads: BTreeMap::new(),
            lengths: BTreeSet::new(),
        }
    }

    /// Lets no more than so many wait from now on, where the limits say no less.
    /// Those who wait already stay.
    pub fn let_wait(&mut self, most: usize) {
        self.let_wait = most.min(self.limits.waiting);
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many are served.
    pub fn in_service(&self) -> usize {
        self.in_service
    }

    /// Those with the longest lines, and how long they are.
    pub fn longest(&self, most: usize) -> Vec<(K, usize)> {
        let longest = self.lengths.iter().rev().take(most);
        longest
            .map(|(length, key)| (key.clone(), *length))
            .collect()
    }

    /// Somebody comes.
    pub fn enter(&mut self, caller: K, urgency: Urgency) -> Entered<K> {
        let line = self.callers.get(&caller);
        let (length, earliest) = line.map_or((0, 0), |line| (line.waiting.len(), line.next_round));
        if length >= self.limits.waiting_of_one {
            return Entered::Full;
        }
        let mut displaced = None;
        if self.waiting >= self.let_wait {
            let round = earliest.max(self.round);
            let Some(victim) = self.displaceable(length, round, urgency) else {
                return Entered::Full;
            };
            self.leave(&victim);
            displaced = Some(victim);
        }
        let ticket = Ticket {
            caller,
            number: self.next_number,
            urgency,
        };
        self.next_number += 1;
        self.waiting += 1;
        self.change(&ticket.caller, |line| {
            line.waiting.insert((urgency, ticket.number));
        });
        Entered::Waits { ticket, displaced }
    }

    /// Somebody who waits goes away. Whether it was still waiting.
    pub fn leave(&mut self, ticket: &Ticket<K>) -> bool {
        let Some(line) = self.callers.get(&ticket.caller) else {
            return false;
        };
        if !line.waiting.contains(&(ticket.urgency, ticket.number)) {
            return false;
        }
        self.waiting -= 1;
        self.change(&ticket.caller, |line| {
            line.waiting.remove(&(ticket.urgency, ticket.number));
        });
        self.forget_all_if_idle();
        true
    }

    /// Whose turn it is, if there is a place for anybody.
    ///
    /// A caller holds no more places than are free then: however many one has
    /// asked for, somebody who comes later finds one.
    pub fn take(&mut self) -> Option<Ticket<K>> {
        let free = self.limits.in_service.checked_sub(self.in_service)?;
        if free == 0 {
            return None;
        }
        // Those passed over are served, so that they are fewer than the places.
        let (place, caller) = self.heads.iter().find(|(_, caller)| {
            let line = self.callers.get(caller);
            line.is_some_and(|line| line.in_service < free.max(1))
        })?;
        let (place, caller) = (*place, caller.clone());
        self.begin_turn(place);
        let ticket = Ticket {
            caller,
            number: place.number,
            urgency: place.urgency,
        };
        self.waiting -= 1;
        self.in_service += 1;
        let round = place.round.max(self.round);
        self.change(&ticket.caller, |line| {
            line.waiting.remove(&(place.urgency, place.number));
            line.in_service += 1;
            line.next_round = round + 1;
        });
        Some(ticket)
    }

    /// Somebody was served.
    pub fn finish(&mut self, caller: &K) {
        let served = self
            .callers
            .get(caller)
            .is_some_and(|line| line.in_service > 0);
        if served {
            self.in_service -= 1;
            self.change(caller, |line| line.in_service -= 1);
        }
        self.forget_all_if_idle();
    }

    /// Where nobody is left to be fair to, there is nothing to remember.
    fn forget_all_if_idle(&mut self) {
        if self.waiting == 0 && self.in_service == 0 {
            self.callers.clear();
            self.round += 1;
            self.turns_in_round = 0;
        }
    }

    /// Counts a turn, and begins a round with the first turn that belongs to it.
    fn begin_turn(&mut self, place: Place) {
        self.turns_in_round += 1;
        if place.round > self.round || self.turns_in_round >= TURNS_IN_ROUND {
            self.round = place.round.max(self.round + 1);
            self.turns_in_round = 0;
            // Whoever may have a turn in it is like one who never came.
            let round = self.round;
            self.callers.retain(|_, line| {
                !line.waiting.is_empty() || line.in_service > 0 || line.next_round > round
            });
        }
    }

    /// Who gives way to a newcomer: the last of the longest line, where that is
    /// longer than the newcomer's would be; else the last in turn, where the
    /// newcomer would go before it and nobody of its own waits.
    fn displaceable(&self, length: usize, round: u64, urgency: Urgency) -> Option<Ticket<K>> {
        let (longest, caller) = self.lengths.last()?;
        let ticket = |caller: &K, (urgency, number): (Urgency, u64)| Ticket {
            caller: caller.clone(),
            number,
            urgency,
        };
        if *longest > length + 1 {
            let last = self.callers.get(caller)?.waiting.last()?;
            return Some(ticket(caller, *last));
        }
        let (last, caller) = self.heads.last_key_value()?;
        let goes_before = (round, urgency) < (last.round, last.urgency);
        (length == 0 && goes_before).then(|| ticket(caller, (last.urgency, last.number)))
    }

    /// Changes a line, and whatever follows from it.
    fn change(&mut self, caller: &K, change: impl FnOnce(&mut Line)) {
        let line = self.callers.entry(caller.clone()).or_default();
        let before = line.waiting.len();
        change(line);
        let after = line.waiting.len();
        let head = line.waiting.first().map(|(urgency, number)| {
            // Who is first keeps its round; the first of a new line is of this one.
            let earliest = line.next_round.max(self.round);
            Place {
                round: line
                    .head
                    .map_or(earliest, |head| head.round.max(line.next_round)),
                urgency: *urgency,
                number: *number,
            }
        });
        if head != line.head {
            if let Some(place) = line.head {
                self.heads.remove(&place);
            }
            if let Some(place) = head {
                self.heads.insert(place, caller.clone());
            }
            line.head = head;
        }
        if before != after {
            self.lengths.remove(&(before, caller.clone()));
            if after > 0 {
                self.lengths.insert((after, caller.clone()));
            }
        }
        self.forget_if_idle(caller);
    }

    /// Drops a caller of whom there is nothing to remember.
    fn forget_if_idle(&mut self, caller: &K) {
        let round = self.round;
        let idle = self.callers.get(caller).is_some_and(|line| {
            line.waiting.is_empty() && line.in_service == 0 && line.next_round <= round
        });
        if idle {
            self.callers.remove(caller);
        }
    }
}

#[cfg(test)]
mod tests;
