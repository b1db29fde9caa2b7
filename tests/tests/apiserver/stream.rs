//! Pods that are created one after the other while something else happens.

use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A task that creates pods until it is told to stop.
pub(crate) struct Stream {
    stop: watch::Sender<bool>,
    created: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Stream {
    /// Every pod must be created, and with a sidecar; the first that is not
    /// ends the stream, and [`Stream::stop`] says what was wrong with it.
    pub(crate) fn start(namespace: Namespace) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (count, created) = watch::channel(0);
        let task = tokio::spawn(async move {
            while !*stopped.borrow() {
                let number = *count.borrow();
                let pod = a_pod(&format!("pod-{number}")).build();
                match namespace.create_pod(&pod).await {
                    Ok(pod) => assert!(is_injected(&pod), "pod {number} has no sidecar"),
                    Err(error) => panic!("pod {number} was not created: {error}"),
                }
                count.send_modify(|count| *count += 1);
            }
        });
        Self {
            stop,
            created,
            task,
        }
    }

    /// Waits until so many more pods have been created.
    pub(crate) async fn more(&mut self, pods: usize) {
        let goal = *self.created.borrow() + pods;
        // The stream has ended early; why, its task says when it is stopped.
        let _ = self.created.wait_for(|created| *created >= goal).await;
    }

    /// Ends the stream and returns how many pods it created.
    pub(crate) async fn stop(self) -> usize {
        self.stop.send_replace(true);
        if let Err(ended) = self.task.await {
            std::panic::resume_unwind(ended.into_panic());
        }
        *self.created.borrow()
    }
}
