//! Work that goes on for as long as the process does, and what to do when it
//! does not.
//!
//! A task that ends or panics is gone without a word, and the process goes on
//! without it: certificates are not renewed any more, a watch tells nothing new.
//! Whoever runs the process waits for [`Tasks::ended`] beside its signals, and
//! ends it, so that it is started again.

use std::fmt;

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The tasks and threads without which a process is of no use. Cheap to clone;
/// all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Tasks(watch::Sender<Option<Ended>>);

impl Tasks {
    /// Starts a task that is to go on until somebody drains the process.
    pub fn spawn(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let guard = self.guard(name);
        let watched = async move {
            let _guard = guard;
            work.await;
        };
        tokio::spawn(watched).abort_handle()
    }

    /// To be held by a task or a thread for as long as it goes on.
    pub fn guard(&self, name: &'static str) -> Guard {
        Guard {
            name,
            tasks: self.clone(),
        }
    }

    /// Waits until one has ended, and says which. During a drain all of them
    /// end, so it is to be waited for before that only.
    pub async fn ended(&self) -> Ended {
        let mut first = self.0.subscribe();
        let found = first.wait_for(Option::is_some).await;
        found
            .ok()
            .and_then(|ended| *ended)
            .expect("the sender is ours, and something was waited for")
    }
}

/// Says so when it is dropped.
#[derive(Debug)]
pub struct Guard {
    name: &'static str,
    tasks: Tasks,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let ended = Ended {
            name: self.name,
            panicked: std::thread::panicking(),
        };
        self.tasks.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(ended);
            is_first
        });
    }
}

/// A task that is no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ended {
    pub name: &'static str,
    pub panicked: bool,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.panicked { "panicked" } else { "ended" };
        write!(
            f,
            "{} {how}, and without that this process is of no use: it ends, to be started again; \
             what came before in the log says more",
            self.name
        )
    }
}

impl std::error::Error for Ended {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_named() {
        let tasks = Tasks::default();
        tasks.spawn("the watch", pending());
        tasks.spawn("the renewal", ready(()));
        let ended = tasks.ended().await;
        assert_eq!((ended.name, ended.panicked), ("the renewal", false));

        let tasks = Tasks::default();
        tasks.spawn("the watch", async { panic!("a bug") });
        let ended = tasks.ended().await;
        assert_eq!((ended.name, ended.panicked), ("the watch", true));
        assert!(ended.to_string().starts_with("the watch panicked"));
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_named() {
        let tasks = Tasks::default();
        let guard = tasks.guard("worker-0");
        let thread = std::thread::spawn(move || {
            let _guard = guard;
            panic!("a bug");
        });
        assert_eq!(tasks.ended().await.name, "worker-0");
        assert!(thread.join().is_err());
    }
}
