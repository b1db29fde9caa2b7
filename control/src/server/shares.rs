//! How much of what there is for all each one holds, so that nobody can take it
//! all.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who holds how many. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Shares<K: Eq + Hash + Clone>(Arc<Inner<K>>);

struct Inner<K> {
    most: usize,
    held: Mutex<HashMap<K, usize>>,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// Nobody may hold more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Inner {
            most,
            held: Mutex::default(),
        }))
    }

    /// One more for `who`; nothing where they hold as many as they may.
    pub(super) fn take(&self, who: K) -> Option<Share<K>> {
        let mut held = self.held();
        let count = held.entry(who.clone()).or_insert(0);
        if *count >= self.0.most {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Share {
            who,
            shares: self.clone(),
        })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of what somebody holds, given back when it is dropped.
pub(super) struct Share<K: Eq + Hash + Clone> {
    who: K,
    shares: Shares<K>,
}

impl<K: Eq + Hash + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        if let Some(count) = held.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_as_many_as_they_may_gets_no_more_and_others_do() {
        let shares = Shares::new(2);
        let (one, _two) = (shares.take("front"), shares.take("front"));
        assert!(one.is_some());
        assert!(shares.take("front").is_none());
        assert!(shares.take("cart").is_some());
        drop(one);
        assert!(shares.take("front").is_some());
    }

    #[test]
    fn nothing_is_kept_of_who_holds_nothing() {
        let shares = Shares::new(1);
        drop(shares.take("front"));
        assert!(shares.held().is_empty());
    }
}
