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
    // Looked for first: where keys follow each other without a pause, one that
    // waits for its turn is always there.
    let outlived = slots.token_keys.iter().find(|key| is_outlived(key, now));
    if let Some(outlived) = outlived.filter(|_| facts.has_settled()) {
        return Some(Step::RetireTokenKey {
            generation: outlived.authority.generation,
        });
    }
    let upcoming = slots
        .token_keys
        .iter()
        .rev()
        .find(|key| key.authority.is(State::Published) && key.authority.stopped.is_none());
    let Some(upcoming) = upcoming else {
        let is_due = current.authority.has_lived(HALF, now);
        return is_due.then_some(Step::MakeTokenKey);
    };
    let pause = MAX_PAUSE.min(current.authority.life() / PAUSE_PART);
    let has_ended = now >= current.authority.not_after;
    (has_ended || facts.settled_for >= pause).then_some(Step::ActivateTokenKey {
        generation: upcoming.authority.generation,
    })
}

fn is_outlived(key: &TokenKey, now: SystemTime) -> bool {
    key.authority.is(State::Published) && key.authority.stopped.is_some_and(|at| now >= at + LINGER)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use bulkhead_pki::jwk::Jwk;

    use super::*;
    use crate::config::Lifetimes;
    use crate::rotation::holders::HolderReport;
    use crate::rotation::slots::Authority;

    const MINUTE: Duration = Duration::from_secs(60);
    const LIFE: Duration = Duration::from_secs(600);

    fn add(slots: &mut Slots, state: State, now: SystemTime) {
        let generation = slots.next_token_key();
        slots.token_keys.push(TokenKey {
            authority: Authority {
                generation,
                state,
                fingerprint: generation.to_string(),
                serial: generation.to_string(),
                key_type: "P-256".to_owned(),
                made: now,
                not_before: now,
                not_after: now + LIFE,
                stopped: None,
            },
            public: Jwk::default(),
        });
    }

    /// All that is due at once, where nothing stays as it is for longer than this.
    fn turn(slots: &mut Slots, now: SystemTime, settled_for: Duration) {
        let facts = Facts {
            now,
            settled_for,
            settle: Duration::from_secs(30),
            wanted: None,
            holders: HolderReport::default(),
            lifetimes: Lifetimes {
                default: LIFE,
                max: LIFE,
                root: LIFE,
                intermediate: LIFE,
            },
            upstream: None,
        };
        while let Some(step) = next(slots, &facts) {
            match step {
                Step::MakeTokenKey => add(slots, State::Published, now),
                Step::ActivateTokenKey { generation } => slots.activate_token_key(generation, now),
                Step::RetireTokenKey { generation } => slots.retire_token_key(generation, now),
                step => unreachable!("{step:?} is no step of token keys"),
            }
        }
    }

    #[test]
    fn keys_leave_when_no_token_of_them_is_good_however_busy_rotations_are() {
        // A key that waits to sign for as long as a busy store never rests has lived
        // half of its life when its turn comes, and the next one is made at once.
        for settled_for in [MINUTE / 2, MINUTE] {
            let mut now = UNIX_EPOCH + 20_000 * 24 * 60 * MINUTE;
            let mut slots = Slots::default();
            add(&mut slots, State::Active, now);
            for _ in 0..24 * 60 {
                now += MINUTE;
                turn(&mut slots, now, settled_for);
                let published = slots.token_keys.iter();
                let published = published.filter(|key| key.authority.is_trusted()).count();
                let needed = LINGER.as_secs().div_ceil(LIFE.as_secs() / 2) + 2;
                assert!(published as u64 <= needed, "{published} keys are published");
            }
            assert!(slots.next_token_key() > 100, "they followed each other");
        }
    }
}
