//! What a command does about a rotation of the root, and how far one is. All of
//! it follows from the object, so that a rotation can be followed from anywhere
//! and by anybody, and starting it twice starts one.

use std::time::{Duration, SystemTime};

use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, CertificateAuthority, CertificateAuthorityStatus, MissingProxy,
    Phase,
};

use super::object::{live_roots, status};
use crate::moment;

/// Control writes its report anew each 30 s; an older one than this says that it
/// is away.
const STALE: Duration = Duration::from_secs(90);

/// What somebody wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wish {
    Rotate,
    Undo,
}

/// What that comes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// To be asked of the CA: this root is to sign.
    Order(Goal),
    /// It was asked already: there is nothing to do but to follow.
    Follow(Goal),
    /// It cannot be, and why.
    Impossible(String),
}

/// The root that signs at the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Goal {
    pub root: u32,
    /// Whether it is an older one, which signed before.
    pub is_undo: bool,
}

/// Decides.
pub fn decide(authority: &CertificateAuthority, wish: Wish) -> Decision {
    let status = status(authority);
    let Some(active) = status.root_generation else {
        return Decision::Impossible(
            "the CA has not said yet which root signs: see that one runs, with `bulkhead ca status`"
                .to_owned(),
        );
    };
    let live = live_roots(&status);
    let target = wanted(authority, &status).unwrap_or(active);
    let is_leaving = match status.phase {
        Some(Phase::Renewing | Phase::Retiring) => true,
        // Some proxy does not renew.
        Some(Phase::Blocked) => target == active && live.len() > 1,
        _ => false,
    };
    let newer_leaves = is_leaving && live.iter().any(|root| *root > active);
    match wish {
        Wish::Rotate if target != active => Decision::Follow(Goal {
            root: target,
            is_undo: target < active,
        }),
        // It signs, and another has not left yet.
        Wish::Rotate if is_leaving => Decision::Follow(Goal {
            root: active,
            is_undo: newer_leaves,
        }),
        Wish::Rotate => Decision::Order(Goal {
            root: highest(&status).max(active).saturating_add(1),
            is_undo: false,
        }),
        Wish::Undo if target > active => Decision::Order(Goal {
            root: active,
            is_undo: true,
        }),
        Wish::Undo if target < active || newer_leaves => Decision::Follow(Goal {
            root: target,
            is_undo: true,
        }),
        Wish::Undo => match live.iter().rfind(|root| **root < active) {
            Some(&older) if is_leaving => Decision::Order(Goal {
                root: older,
                is_undo: true,
            }),
            _ => Decision::Impossible(format!(
                "there is nothing to undo: root {active} signs, and no rotation is under way. A root that \
                 was retired has no key any more; `bulkhead ca rotate-root` makes a new one"
            )),
        },
    }
}

/// The root that is to sign: what people asked for last, until the CA acts on it;
/// then what it goes for, which may be a root that it began by itself. `None` while
/// what people asked for was taken back and the CA has not looked.
///
/// That the CA has seen the object does not say that it has acted: a root that was
/// asked for and is the next one is still to be made.
fn wanted(authority: &CertificateAuthority, status: &CertificateAuthorityStatus) -> Option<u32> {
    let asked = authority.spec.root_generation;
    let is_next = asked == highest(status).checked_add(1);
    if is_seen(authority, status) && !is_next {
        status.target_generation.or(status.root_generation)
    } else {
        asked
    }
}

fn is_seen(authority: &CertificateAuthority, status: &CertificateAuthorityStatus) -> bool {
    status.observed_generation >= authority.metadata.generation
}

/// The highest generation that there ever was, as far as the object says.
fn highest(status: &CertificateAuthorityStatus) -> u32 {
    let roots = status.authorities.iter();
    let roots = roots.filter(|authority| authority.kind == AuthorityKind::Root);
    roots
        .map(|authority| authority.generation)
        .max()
        .unwrap_or_default()
}

/// How far a rotation is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Progress {
    pub goal: Goal,
    pub step: Step,
    /// What the CA says of it.
    pub message: Option<String>,
    /// Whether it goes on without those that lack something.
    pub is_forced: bool,
    pub proxies: Known,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Step {
    /// The CA has not looked at it yet.
    Asked,
    /// The root is made and on its way to every proxy.
    Publishing,
    /// It begins to sign.
    Switching,
    /// Proxies get certificates below it.
    Renewing,
    /// The other root leaves.
    Retiring,
    Done,
}

/// What is known of the proxies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Known {
    /// Nobody has said anything, or only of another bundle.
    Nothing,
    /// What control says.
    Said {
        total: u32,
        holding: u32,
        renewed: u32,
        missing: Vec<MissingProxy>,
        /// Since when, where that is too long ago.
        stale_since: Option<String>,
    },
}

/// How following ends before the rotation does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Obstacle {
    /// The CA does not go on by itself.
    Blocked { why: String, proxies: Known },
    /// Somebody wants another root.
    Superseded(u32),
    /// The root is gone: somebody undid it, to its end.
    Gone,
}

