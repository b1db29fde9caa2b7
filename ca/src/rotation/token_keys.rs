//! The keys of JWT-SVIDs. Whoever verifies a token must have heard of its key,
//! so that the next one is published long before it signs, and the last one for
//! as long as tokens of it are good.

use std::time::{Duration, SystemTime};

use super::slots::{Slots, TokenKey};
use super::{Facts, Step};
use crate::issuer::status::AuthorityState as State;

/// The part of its life after which a key gets a successor.
const HALF: f64 = 0.5;

/// How long verifiers are given to hear of a key: twice the refresh hint of the
/// bundle.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// What of the pause a short-lived key has, as a part of its life.
const PAUSE_PART: u32 = 10;

/// How long after its last signature a key is still published: the longest
/// life of a JWT-SVID, and a pause.
const LINGER: Duration = Duration::from_secs(3600 + 600);

pub(super) fn next(slots: &Slots, facts: &Facts) -> Option<Step> {
    let now = facts.now;
    let Some(current) = slots.active_token_key() else {
        return Some(Step::MakeTokenKey);
    };
    let upcoming = slots
        .token_keys
        .iter()
        .rev()
        .find(|key| key.authority.is(State::Published) && key.authority.stopped.is_none());
    if let Some(upcoming) = upcoming {
        let pause = MAX_PAUSE.min(current.authority.life() / PAUSE_PART);
        let has_ended = now >= current.authority.not_after;
        return (has_ended || facts.settled_for >= pause).then_some(Step::ActivateTokenKey {
            generation: upcoming.authority.generation,
        });
    }
    if current.authority.has_lived(HALF, now) {
        return Some(Step::MakeTokenKey);
    }
    let outlived = slots.token_keys.iter().find(|key| is_outlived(key, now));
    outlived
        .filter(|_| facts.has_settled())
        .map(|key| Step::RetireTokenKey {
            generation: key.authority.generation,
        })
}

fn is_outlived(key: &TokenKey, now: SystemTime) -> bool {
    key.authority.is(State::Published) && key.authority.stopped.is_some_and(|at| now >= at + LINGER)
}
