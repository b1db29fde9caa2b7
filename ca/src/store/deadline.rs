//! A store that answers in time, or says that it did not.

use std::time::Duration;

use super::{Files, Store, StoreError, Stored, Version, Written};

/// How long a store may take. An API server that has much to do answers within
/// seconds; one whose connection is dead without anybody's knowing it never does.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Asks another store, and does not wait for it for ever.
pub struct InTime(pub Box<dyn Store>);

#[tonic::async_trait]
impl Store for InTime {
    async fn load(&self) -> Result<Option<Stored>, StoreError> {
        in_time(self.0.load()).await
    }

    /// What comes too late may yet be written: the next look shows it.
    async fn write(
        &self,
        files: &Files,
        previous: Option<&Version>,
    ) -> Result<Written, StoreError> {
        in_time(self.0.write(files, previous)).await
    }

    /// However long that takes.
    async fn changed(&self) {
        self.0.changed().await;
    }
}

/// Waits for something that a store does.
pub(super) async fn in_time<T>(
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Silent(DEADLINE)),
    }
}
