//! What people ask of the CA, by the object's spec.

use tokio::sync::Mutex;

use super::Latest;
use crate::rotation::orders::{Order, Orders};

/// Reads orders from the object.
pub struct SpecOrders {
    latest: Latest,
    /// Its own mark of what has been seen, for [`Orders::changed`].
    changes: Mutex<Latest>,
}

impl SpecOrders {
    pub fn new(latest: Latest) -> Self {
        Self {
            changes: Mutex::new(latest.clone()),
            latest,
        }
    }
}

#[tonic::async_trait]
impl Orders for SpecOrders {
    fn wanted(&self) -> Option<Order> {
        let latest = self.latest.borrow();
        let spec = &latest.as_ref()?.spec;
        Some(Order {
            root_generation: spec.root_generation.map(u64::from),
            force_generation: spec.force_generation.map(u64::from),
        })
    }

    async fn changed(&self) {
        if self.changes.lock().await.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
