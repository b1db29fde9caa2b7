//! The token that Vault is asked with.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use bulkhead_runtime::clock::Clock;
use serde_json::json;
use zeroize::Zeroizing;

use super::VaultAuthentication;
use super::answer;
use super::client::Client;
use crate::upstream::{Reason, UpstreamError};

/// Gets tokens, and keeps one while it is good.
pub(super) struct Login {
    authentication: VaultAuthentication,
    clock: Clock,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    token: Zeroizing<String>,
    /// When a new one is fetched: at two thirds of its life.
    until: SystemTime,
}

impl Login {
    pub(super) fn new(authentication: VaultAuthentication, clock: Clock) -> Self {
        Self {
            authentication,
            clock,
            kept: Mutex::default(),
        }
    }

    /// A token that is good now, as far as anybody here knows.
    pub(super) async fn token(&self, client: &Client) -> Result<Zeroizing<String>, UpstreamError> {
        match &self.authentication {
            VaultAuthentication::TokenFile(path) => {
                read_token(path, "BULKHEAD_CA_VAULT_TOKEN_FILE").await
            }
            VaultAuthentication::Kubernetes {
                path,
                role,
                token_file,
            } => {
                let now = self.clock.now();
                if let Some(kept) = &*self.kept()
                    && now < kept.until
                {
                    return Ok(kept.token.clone());
                }
                let jwt = read_token(token_file, "BULKHEAD_CA_VAULT_KUBERNETES_TOKEN_FILE").await?;
                let body = json!({"role": role, "jwt": jwt.as_str()});
                let answered = client
                    .post(&format!("auth/{path}/login"), None, &body)
                    .await?;
                let granted = answer::granted(&answered)?;
                *self.kept() = Some(Kept {
                    token: granted.token.clone(),
                    until: now + granted.lifetime / 3 * 2,
                });
                Ok(granted.token)
            }
        }
    }

    /// Forgets the token that is kept, and says whether another can be had.
    pub(super) fn forget(&self) -> bool {
        self.kept().take().is_some()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one word of a file.
async fn read_token(path: &Path, setting: &str) -> Result<Zeroizing<String>, UpstreamError> {
    let problem = |what: &dyn std::fmt::Display| {
        UpstreamError::new(
            Reason::Unusable,
            format!(
                "the token for Vault in {} ({setting}) cannot be used: {what}",
                path.display()
            ),
        )
    };
    let text = tokio::fs::read_to_string(path).await;
    let text = Zeroizing::new(text.map_err(|error| problem(&error))?);
    match text.trim() {
        "" => Err(problem(&"the file is empty")),
        token => Ok(Zeroizing::new(token.to_owned())),
    }
}
