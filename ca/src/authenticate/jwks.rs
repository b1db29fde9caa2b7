//! Tokens of an issuer whose public keys are known here (a JWK set, RFC 7517):
//! from a file ([`mod@file`]), or fetched over HTTPS ([`remote`]).
//!
//! The tokens have the claims that Kubernetes writes, so that the same workload
//! has the same identity wherever it runs, and so that the keys of an API server
//! (`kubectl get --raw /openid/v1/jwks`) can be used as they are.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::jws::JwsError;
use bulkhead_runtime::clock::Clock;

use self::claims::Claims;
use self::file::KeyFile;
use self::keys::KnownKeys;
use super::{Authenticate, AuthenticationError, Caller, Source};
use crate::config::{KeySource, TokenIssuer, TokenRules};

mod claims;
mod discovery;
pub mod file;
mod keys;
pub mod remote;

pub use self::keys::JwksError;

/// Verifies the tokens of one issuer by its keys.
pub struct JwksVerifier {
    issuer: TokenIssuer,
    keys: Arc<KnownKeys>,
    trust_domain: TrustDomain,
    clock: Clock,
}

impl JwksVerifier {
    /// For an issuer with keys that somebody else keeps as they should be. What
    /// is not said of the issuer is as the rules say.
    pub fn new(
        issuer: TokenIssuer,
        rules: &TokenRules,
        keys: Arc<KnownKeys>,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> Self {
        Self {
            issuer: issuer.with_defaults(rules),
            keys,
            trust_domain,
            clock,
        }
    }

    /// By the keys that are in a file now.
    pub async fn open(
        path: PathBuf,
        issuer: String,
        trust_domain: TrustDomain,
        rules: TokenRules,
        clock: Clock,
    ) -> Result<Self, JwksError> {
        let file = KeyFile::open(path.clone()).await?;
        let issuer = TokenIssuer::new(issuer, KeySource::File(path));
        Ok(Self::new(issuer, &rules, file.keys(), trust_domain, clock))
    }

    /// The claims of a token that the issuer signed.
    fn verified(&self, token: &str) -> Result<Arc<Claims>, AuthenticationError> {
        let keys = self.keys.set().ok_or_else(|| self.no_keys())?;
        Ok(keys.seen.recall(token, |token| keys.keys.verify(token))?)
    }

    fn no_keys(&self) -> AuthenticationError {
        AuthenticationError::NoKeys(self.issuer.name.clone())
    }

    /// Nobody could tell whether the token is good.
    fn unknown(&self, error: AuthenticationError) -> AuthenticationError {
        match error {
            AuthenticationError::Signature(_) => {
                AuthenticationError::NewKey(self.issuer.name.clone())
            }
            error => error,
        }
    }
}

#[tonic::async_trait]
impl Authenticate for JwksVerifier {
    async fn authenticate(&self, token: &str) -> Result<Caller, AuthenticationError> {
        let claims = match self.verified(token) {
            // Its key may be newer than ours.
            Err(
                error @ (AuthenticationError::NoKeys(_)
                | AuthenticationError::Signature(JwsError::NoKey)),
            ) if self.keys.are_fetched() => match self.keys.fetched_anew().await {
                true => self.verified(token)?,
                false => return Err(self.unknown(error)),
            },
            verified => verified?,
        };
        let since_epoch = self.clock.now().duration_since(UNIX_EPOCH);
        let now = since_epoch.unwrap_or_default().as_secs();
        claims.check(&self.issuer, now)?;
        let caller = Caller::service_account(
            &self.trust_domain,
            &claims.sub,
            claims.pod().cloned(),
            self.issuer.allow_without_pod != Some(true),
            Source::Jwks,
        )?;
        Ok(caller.on_node(claims.node()))
    }
}
