//! Connections whose clients are known: so many, and then the one that was
//! silent longest makes room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The places. Clones are the same ones.
#[derive(Clone, Debug)]
pub(super) struct Guests {
    most: usize,
    list: Arc<Mutex<List>>,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    /// By when they were heard last.
    guests: BTreeMap<u64, Arc<Notify>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Guests,
    heard: Mutex<u64>,
}

impl Guests {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            list: Arc::default(),
        }
    }

    /// Takes a place; where none is left, whoever was silent longest is asked to
    /// `leave`.
    pub(super) fn enter(&self, leave: Arc<Notify>) -> Guest {
        let mut list = self.list();
        let heard = list.note(leave);
        if list.guests.len() > self.most
            && let Some((_, silent)) = list.guests.pop_first()
        {
            silent.notify_one();
        }
        drop(list);
        Guest {
            guests: self.clone(),
            heard: Mutex::new(heard),
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn note(&mut self, leave: Arc<Notify>) -> u64 {
        let heard = self.next;
        self.next += 1;
        self.guests.insert(heard, leave);
        heard
    }
}

impl Guest {
    /// The client was heard again.
    pub(super) fn is_back(&self) {
        let mut list = self.guests.list();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever was asked to leave does so, and comes back on another connection.
        if let Some(leave) = list.guests.remove(&heard) {
            *heard = list.note(leave);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let heard = self.heard.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.guests.list().guests.remove(heard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn whoever_was_silent_longest_makes_room() {
        let guests = Guests::new(2);
        let leave: [Arc<Notify>; 4] = Default::default();
        let enter = |which: usize| guests.enter(Arc::clone(&leave[which]));
        let asked = |which: usize| leave[which].notified().now_or_never().is_some();
        let [first, second] = [enter(0), enter(1)];
        first.is_back();
        let third = enter(2);
        assert!(asked(1) && !asked(0) && !asked(2));
        drop(second);
        drop(third);
        let _fourth = enter(3);
        assert!(!asked(0) && !asked(3));
        assert_eq!(guests.list().guests.len(), 2);
    }
}
