//! Which of the processes on one directory leads, and whether others serve beside
//! it.
//!
//! | file | who has it locked |
//! |---|---|
//! | `leader` | the process that takes the steps of rotations, for as long as it serves |
//! | `followers` | every other process that serves, shared; each has written a byte into it |
//!
//! The kernel takes a lock from a process that ends, however it ends. The bytes
//! tell of a follower that came and went between two looks.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_runtime::drain;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::{PRIVATE_FILE, at};
use crate::store::StoreError;

const LEADER: &str = "leader";
const FOLLOWERS: &str = "followers";

/// How often a follower tries to lead.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// One process among those on a directory. Cheap to clone; what it holds is
/// free when the last one goes.
#[derive(Clone)]
pub struct Election {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    leads: watch::Sender<bool>,
    held: Mutex<Held>,
}

/// The lock that this process has.
enum Held {
    Leader {
        _lock: File,
        /// How many followers there were ever, and whether one was there at the
        /// last look.
        seen: (u64, bool),
    },
    Follower {
        _lock: File,
    },
}

impl Election {
    /// Leads where nobody does, and follows else. When this returns, other
    /// processes can know of this one.
    pub fn join(directory: &Path) -> Result<Self, StoreError> {
        let held = match lock_leader(directory)? {
            Some(lock) => Held::Leader {
                _lock: lock,
                seen: (followers_ever(directory)?, false),
            },
            None => Held::Follower {
                _lock: follow(directory)?,
            },
        };
        let leads = matches!(held, Held::Leader { .. });
        Ok(Self {
            shared: Arc::new(Shared {
                directory: directory.to_owned(),
                leads: watch::Sender::new(leads),
                held: Mutex::new(held),
            }),
        })
    }

    /// Whether this process takes the steps.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.shared.leads.subscribe()
    }

    /// Tries to lead until that succeeds or the drain starts.
    pub async fn run(self, mut drain: drain::Watch) {
        let mut tries = interval(TRY_EVERY);
        tries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*self.shared.leads.borrow() {
            tokio::select! {
                _ = tries.tick() => {}
                () = drain.started() => return,
            }
            if let Err(error) = self.try_to_lead() {
                tracing::warn!(%error, "it is not known whether another process leads on this directory; this one does not");
            }
        }
        drain.started().await;
    }

    fn try_to_lead(&self) -> Result<(), StoreError> {
        let Some(lock) = lock_leader(&self.shared.directory)? else {
            return Ok(());
        };
        // Whoever led until now had callers of its own.
        let seen = (followers_ever(&self.shared.directory)?, true);
        *self.held() = Held::Leader { _lock: lock, seen };
        self.shared.leads.send_replace(true);
        tracing::info!("this process leads on its directory now");
        Ok(())
    }

    /// Whether another process has served from the directory since this was asked
    /// before, so that there may be certificates that this one does not know of.
    pub fn others_served(&self) -> bool {
        let asked = self.look_for_others();
        asked.unwrap_or_else(|error| {
            tracing::warn!(%error, "it is not known whether other processes serve from this directory: supposing that they do");
            true
        })
    }

    fn look_for_others(&self) -> Result<bool, StoreError> {
        let directory = &self.shared.directory;
        let mut held = self.held();
        let Held::Leader { seen, .. } = &mut *held else {
            return Ok(true);
        };
        let (ever, was_there) = *seen;
        let is_there = has_followers(directory)?;
        *seen = (followers_ever(directory)?, is_there);
        Ok(is_there || was_there || seen.0 != ever)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leader's lock, if it is free.
fn lock_leader(directory: &Path) -> Result<Option<File>, StoreError> {
    let path = directory.join(LEADER);
    let file = open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(at(&path)(error)),
    }
}

fn follow(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(FOLLOWERS);
    let mut file = open(&path)?;
    // The leader may look at this very moment; that takes no time.
    file.lock_shared()
        .and_then(|()| file.write_all(b"."))
        .and_then(|()| file.sync_all())
        .map_err(at(&path))?;
    Ok(file)
}

fn has_followers(directory: &Path) -> Result<bool, StoreError> {
    let path = directory.join(FOLLOWERS);
    match open(&path)?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(at(&path)(error)),
    }
}

fn followers_ever(directory: &Path) -> Result<u64, StoreError> {
    let path = directory.join(FOLLOWERS);
    match std::fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(at(&path)(error)),
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(PRIVATE_FILE)
        .open(path)
        .map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn join(directory: &TempDir) -> Election {
        Election::join(directory.path()).unwrap()
    }

    fn leads(process: &Election) -> bool {
        *process.leads().borrow()
    }

    #[test]
    fn one_process_leads_and_another_does_when_it_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (join(&directory), join(&directory));
        let third = join(&directory);
        assert_eq!((leads(&first), leads(&second)), (true, false));
        second.try_to_lead().unwrap();
        assert!(!leads(&second), "the first is still there");
        drop(first);
        second.try_to_lead().unwrap();
        third.try_to_lead().unwrap();
        assert_eq!((leads(&second), leads(&third)), (true, false));
    }

    #[test]
    fn the_leader_knows_of_every_process_that_served_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let leader = join(&directory);
        assert!(!leader.others_served(), "it is alone");
        let other = join(&directory);
        assert!(other.others_served());
        assert!(leader.others_served(), "one serves now");
        drop(other);
        assert!(leader.others_served(), "it served since the last look");
        assert!(!leader.others_served());
        drop(join(&directory));
        assert!(leader.others_served(), "it came and went between two looks");
        assert!(!leader.others_served());
    }

    #[test]
    fn a_new_leader_does_not_know_the_callers_of_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (join(&directory), join(&directory));
        drop(first);
        second.try_to_lead().unwrap();
        assert!(second.others_served());
        assert!(!second.others_served(), "and nobody came since");
    }
}
