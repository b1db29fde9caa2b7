//! The keys of an issuer as they are known now, and how to ask for newer ones.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bulkhead_pki::jws::Keys;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::claims::Claims;
use crate::authenticate::memo::Memo;
use crate::https::{FetchError, UrlError};

/// Whoever shows tokens by keys that nobody knows has the keys fetched so often
/// and no more.
pub(super) const LEAST_PAUSE: Duration = Duration::from_secs(10);

/// How long a call waits for the keys: it has still to be served, within ten
/// seconds in all.
const PATIENCE: Duration = Duration::from_secs(3);

/// A set of keys that is good for something.
pub(super) struct KeySet {
    text: Vec<u8>,
    pub(super) keys: Keys,
    /// The tokens that these keys signed; others would have to be asked again.
    pub(super) seen: Memo<Claims>,
}

impl KeySet {
    fn parse(text: Vec<u8>) -> Result<Self, JwksError> {
        let keys = Keys::parse(&text)?;
        if keys.is_empty() {
            return Err(JwksError::NoKey);
        }
        Ok(Self {
            text,
            keys,
            seen: Memo::new(),
        })
    }
}

/// The keys of one issuer, shared by whoever brings them and whoever uses them.
pub struct KnownKeys {
    set: ArcSwapOption<KeySet>,
    fetching: Option<Fetching>,
}

/// How keys that come from elsewhere are asked for.
#[derive(Default)]
struct Fetching {
    wish: Notify,
    wished: Mutex<Wished>,
    attempts: watch::Sender<Attempts>,
}

#[derive(Default)]
struct Wished {
    last: Option<Instant>,
    /// The number of the attempt that answers it.
    attempt: u64,
}

#[derive(Clone, Copy, Default)]
struct Attempts {
    begun: u64,
    ended: u64,
}

impl KnownKeys {
    /// Keys that are here already.
    pub(super) fn here(text: Vec<u8>) -> Result<Self, JwksError> {
        let set = KeySet::parse(text)?;
        Ok(Self {
            set: ArcSwapOption::from_pointee(set),
            fetching: None,
        })
    }

    /// Keys that are still to be fetched.
    pub(super) fn elsewhere() -> Self {
        Self {
            set: ArcSwapOption::empty(),
            fetching: Some(Fetching::default()),
        }
    }

    pub(super) fn set(&self) -> Option<Arc<KeySet>> {
        self.set.load_full()
    }

    /// Whether newer ones can be asked for.
    pub(super) fn are_fetched(&self) -> bool {
        self.fetching.is_some()
    }

    /// Whether this is the text that they were read from.
    pub(super) fn are(&self, text: &[u8]) -> bool {
        self.set.load().as_ref().is_some_and(|set| set.text == text)
    }

    /// Takes others in their place, if they are good for something; whether they
    /// are others.
    pub(super) fn replace(&self, text: Vec<u8>) -> Result<bool, JwksError> {
        if self.are(&text) {
            return Ok(false);
        }
        self.set.store(Some(Arc::new(KeySet::parse(text)?)));
        Ok(true)
    }

    /// Has the keys fetched, and waits until they were: whether they were, since
    /// this was called.
    pub(super) async fn fetched_anew(&self) -> bool {
        let Some(fetching) = &self.fetching else {
            return false;
        };
        let Some(attempt) = fetching.attempt_for_wish(self.set.load().is_some()) else {
            return false;
        };
        let mut attempts = fetching.attempts.subscribe();
        let ended = attempts.wait_for(|attempts| attempts.ended >= attempt);
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        matches!(ended, Ok(Ok(_)))
    }

    /// Resolves when somebody wants newer keys.
    pub(super) async fn wished(&self) {
        match &self.fetching {
            Some(fetching) => fetching.wish.notified().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn attempt_begins(&self) {
        self.note_attempt(|attempts| attempts.begun += 1);
    }

    pub(super) fn attempt_ended(&self) {
        self.note_attempt(|attempts| attempts.ended = attempts.begun);
    }

    fn note_attempt(&self, note: impl FnOnce(&mut Attempts)) {
        if let Some(fetching) = &self.fetching {
            fetching.attempts.send_modify(note);
        }
    }
}

impl Fetching {
    /// The attempt that will show what there is now: one that is still to begin,
    /// or, where there is nothing yet, the one that is under way. None where
    /// somebody had one a moment ago.
    fn attempt_for_wish(&self, has_keys: bool) -> Option<u64> {
        let mut wished = self.wished.lock().unwrap_or_else(PoisonError::into_inner);
        let attempts = *self.attempts.borrow();
        let first_is_under_way = attempts.begun == 0 || attempts.begun > attempts.ended;
        if !has_keys && first_is_under_way {
            return Some(attempts.begun.max(1));
        }
        if wished.attempt > attempts.begun {
            return Some(wished.attempt);
        }
        let now = Instant::now();
        if wished.last.is_some_and(|last| now - last < LEAST_PAUSE) {
            return None;
        }
        *wished = Wished {
            last: Some(now),
            attempt: attempts.begun + 1,
        };
        self.wish.notify_one();
        Some(wished.attempt)
    }
}

/// Why a token issuer's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    #[error("reading the token issuer's keys from {path} failed: {error}")]
    Read {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    #[error("the file of the token issuer's keys is longer than {0} bytes")]
    TooLong(usize),
    #[error("the token issuer's keys are not a JWK set (RFC 7517): {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("there is no RSA, P-256 or P-384 key among the token issuer's keys")]
    NoKey,
    #[error("fetching {0} failed: {1}")]
    Fetch(String, #[source] FetchError),
    #[error("{0} is not an OpenID Connect configuration: {1}")]
    Configuration(String, #[source] serde_json::Error),
    #[error(
        "{place} is the configuration of issuer {found:?}, and that of {expected:?} is expected"
    )]
    OtherIssuer {
        place: String,
        found: String,
        expected: String,
    },
    #[error("{place} says that the keys are at {found:?}: {error}")]
    Address {
        place: String,
        found: String,
        #[source]
        error: UrlError,
    },
}
