//! Which root people want to sign.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What was ordered.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// The root that is to sign. One more than the highest there ever was
    /// starts a rotation; an older one that is not retired yet undoes one; none
    /// leaves it with the one that signs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_generation: Option<u64>,
    /// The root to go on to although workloads lack it: whoever is missing then
    /// is cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_generation: Option<u64>,
}

/// Knows what was ordered.
#[tonic::async_trait]
pub trait Orders: Send + Sync + 'static {
    /// The order as it stands, which says nothing where nobody ever gave one;
    /// none where it cannot be known now, and rotations wait.
    fn wanted(&self) -> Option<Order>;

    /// Resolves when the order may have changed since it was last asked for.
    async fn changed(&self);
}

/// Nobody can give an order.
#[derive(Clone, Copy, Debug)]
pub struct NoOrders;

#[tonic::async_trait]
impl Orders for NoOrders {
    fn wanted(&self) -> Option<Order> {
        Some(Order::default())
    }

    async fn changed(&self) {
        std::future::pending().await
    }
}

/// The file in a store's directory that an order is written to.
pub const FILE: &str = "order.json";

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 4096;

/// Orders in a file beside the CA's keys: whoever may write there may have the
/// keys too.
pub struct FileOrders {
    path: PathBuf,
    /// As it was last read well.
    last: Mutex<Option<Order>>,
}

impl FileOrders {
    /// Reads the orders in a store's directory.
    pub fn new(directory: &Path) -> Self {
        Self {
            path: directory.join(FILE),
            last: Mutex::default(),
        }
    }

    /// Writes an order, whole or not at all.
    pub fn write(directory: &Path, order: Order) -> Result<(), OrderError> {
        let problem = |error| OrderError::File {
            path: directory.join(FILE),
            error,
        };
        let text = serde_json::to_vec(&order).map_err(|error| problem(error.into()))?;
        let unfinished = directory.join(format!("{FILE}.new"));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&unfinished)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, directory.join(FILE))?;
            File::open(directory)?.sync_all()
        };
        write().map_err(problem)
    }

    /// Reads the order in a store's directory, if there is one.
    pub fn read(directory: &Path) -> Result<Option<Order>, OrderError> {
        let path = directory.join(FILE);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        match read {
            Ok(_) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|error| OrderError::Text { path, error }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OrderError::File { path, error }),
        }
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

#[tonic::async_trait]
impl Orders for FileOrders {
    /// A file that cannot be read changes nothing about the last order.
    fn wanted(&self) -> Option<Order> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match Self::read(self.directory()) {
            Ok(order) => *last = Some(order.unwrap_or_default()),
            Err(error) => tracing::error!(%error, "the order stands as it was before"),
        }
        *last
    }

    async fn changed(&self) {
        let before = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            tokio::time::sleep(LOOK).await;
            if Self::read(self.directory())
                .is_ok_and(|order| Some(order.unwrap_or_default()) != before)
            {
                return;
            }
        }
    }
}

/// Why an order could not be given or read.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("using {path} failed: {error}")]
    File {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{path} is no order: {error}; write it with `bulkhead-ca root`")]
    Text {
        path: PathBuf,
        #[source]
        error: serde_json::Error,
    },
}
