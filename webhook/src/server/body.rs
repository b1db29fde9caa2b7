//! Reading a body whose length nobody vouches for.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The longest review that is read, in bytes: 3 MiB. The API server takes
/// objects of up to 3 MiB, and its store of up to 1.5 MiB, so a pod that could
/// be stored fits with room to spare.
pub(crate) const MAX_BODY: usize = 3 * 1024 * 1024;
/// Of a body that is longer, this much is still read, and thrown away: a client
/// that is cut off in the middle of sending never sees the answer.
const MAX_DISCARDED: usize = 13 * 1024 * 1024;
/// How long a client has to send its body.
const TIMEOUT: Duration = Duration::from_secs(5);
/// All bodies in memory at once, in bytes.
const MAX_BODIES: usize = 64 * 1024 * 1024;
/// Memory is counted in pieces of this many bytes.
const PIECE: usize = 1024;

/// The memory that bodies may take. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_BODIES / PIECE)))
    }
}

/// A whole body, with its share of the budget.
pub(super) struct WholeBody {
    bytes: Vec<u8>,
    _share: Option<OwnedSemaphorePermit>,
}

impl WholeBody {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Budget {
    /// Reads a body of at most [`MAX_BODY`] bytes.
    pub(super) async fn read(&self, body: Body) -> Result<WholeBody, BodyError> {
        timeout(TIMEOUT, self.read_untimed(body))
            .await
            .unwrap_or(Err(BodyError::TooSlow))
    }

    async fn read_untimed(&self, mut body: Body) -> Result<WholeBody, BodyError> {
        let mut bytes = Vec::new();
        let mut share: Option<OwnedSemaphorePermit> = None;
        let mut received: usize = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| BodyError::Cut(error.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue; // Trailers say nothing to us.
            };
            received = received.saturating_add(data.len());
            if received > MAX_BODY {
                (bytes, share) = (Vec::new(), None);
                if received > MAX_DISCARDED {
                    break;
                }
                continue;
            }
            let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = received.div_ceil(PIECE).saturating_sub(held);
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            // Never closed; and a wait that is too long ends with the body's.
            if let Ok(permit) = Arc::clone(&self.0).acquire_many_owned(more).await {
                match &mut share {
                    Some(share) => share.merge(permit),
                    None => share = Some(permit),
                }
            }
            bytes.extend_from_slice(&data);
        }
        if received > MAX_BODY {
            return Err(BodyError::TooLarge);
        }
        Ok(WholeBody {
            bytes,
            _share: share,
        })
    }
}

/// Why there is no whole body.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error(
        "the AdmissionReview is larger than {MAX_BODY} bytes, the most that is read; the pod in \
         it is larger than what Kubernetes could store"
    )]
    TooLarge,
    #[error("the AdmissionReview did not arrive within {TIMEOUT:?}")]
    TooSlow,
    #[error("the AdmissionReview ended early: {0}")]
    Cut(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_body_is_read_and_one_byte_more_is_too_large() {
        let budget = Budget::default();
        let longest = budget.read(Body::from(vec![b'x'; MAX_BODY])).await;
        assert_eq!(longest.unwrap().bytes().len(), MAX_BODY);
        let longer = budget.read(Body::from(vec![b'x'; MAX_BODY + 1])).await;
        assert!(matches!(longer, Err(BodyError::TooLarge)));
        assert_eq!(budget.0.available_permits(), MAX_BODIES / PIECE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_or_finds_no_memory_is_given_up() {
        let never =
            Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let budget = Budget::default();
        assert!(matches!(budget.read(never).await, Err(BodyError::TooSlow)));
        let all = u32::try_from(MAX_BODIES / PIECE).unwrap();
        let _taken = Arc::clone(&budget.0).acquire_many_owned(all).await;
        let waiting = budget.read(Body::from("{}")).await;
        assert!(matches!(waiting, Err(BodyError::TooSlow)));
    }
}
