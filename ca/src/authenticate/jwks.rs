//! Tokens of an issuer whose public keys are in a file (a JWK set, RFC 7517).
//!
//! The tokens have the claims that Kubernetes writes, so that the same workload
//! has the same identity wherever it runs, and so that the keys of an API server
//! (`kubectl get --raw /openid/v1/jwks`) can be used as they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::jws::Keys;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use serde::Deserialize;

use super::memo::Memo;
use super::{Authenticate, AuthenticationError, Caller, Pod};
use crate::config::TokenRules;

/// How far the issuer's clock may be off.
const LEEWAY: u64 = 30;

/// How often the file is looked at for changes.
const REREAD: Duration = Duration::from_secs(2);

/// The longest file that is read, in bytes.
const MAX_FILE: usize = 1024 * 1024;

/// Verifies tokens by the keys in a file, which is read again when it changes.
pub struct JwksVerifier {
    path: PathBuf,
    issuer: String,
    trust_domain: TrustDomain,
    rules: TokenRules,
    clock: Clock,
    keys: ArcSwap<KeySet>,
}

impl JwksVerifier {
    /// Reads the file; without usable keys there is nothing to start for.
    pub async fn open(
        path: PathBuf,
        issuer: String,
        trust_domain: TrustDomain,
        rules: TokenRules,
        clock: Clock,
    ) -> Result<Self, JwksError> {
        let keys = KeySet::parse(read(&path).await?)?;
        Ok(Self {
            path,
            issuer,
            trust_domain,
            rules,
            clock,
            keys: ArcSwap::from_pointee(keys),
        })
    }

    /// Keeps the keys as the file has them, until the drain starts. A file that
    /// cannot be used changes nothing: the keys before it stay good.
    pub async fn follow_file(self: Arc<Self>, mut drain: drain::Watch) {
        let mut ticks = tokio::time::interval(REREAD);
        let mut broken: Option<Vec<u8>> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.started() => return,
            }
            let result = match read(&self.path).await {
                Ok(text) if text == self.keys.load().text => continue,
                Ok(text) if broken.as_ref() == Some(&text) => continue,
                Ok(text) => KeySet::parse(text.clone()).inspect_err(|_| broken = Some(text)),
                Err(error) => Err(error),
            };
            match result {
                Ok(keys) => {
                    tracing::info!(
                        path = %self.path.display(),
                        "the token issuer's keys changed and were read again"
                    );
                    self.keys.store(Arc::new(keys));
                }
                Err(error) => {
                    tracing::warn!(%error, "the token issuer's keys could not be read again; the earlier ones stay in use");
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Authenticate for JwksVerifier {
    async fn authenticate(&self, token: &str) -> Result<Caller, AuthenticationError> {
        let keys = self.keys.load();
        let claims = keys.seen.recall(token, |token| keys.keys.verify(token))?;
        let since_epoch = self.clock.now().duration_since(UNIX_EPOCH);
        let now = since_epoch.unwrap_or_default().as_secs();
        claims.check(&self.issuer, &self.rules.audience, now)?;
        let caller = Caller::service_account(
            &self.trust_domain,
            &claims.sub,
            claims.pod().cloned(),
            !self.rules.allow_without_pod,
            "jwks",
        )?;
        Ok(caller.on_node(claims.node()))
    }
}

/// What the file holds.
struct KeySet {
    text: Vec<u8>,
    keys: Keys,
    /// The tokens that these keys signed; others would have to be asked again.
    seen: Memo<Claims>,
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

/// The claims of a token, as Kubernetes writes them.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: u64,
    #[serde(default)]
    nbf: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Binding>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// What a token is bound to.
#[derive(Debug, Deserialize)]
struct Binding {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Pod>,
    node: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

impl Claims {
    /// The pod that the token is bound to.
    fn pod(&self) -> Option<&Pod> {
        self.kubernetes.as_ref()?.pod.as_ref()
    }

    fn node(&self) -> Option<String> {
        let node = self.kubernetes.as_ref()?.node.as_ref()?;
        Some(node.name.clone())
    }

    /// Every rule on claims, in reading order.
    fn check(&self, issuer: &str, audience: &str, now: u64) -> Result<(), AuthenticationError> {
        if self.iss != issuer {
            let shown = self.iss.chars().take(128).collect();
            return Err(AuthenticationError::Issuer(shown));
        }
        let is_for_us = match &self.aud {
            Audience::One(one) => one == audience,
            Audience::Many(many) => many.iter().any(|one| one == audience),
        };
        if !is_for_us {
            return Err(AuthenticationError::Audience);
        }
        if self.exp.saturating_add(LEEWAY) <= now {
            return Err(AuthenticationError::Expired { at: self.exp, now });
        }
        if self.nbf > now.saturating_add(LEEWAY) {
            return Err(AuthenticationError::NotYetValid { at: self.nbf, now });
        }
        match &self.kubernetes {
            Some(bound) if self.sub != bound.username() => Err(AuthenticationError::Contradiction),
            _ => Ok(()),
        }
    }
}

impl Binding {
    fn username(&self) -> String {
        let name = &self.serviceaccount.name;
        format!("{}{}:{name}", super::SERVICE_ACCOUNT, self.namespace)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, JwksError> {
    let problem = |error| JwksError::Read {
        path: path.to_owned(),
        error,
    };
    let text = tokio::fs::read(path).await.map_err(problem)?;
    if text.len() > MAX_FILE {
        return Err(JwksError::TooLong);
    }
    Ok(text)
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
    #[error("the file of the token issuer's keys is longer than {MAX_FILE} bytes")]
    TooLong,
    #[error("the token issuer's keys are not a JWK set (RFC 7517): {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("there is no RSA, P-256 or P-384 key among the token issuer's keys")]
    NoKey,
}
