//! How roots, intermediates and token keys follow each other: which step is
//! next, decided from what there is and what is known, and from nothing else.
//!
//! ```text
//!             made             in the bundle         everybody holds it     nobody needs it
//!  (nothing) ─────▶ prepared ───────────────▶ published ────────▶ active ─┐
//!                                                 ▲                       │ another signs
//!                                                 └───────────────────────┘
//!                                             published ────────────────────────▶ retired
//! ```
//!
//! Every step is one write to the store, which fails if anybody wrote in
//! between. So it does not matter which replica takes a step, whether it
//! survives the step, or whether two try: whoever comes next reads what there
//! is and goes on from there.
//!
//! What keeps any two workloads able to talk at every instant:
//! - A root signs only when all workloads are known to hold it, and it leaves
//!   only when the certificate of none is known to need it.
//! - Before either, nothing was changed for [`SETTLE`], by the monotonic clock
//!   of the replica that takes the step: by then every replica gives out the
//!   bundle that is stored, and a report counts that is of well after the change. A
//!   new leader, a restart and a leap of the wall clock begin that wait anew.
//! - Nothing is valid for longer than what signed it; whatever is not valid now
//!   is not put to use.
//!
//! In reading order:
//! - [`slots`]: the authorities, and where in its life each is.
//! - [`roots`]: the steps of a root rotation, there and back.
//! - [`intermediates`], [`token_keys`]: those of what signs below.
//! - [`holders`]: which workloads hold the bundle, as far as they say;
//!   [`reports`]: where they say it to the CA alone.
//! - [`orders`]: which root people want.

use std::time::{Duration, SystemTime};

use self::holders::{HolderReport, Missing};
use self::orders::Order;
use self::slots::Slots;
use crate::config::Lifetimes;
use crate::issuer::status::Phase;

pub mod holders;
mod intermediates;
pub mod orders;
pub mod reports;
mod roots;
pub mod slots;
mod token_keys;

/// How long nothing must have changed before a root begins to sign or leaves.
/// Replicas look at the store every [`FOLLOW`], and reports are seconds old.
pub const SETTLE: Duration = Duration::from_secs(30);

/// How often every replica looks at the store, whatever it was told of.
pub const FOLLOW: Duration = Duration::from_secs(10);

/// When a rotation counts as stuck: workloads adopt a bundle within seconds of
/// seeing it, and kubelet shows it to them within two minutes.
pub const STUCK: Duration = Duration::from_secs(300);

/// What a step is decided by, besides the slots.
#[derive(Clone, Debug)]
pub struct Facts {
    pub now: SystemTime,
    /// For how long, by the monotonic clock of this process, the slots have been
    /// as they are, this process has led, and the wall clock has not leapt.
    pub settled_for: Duration,
    /// How long that must be before a root signs or leaves: [`SETTLE`].
    pub settle: Duration,
    /// None where it cannot be known now.
    pub wanted: Option<Order>,
    /// The answer to [`question`].
    pub holders: HolderReport,
    pub lifetimes: Lifetimes,
    pub upstream: Option<UpstreamFacts>,
}

/// What is known of the CA above this one, where there is one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UpstreamFacts {
    /// Whether what signs there may have changed since it last signed for us.
    pub has_changed: bool,
    /// Whether it is being asked already, or is to be left alone for a while
    /// because it failed.
    pub is_asked: bool,
}

/// What to do next. Each is one write to the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// The first root, intermediate and token key.
    Begin,
    /// A new root, which nobody is told of yet.
    MakeRoot {
        generation: u64,
        /// Nobody ordered it: the one that signs grows old.
        automatic: bool,
    },
    /// Workloads are told to trust it.
    PublishRoot {
        generation: u64,
    },
    /// It signs from now on.
    ActivateRoot {
        root: u64,
        intermediate: u64,
    },
    /// Nobody trusts it from now on, and its key is destroyed.
    RetireRoot {
        generation: u64,
    },
    /// A new intermediate below this root.
    MakeIntermediate {
        root: u64,
    },
    /// The upstream is asked to sign again, under whatever root it has.
    AskUpstream,
    /// It signs from now on, and the one before it goes.
    ActivateIntermediate {
        generation: u64,
    },
    RetireIntermediate {
        generation: u64,
    },
    /// Leaves under the root that signs may be good for longer than until now.
    AllowLeafLife {
        life: Duration,
    },
    MakeTokenKey,
    ActivateTokenKey {
        generation: u64,
    },
    RetireTokenKey {
        generation: u64,
    },
    /// Nothing can or need be done now.
    Wait(Waiting),
}

/// Why nothing is done, and what people are told of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting {
    pub phase: Phase,
    pub message: String,
    /// The root that is to sign.
    pub target: u64,
    pub missing: Vec<Missing>,
}

/// Decides the next step.
pub fn next(slots: &Slots, facts: &Facts) -> Step {
    if slots.active_root().is_none() || slots.active_intermediate().is_none() {
        return Step::Begin;
    }
    let (allowed, most) = (slots.leaf_life(), facts.lifetimes.max);
    if allowed.is_none_or(|allowed| allowed < most) {
        return Step::AllowLeafLife { life: most };
    }
    // Who cannot sign now cannot wait for a rotation either.
    if let Some(step) = intermediates::next(slots, facts) {
        return step;
    }
    match roots::next(slots, facts) {
        Ok(step) => step,
        Err(waiting) => token_keys::next(slots, facts).unwrap_or(Step::Wait(waiting)),
    }
}

/// The root of which it must be known who renewed under it: the one that is to
/// sign, as soon as workloads can have heard of it.
pub fn question(slots: &Slots, facts: &Facts) -> Option<u64> {
    let target = roots::target(slots, facts).ok()?.generation;
    let known = slots
        .root(target)
        .filter(|root| root.authority.is_trusted());
    known
        .or_else(|| slots.active_root())
        .map(|root| root.authority.generation)
}

/// The root that is to sign, by what was ordered and by what the CA began by
/// itself.
pub fn wanted_root(slots: &Slots, ordered: Option<u64>) -> u64 {
    roots::wanted(slots, ordered)
}

impl Facts {
    fn is_forced(&self, generation: u64) -> bool {
        self.wanted
            .is_some_and(|order| order.force_generation == Some(generation))
    }

    fn has_settled(&self) -> bool {
        self.settled_for >= self.settle
    }
}
