//! What belongs to everybody is put back, however a test ends.

use std::panic::{AssertUnwindSafe, resume_unwind};

use futures::FutureExt as _;

/// Runs the first, then the second, also where the first panics.
pub(crate) async fn afterwards<T>(
    test: impl Future<Output = T>,
    put_back: impl Future<Output = ()>,
) -> T {
    let ended = AssertUnwindSafe(test).catch_unwind().await;
    put_back.await;
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}
