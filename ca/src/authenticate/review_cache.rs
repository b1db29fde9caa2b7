//! What the API server said of a token a moment ago.
//!
//! A node's proxy asks with one token for each pod of its node, and a container
//! that restarts again and again with the same: neither needs a review each
//! time. An answer is kept for a short while, never beyond the token's own end,
//! and only while the pod that the token is bound to is known to be there: the
//! review would find the token worthless as soon as its pod is deleted, and so
//! does this.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::Caller;
use super::pods::Pods;

/// The most answers that are kept, of some 500 bytes each.
const MOST: usize = 4096;

/// What a token is found by: its SHA-256.
pub(super) type TokenHash = [u8; 32];

/// The answers.
#[derive(Debug)]
pub struct ReviewCache {
    pods: Arc<Pods>,
    lifetime: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<TokenHash, Answer>,
    /// In the order in which they came.
    order: VecDeque<TokenHash>,
}

#[derive(Debug)]
struct Answer {
    caller: Caller,
    until: SystemTime,
}

impl ReviewCache {
    /// Keeps answers for `lifetime`.
    pub fn new(pods: Arc<Pods>, lifetime: Duration) -> Self {
        Self {
            pods,
            lifetime,
            state: Mutex::default(),
        }
    }

    pub(super) fn get(&self, token: &TokenHash, now: SystemTime) -> Option<Caller> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = state.answers.get(token)?;
        // A clock that went back makes no answer last longer.
        let lasts = answer.until.duration_since(now).ok()?;
        let is_fresh = !lasts.is_zero() && lasts <= self.lifetime;
        let pod = answer.caller.pod()?;
        (is_fresh && self.pods.is_alive(&pod.uid)).then(|| answer.caller.clone())
    }

    /// Keeps an answer about a token that expires at `expires`.
    pub(super) fn put(
        &self,
        token: TokenHash,
        caller: &Caller,
        expires: Option<SystemTime>,
        now: SystemTime,
    ) {
        let Some(expires) = expires else {
            return;
        };
        let until = expires.min(now + self.lifetime);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = Answer {
            caller: caller.clone(),
            until,
        };
        if state.answers.insert(token, answer).is_none() {
            state.order.push_back(token);
        }
        while let Some(first) = state.order.front().copied() {
            let ended = state
                .answers
                .get(&first)
                .is_none_or(|answer| answer.until <= now);
            if !ended && state.order.len() <= MOST {
                break;
            }
            state.order.pop_front();
            state.answers.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pods::tests::{cluster, delete};
    use super::*;
    use bulkhead_core::sidecar::default_trust_domain;
    use std::time::UNIX_EPOCH;

    const LIFETIME: Duration = Duration::from_secs(30);

    fn caller(uid: &str) -> Caller {
        let pod = super::super::Pod {
            name: "cart-0".into(),
            uid: uid.into(),
        };
        let name = "system:serviceaccount:shop:cart";
        let source = super::super::Source::TokenReview;
        Caller::service_account(&default_trust_domain(), name, Some(pod), true, source).unwrap()
    }

    fn cache() -> ReviewCache {
        ReviewCache::new(Arc::new(cluster()), LIFETIME)
    }

    #[test]
    fn an_answer_lasts_a_moment_and_no_longer_than_its_token() {
        let (cache, now) = (cache(), UNIX_EPOCH + Duration::from_secs(1_000_000));
        let ends = now + Duration::from_secs(10);
        cache.put([1; 32], &caller("c"), Some(now + 100 * LIFETIME), now);
        cache.put([2; 32], &caller("c"), Some(ends), now);
        cache.put([3; 32], &caller("c"), None, now);
        assert!(cache.get(&[1; 32], now).is_some() && cache.get(&[2; 32], now).is_some());
        assert!(
            cache.get(&[3; 32], now).is_none(),
            "nobody knows when it ends"
        );
        assert!(cache.get(&[1; 32], ends).is_some() && cache.get(&[2; 32], ends).is_none());
        assert!(cache.get(&[1; 32], now + LIFETIME).is_none());
        assert!(
            cache.get(&[1; 32], now - LIFETIME).is_none(),
            "the clock went back"
        );
    }

    #[test]
    fn an_answer_dies_with_its_pod() {
        let (cache, now) = (cache(), UNIX_EPOCH + Duration::from_secs(1_000_000));
        let expires = Some(now + LIFETIME);
        for (token, uid) in [([2; 32], "c"), ([3; 32], "o")] {
            cache.put(token, &caller(uid), expires, now);
            assert!(cache.get(&token, now).is_some());
        }
        delete(&cache.pods, "c");
        assert!(cache.get(&[2; 32], now).is_none());
        assert!(cache.get(&[3; 32], now).is_some(), "another's stays");
        // A review that began before it ended after.
        cache.put([2; 32], &caller("c"), expires, now);
        assert!(cache.get(&[2; 32], now).is_none());
        cache.put(
            [1; 32],
            &caller("a pod that the watch never showed"),
            expires,
            now,
        );
        assert!(cache.get(&[1; 32], now).is_none());
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let (cache, now) = (cache(), UNIX_EPOCH + Duration::from_secs(1_000_000));
        for number in 0..3 * MOST {
            let mut token = [0; 32];
            token[..8].copy_from_slice(&number.to_le_bytes());
            cache.put(token, &caller("c"), Some(now + LIFETIME), now);
        }
        let state = cache.state.lock().unwrap();
        assert_eq!((state.answers.len(), state.order.len()), (MOST, MOST));
    }
}
