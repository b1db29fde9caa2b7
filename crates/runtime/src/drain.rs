//! Telling everyone to finish, and waiting for them, but not for ever.
//!
//! ```text
//!  Trigger ── drain(deadline) ──▶ every Watch sees `started()`
//!          ◀── done when every Watch is dropped, or the deadline passed
//! ```

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Makes a trigger and the first watch; clone the watch for each piece of work.
pub fn channel() -> (Trigger, Watch) {
    let (start, started) = watch::channel(false);
    let (alive, all_dropped) = mpsc::channel(1);
    let watch = Watch {
        started,
        _alive: alive,
    };
    (Trigger { start, all_dropped }, watch)
}

/// Starts the drain and waits for the work in hand.
#[derive(Debug)]
pub struct Trigger {
    start: watch::Sender<bool>,
    all_dropped: mpsc::Receiver<()>,
}

impl Trigger {
    /// Tells every watch, then waits until all are dropped, `deadline` at most.
    pub async fn drain(mut self, deadline: Duration) -> Outcome {
        self.start.send_replace(true);
        // Nothing is ever sent; the channel ends with its last sender.
        match tokio::time::timeout(deadline, self.all_dropped.recv()).await {
            Ok(_) => Outcome::Finished,
            Err(_) => Outcome::DeadlinePassed,
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Everything in hand was finished.
    Finished,
    /// Something was still running; it will be cut.
    DeadlinePassed,
}

/// Held by a piece of work for as long as it runs.
#[derive(Clone, Debug)]
pub struct Watch {
    started: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

impl Watch {
    /// Whether the drain has started.
    pub fn is_started(&self) -> bool {
        *self.started.borrow()
    }

    /// Waits until the drain starts, which it also does when the trigger is
    /// dropped: whoever would have drained is gone.
    pub async fn started(&mut self) {
        // An error means that the trigger is gone.
        let _ = self.started.wait_for(|started| *started).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_the_last_piece_of_work() {
        let (trigger, mut watch) = channel();
        assert!(!watch.is_started());
        let work = tokio::spawn(async move {
            watch.started().await;
            watch.is_started()
        });
        assert_eq!(
            trigger.drain(Duration::from_secs(5)).await,
            Outcome::Finished
        );
        assert!(work.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_does_not_wait_for_ever() {
        let (trigger, _watch) = channel();
        let outcome = trigger.drain(Duration::from_secs(30)).await;
        assert_eq!(outcome, Outcome::DeadlinePassed);
    }

    #[tokio::test]
    async fn work_ends_when_nobody_is_left_to_drain_it() {
        let (trigger, mut watch) = channel();
        drop(trigger);
        watch.started().await;
    }
}
