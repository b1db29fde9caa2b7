//! Connections whose clients are known: so many, and then whoever has the most
//! of them makes room with the one that was silent longest.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The places. Clones are the same ones.
#[derive(Clone, Debug)]
pub(super) struct Guests {
    most: usize,
    most_leaving: usize,
    list: Arc<Mutex<List>>,
}

/// The ways in which a connection is asked to end.
#[derive(Debug, Default)]
pub(super) struct Door {
    leave: Notify,
    cut: Notify,
}

impl Door {
    /// Ends when the connection should finish its calls and go.
    pub(super) async fn leave(&self) {
        self.leave.notified().await;
    }

    /// Ends when it had its time for that, and others need its place.
    pub(super) async fn cut(&self) {
        self.cut.notified().await;
    }
}

/// When a connection was heard last: no two have the same.
type Heard = u64;

#[derive(Debug, Default)]
struct List {
    next: Heard,
    len: usize,
    /// Each owner's connections, by when they were heard last.
    owners: BTreeMap<Arc<str>, BTreeMap<Heard, Arc<Door>>>,
    /// The owners, by how many they have; of the same number, the one who has
    /// the longest silence last.
    ranks: BTreeMap<Rank, Arc<str>>,
    /// Those that were asked to leave.
    leaving: BTreeMap<Heard, Arc<Door>>,
}

type Rank = (usize, Reverse<Heard>);

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    owner: Arc<str>,
    guests: Guests,
    heard: Mutex<Heard>,
}

impl Guests {
    pub(super) fn new(most: usize, most_leaving: usize) -> Self {
        Self {
            most,
            most_leaving,
            list: Arc::default(),
        }
    }

    /// Takes a place for a connection of `owner`; where none is left, one of
    /// whoever has the most is asked to leave.
    pub(super) fn enter(&self, owner: &str, door: Arc<Door>) -> Guest {
        let owner = Arc::from(owner);
        let mut list = self.list();
        let heard = list.note(&owner, door);
        if list.len > self.most {
            list.make_room(self.most_leaving);
        }
        drop(list);
        Guest {
            owner,
            guests: self.clone(),
            heard: Mutex::new(heard),
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn note(&mut self, owner: &Arc<str>, door: Arc<Door>) -> Heard {
        let heard = self.next;
        self.next += 1;
        self.change(owner, |connections| connections.insert(heard, door));
        self.len += 1;
        heard
    }

    fn remove(&mut self, owner: &Arc<str>, heard: Heard) -> Option<Arc<Door>> {
        let door = self.change(owner, |connections| connections.remove(&heard))?;
        self.len -= 1;
        Some(door)
    }

    /// Asks one to leave. Those that were asked before and are still here have
    /// had their time where there are too many of them.
    fn make_room(&mut self, most_leaving: usize) {
        let Some((Reverse(silent), owner)) = self
            .ranks
            .last_key_value()
            .map(|((_, silent), owner)| (*silent, Arc::clone(owner)))
        else {
            return;
        };
        let Some(door) = self.remove(&owner, silent) else {
            return;
        };
        door.leave.notify_one();
        self.leaving.insert(silent, door);
        if self.leaving.len() > most_leaving
            && let Some((_, first)) = self.leaving.pop_first()
        {
            first.cut.notify_one();
        }
    }

    /// Changes an owner's connections, and its rank with them.
    fn change<T>(
        &mut self,
        owner: &Arc<str>,
        change: impl FnOnce(&mut BTreeMap<Heard, Arc<Door>>) -> T,
    ) -> T {
        let connections = self.owners.entry(Arc::clone(owner)).or_default();
        if let Some(rank) = rank(connections) {
            self.ranks.remove(&rank);
        }
        let changed = change(connections);
        match rank(connections) {
            Some(rank) => {
                self.ranks.insert(rank, Arc::clone(owner));
            }
            None => {
                self.owners.remove(owner);
            }
        }
        changed
    }
}

/// Nothing, where there are no connections.
fn rank(connections: &BTreeMap<Heard, Arc<Door>>) -> Option<Rank> {
    let (silent, _) = connections.first_key_value()?;
    Some((connections.len(), Reverse(*silent)))
}

impl Guest {
    /// The client was heard again.
    pub(super) fn is_back(&self) {
        let mut list = self.guests.list();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever was asked to leave does so, and comes back on another connection.
        if let Some(door) = list.remove(&self.owner, *heard) {
            *heard = list.note(&self.owner, door);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let heard = *self.heard.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut list = self.guests.list();
        list.remove(&self.owner, heard);
        list.leaving.remove(&heard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    /// A connection of `owner`, and its door.
    fn enter(guests: &Guests, owner: &str) -> (Guest, Arc<Door>) {
        let door = Arc::new(Door::default());
        (guests.enter(owner, Arc::clone(&door)), door)
    }

    fn is_asked((_, door): &(Guest, Arc<Door>)) -> bool {
        door.leave().now_or_never().is_some()
    }

    #[tokio::test]
    async fn whoever_was_silent_longest_makes_room() {
        let guests = Guests::new(2, 10);
        let [first, second] = ["a", "b"].map(|owner| enter(&guests, owner));
        first.0.is_back();
        let third = enter(&guests, "c");
        assert!(is_asked(&second) && !is_asked(&first) && !is_asked(&third));
        drop((second, third));
        let fourth = enter(&guests, "d");
        assert!(!is_asked(&first) && !is_asked(&fourth));
        assert_eq!(guests.list().len, 2);
    }

    #[tokio::test]
    async fn one_with_many_connections_makes_room_with_its_own() {
        let guests = Guests::new(10, 100);
        let quiet: Vec<_> = (0..5)
            .map(|n| enter(&guests, &format!("pod-{n}")))
            .collect();
        let greedy: Vec<_> = (0..50).map(|_| enter(&guests, "greedy")).collect();
        assert!(!quiet.iter().any(is_asked), "the others stay");
        assert!(greedy[..45].iter().all(is_asked), "its first ones go");
        assert!(!greedy[45..].iter().any(is_asked), "as many as fit stay");
    }

    #[tokio::test]
    async fn whoever_does_not_leave_is_cut_when_too_many_do_not() {
        let guests = Guests::new(1, 2);
        let connections: Vec<_> = (0..5).map(|_| enter(&guests, "greedy")).collect();
        let is_cut = |(_, door): &(Guest, Arc<Door>)| door.cut().now_or_never().is_some();
        let cut: Vec<_> = connections.iter().map(is_cut).collect();
        assert_eq!(cut, [true, true, false, false, false]);
        drop(connections);
        let list = guests.list();
        let left = (list.len, list.owners.len(), list.ranks.len());
        assert_eq!((left, list.leaving.len()), ((0, 0, 0), 0));
    }
}
