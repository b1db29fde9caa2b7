//! JWT-SVIDs and the keys that verify them: asked of the CA, and kept a while.
//!
//! A token is kept until half of its life has passed, so that whoever gets it has
//! some of it left; while the CA is away, until its end. What the CA gives is
//! verified before it is given on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::jwt::{Audiences, JwtAuthorities, JwtError, JwtSvid};
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use bulkhead_workload::tokens::{TokenError, TokenSource};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

/// The most tokens that are kept; one is about a kilobyte.
const MAX_KEPT: usize = 64;
/// The most calls to the CA at once, on behalf of the application.
const MAX_CALLS: usize = 4;
/// How often to look for new keys: they are published for longer than this
/// before they sign.
const LOOK: Duration = Duration::from_secs(300);
/// How soon to look again because a token named a key that is not known.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What makes tokens for the workload: the CA.
#[tonic::async_trait]
pub(crate) trait Mint: Send + Sync + 'static {
    async fn mint(&self, audiences: &Audiences) -> Result<Zeroizing<String>, TokenError>;
    async fn authorities(&self) -> Result<JwtAuthorities, TokenError>;
}

#[tonic::async_trait]
impl Mint for TokenSource {
    async fn mint(&self, audiences: &Audiences) -> Result<Zeroizing<String>, TokenError> {
        Self::mint(self, audiences).await
    }

    async fn authorities(&self) -> Result<JwtAuthorities, TokenError> {
        Self::authorities(self).await
    }
}

pub(super) struct Tokens<M> {
    source: M,
    clock: Clock,
    calls: Semaphore,
    kept: Mutex<BTreeMap<Audiences, Kept>>,
    authorities: watch::Sender<Option<Arc<JwtAuthorities>>>,
    /// When the keys were last asked for; held while they are.
    looked: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct Kept {
    token: Arc<Zeroizing<String>>,
    /// When half of its life has passed.
    stale_at: SystemTime,
    expires_at: SystemTime,
}

impl<M: Mint> Tokens<M> {
    pub(super) fn new(source: M, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            source,
            clock,
            calls: Semaphore::new(MAX_CALLS),
            kept: Mutex::default(),
            authorities: watch::Sender::new(None),
            looked: tokio::sync::Mutex::default(),
        })
    }

    /// Keeps the keys as the CA has them; runs for ever.
    pub(super) async fn follow(&self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let wait = match self.look(Duration::ZERO).await {
                Ok(()) => {
                    backoff.reset();
                    LOOK
                }
                Err(error) => {
                    let wait = backoff.after_failure(jitter());
                    tracing::warn!(%error, "asking the CA for the keys of tokens failed; those that are known stay in use");
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// The keys, now and from now on; there are none before the CA has answered
    /// once.
    pub(super) fn authorities(&self) -> watch::Receiver<Option<Arc<JwtAuthorities>>> {
        self.authorities.subscribe()
    }

    /// Looks for keys, unless somebody did within `recently`.
    async fn look(&self, recently: Duration) -> Result<(), TokenError> {
        let mut looked = self.looked.lock().await;
        if looked.is_some_and(|looked| looked.elapsed() < recently) {
            return Ok(());
        }
        let found = self.source.authorities().await;
        *looked = Some(Instant::now());
        let found = found?;
        self.authorities.send_if_modified(|known| {
            let has_changed = known.as_deref() != Some(&found);
            if has_changed {
                *known = Some(Arc::new(found));
            }
            has_changed
        });
        Ok(())
    }

    /// Validates a token. Where its key is not known, it may be a new one.
    pub(super) async fn validate(
        &self,
        token: &str,
        audience: &str,
    ) -> Result<JwtSvid, ValidateError> {
        let known = self.authorities.borrow().clone();
        let first = known.map(|known| known.validate(token, audience, self.clock.now()));
        match first {
            Some(Ok(svid)) => return Ok(svid),
            Some(Err(error)) if !error.is_unknown_key() => return Err(error.into()),
            _ => {}
        }
        self.look(LOOK_AGAIN).await?;
        let known = self.authorities.borrow().clone();
        let known = known.ok_or(ValidateError::NoKeys)?;
        Ok(known.validate(token, audience, self.clock.now())?)
    }

    /// A token of `id` for these audiences.
    pub(super) async fn token(
        &self,
        id: &SpiffeId,
        audiences: &Audiences,
    ) -> Result<Arc<Zeroizing<String>>, ValidateError> {
        let now = self.clock.now();
        let kept = self.kept().get(audiences).cloned();
        if let Some(kept) = kept.as_ref().filter(|kept| now < kept.stale_at) {
            return Ok(Arc::clone(&kept.token));
        }
        match self.fetch(id, audiences).await {
            Ok(fresh) => Ok(self.keep(audiences, fresh)),
            Err(error) => match kept.filter(|kept| now < kept.expires_at) {
                Some(kept) => {
                    tracing::warn!(%error, "getting a fresh token failed; one that is still valid is given out");
                    Ok(kept.token)
                }
                None => Err(error),
            },
        }
    }

    async fn fetch(&self, id: &SpiffeId, audiences: &Audiences) -> Result<Kept, ValidateError> {
        let call = self.calls.acquire().await;
        let token = self.source.mint(audiences).await?;
        drop(call);
        let first = audiences.as_slice().first();
        let audience = first.expect("audiences are some");
        let svid = self.validate(&token, audience).await?;
        if svid.id() != id {
            return Err(ValidateError::AnotherWorkload(svid.id().clone()));
        }
        let now = self.clock.now();
        let left = svid.expires_at().duration_since(now).unwrap_or_default();
        Ok(Kept {
            token: Arc::new(token),
            stale_at: now + left / 2,
            expires_at: svid.expires_at(),
        })
    }

    fn keep(&self, audiences: &Audiences, fresh: Kept) -> Arc<Zeroizing<String>> {
        let token = Arc::clone(&fresh.token);
        let now = self.clock.now();
        let mut kept = self.kept();
        kept.retain(|_, kept| now < kept.expires_at);
        if kept.len() >= MAX_KEPT {
            let soonest = kept.iter().min_by_key(|(_, kept)| kept.expires_at);
            let soonest = soonest.map(|(audiences, _)| audiences.clone());
            soonest.and_then(|audiences| kept.remove(&audiences));
        }
        kept.insert(audiences.clone(), fresh);
        token
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<Audiences, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no token, or one proves nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ValidateError {
    #[error(transparent)]
    Token(#[from] JwtError),
    #[error(transparent)]
    Authority(#[from] TokenError),
    #[error("the CA has not said yet what tokens are verified with")]
    NoKeys,
    #[error("the CA gave a token of {0}, which is another workload")]
    AnotherWorkload(SpiffeId),
}
