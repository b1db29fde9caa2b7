//! Keys that are fetched: on a schedule, and at once when a token is by a key
//! that is not among them.
//!
//! ```text
//!  fetched ─▶ wait (as long as its server says, within bounds, with jitter) ─▶ again
//!     │            └─ a token by an unknown key: at once, each ten seconds at most
//!     └─ failed: the last good keys stay in use; again soon, and later each time
//! ```

use std::sync::Arc;
use std::time::Duration;

use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;

use super::discovery;
use super::keys::{JwksError, KnownKeys};
use crate::config::FetchedKeys;
use crate::https::Document;
use crate::metrics::Metrics;

/// How long keys are used before they are fetched again, where their server says
/// nothing; and within which bounds it may say something. A key that is withdrawn
/// is good for so long.
const USUAL_AGE: Duration = Duration::from_secs(300);
const LEAST_AGE: Duration = Duration::from_secs(60);
const MOST_AGE: Duration = Duration::from_secs(3600);

/// After a failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What brings the text of a key set.
#[tonic::async_trait]
pub(super) trait Fetch: Send + Sync + 'static {
    async fn fetch(&self, issuer: &str) -> Result<Document, JwksError>;
}

#[tonic::async_trait]
impl Fetch for FetchedKeys {
    async fn fetch(&self, issuer: &str) -> Result<Document, JwksError> {
        discovery::fetch(self, issuer).await
    }
}

/// Keeps the keys of one issuer as their server has them.
pub struct RemoteKeys {
    issuer: String,
    source: Box<dyn Fetch>,
    keys: Arc<KnownKeys>,
    clock: Clock,
    metrics: Metrics,
}

impl RemoteKeys {
    /// Nothing is fetched until they are followed.
    pub fn new(issuer: String, source: FetchedKeys, clock: Clock, metrics: Metrics) -> Self {
        Self::by(issuer, Box::new(source), clock, metrics)
    }

    fn by(issuer: String, source: Box<dyn Fetch>, clock: Clock, metrics: Metrics) -> Self {
        Self {
            issuer,
            source,
            keys: Arc::new(KnownKeys::elsewhere()),
            clock,
            metrics,
        }
    }

    pub fn keys(&self) -> Arc<KnownKeys> {
        Arc::clone(&self.keys)
    }

    /// Keeps them, until the drain starts.
    pub async fn follow(self, mut drain: drain::Watch) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let wait = tokio::select! {
                wait = self.renew(&mut backoff) => wait,
                () = drain.started() => return,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.keys.wished() => {}
                () = drain.started() => return,
            }
        }
    }

    /// One attempt; how long until the next one is due.
    async fn renew(&self, backoff: &mut Backoff) -> Duration {
        self.keys.attempt_begins();
        let fetched = self.source.fetch(&self.issuer).await;
        let replaced =
            fetched.and_then(|document| Ok((self.keys.replace(document.text)?, document.max_age)));
        let (wait, outcome) = match replaced {
            Ok((is_new, max_age)) => {
                backoff.reset();
                self.metrics.token_keys(&self.issuer, self.clock.now());
                if is_new {
                    tracing::info!(issuer = %self.issuer, "the token issuer has keys that are new to us, and they are in use");
                }
                (until_next(max_age, jitter()), "success")
            }
            Err(error) => {
                let wait = backoff.after_failure(jitter());
                self.complain(&error, wait);
                (wait, "failure")
            }
        };
        self.metrics.token_keys_fetched(&self.issuer, outcome);
        self.keys.attempt_ended();
        wait
    }

    fn complain(&self, error: &JwksError, wait: Duration) {
        let again_in_seconds = wait.as_secs();
        if self.keys.set().is_some() {
            tracing::warn!(
                issuer = %self.issuer, %error, again_in_seconds,
                "the token issuer's keys could not be fetched again; the earlier ones stay in use"
            );
        } else {
            tracing::error!(
                issuer = %self.issuer, %error, again_in_seconds,
                "the token issuer's keys could not be fetched; until they are, nobody gets a certificate with its tokens"
            );
        }
    }
}

/// By a random number from 0 to 1, so that replicas do not come together.
fn until_next(max_age: Option<Duration>, random: f64) -> Duration {
    let age = max_age.unwrap_or(USUAL_AGE).clamp(LEAST_AGE, MOST_AGE);
    age.mul_f64(0.8 + 0.2 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