impl Progress {
    /// Where a rotation to this goal is.
    pub fn of(
        authority: &CertificateAuthority,
        goal: Goal,
        now: SystemTime,
    ) -> Result<Self, Obstacle> {
        let status = status(authority);
        let active = status.root_generation.unwrap_or_default();
        let goes_for = status.target_generation == Some(goal.root);
        let is_seen = is_seen(authority, &status);
        let other = authority.spec.root_generation;
        if let Some(other) = other.filter(|other| *other != goal.root)
            && !(goes_for && is_seen)
        {
            return Err(Obstacle::Superseded(other));
        }
        if is_seen && active != goal.root && is_retired(&status, goal) {
            return Err(Obstacle::Gone);
        }
        let step = match status.phase {
            _ if !is_seen || !goes_for => Step::Asked,
            Some(Phase::Settled) if active == goal.root => Step::Done,
            phase => step(phase, active == goal.root),
        };
        let proxies = Known::of(&status, now);
        let is_forced = authority.spec.force_generation == Some(goal.root);
        // With permission to go on without them, the CA does, a moment later.
        let behind = match active == goal.root {
            true => proxies.not_renewed(),
            false => proxies.lacking(),
        };
        let goes_on = is_forced && behind > 0;
        // Of an order that cannot be, the CA says so and stays where it is; what
        // is in the way of another root is not in the way of this one.
        let is_about_us = goes_for || status.target_generation == status.root_generation;
        if status.phase == Some(Phase::Blocked) && is_seen && is_about_us && !goes_on {
            let why = status.message;
            let why = why.unwrap_or_else(|| "the CA does not say why".to_owned());
            return Err(Obstacle::Blocked { why, proxies });
        }
        Ok(Self {
            goal,
            step,
            message: status.message,
            is_forced,
            proxies,
        })
    }

    /// How many keep the step from being over.
    pub fn behind(&self) -> u32 {
        match self.step {
            Step::Publishing => self.proxies.lacking(),
            Step::Renewing => self.proxies.not_renewed(),
            _ => 0,
        }
    }
}

fn is_retired(status: &CertificateAuthorityStatus, goal: Goal) -> bool {
    status.authorities.iter().any(|authority| {
        authority.kind == AuthorityKind::Root
            && authority.generation == goal.root
            && authority.state == AuthorityState::Retired
    })
}

fn step(phase: Option<Phase>, signs: bool) -> Step {
    match phase {
        Some(Phase::Retiring) => Step::Retiring,
        Some(Phase::Renewing) => Step::Renewing,
        Some(Phase::Switching) => Step::Switching,
        _ if signs => Step::Renewing,
        Some(Phase::Publishing) => Step::Publishing,
        Some(Phase::Settled | Phase::Blocked) | None => Step::Asked,
    }
}

impl Known {
    /// What the status says, if it is about the bundle that is given out now.
    pub fn of(status: &CertificateAuthorityStatus, now: SystemTime) -> Self {
        let Some(proxies) = &status.proxies else {
            return Self::Nothing;
        };
        let bundle = status.trust_bundle.as_ref().map(|bundle| &bundle.id);
        if bundle.is_some_and(|bundle| *bundle != proxies.bundle) {
            return Self::Nothing;
        }
        // For some seconds after another root began to sign, control's figures are
        // of the one before: nobody has renewed as far as anybody knows.
        let is_of_active = active_root(status).is_none_or(|root| *root == proxies.signing_root);
        let at = SystemTime::from(proxies.at.0);
        let age = now.duration_since(at).unwrap_or_default();
        Self::Said {
            total: proxies.total,
            holding: proxies.holding,
            renewed: if is_of_active { proxies.renewed } else { 0 },
            missing: proxies.missing.clone(),
            stale_since: (age > STALE).then(|| moment::relative(at, now)),
        }
    }

    /// Those that lack the bundle, or have no certificate below its first root.
    pub fn missing(&self) -> &[MissingProxy] {
        match self {
            Self::Nothing => &[],
            Self::Said { missing, .. } => missing,
        }
    }

    /// How many lack the bundle.
    pub fn lacking(&self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Said { total, holding, .. } => total.saturating_sub(*holding),
        }
    }

    /// Whether all are known to hold the bundle.
    pub fn are_all_holding(&self) -> bool {
        matches!(self, Self::Said { total, holding, .. } if holding >= total)
    }

    /// How many have no certificate below the root that signs.
    pub fn not_renewed(&self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Said { total, renewed, .. } => total.saturating_sub(*renewed),
        }
    }
}

/// The fingerprint of the root that signs.
fn active_root(status: &CertificateAuthorityStatus) -> Option<&String> {
    let mut authorities = status.authorities.iter();
    let active = authorities.find(|authority| {
        authority.kind == AuthorityKind::Root && authority.state == AuthorityState::Active
    });
    active.map(|root| &root.fingerprint)
}

#[cfg(test)]
mod tests;
