//! The workload's JWT-SVIDs: where they come from, and what verifies them.

use std::future::Future;

use bulkhead_pki::jwt::{Audiences, JwtAuthorities, JwtError};
use bulkhead_proto::workload_tokens::{JwtBundleRequest, MintJwtSvidRequest, WorkloadTokensClient};
use tonic::Request;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::authority::{AuthorityError, CALL_TIMEOUT, Remote};
use crate::credentials::Latest;
use crate::settings::Settings;

/// Asks the CA for tokens, as the workload that it is.
pub struct TokenSource {
    authority: Remote,
    settings: Settings,
    latest: Latest,
}

impl TokenSource {
    /// The CA is verified by the roots that the workload holds too, as for a
    /// certificate.
    pub fn new(settings: Settings, latest: Latest) -> Self {
        Self {
            authority: Remote::new(settings.clone()),
            settings,
            latest,
        }
    }

    /// A new token for the workload itself. Nobody has looked at it yet.
    pub async fn mint(&self, audiences: &Audiences) -> Result<Zeroizing<String>, TokenError> {
        within(async {
            let request = MintJwtSvidRequest {
                audiences: audiences.as_slice().to_vec(),
                lifetime: 0,
            };
            let (mut client, request) = self.prepare(request).await?;
            let answer = client.mint_jwt_svid(request).await;
            let token = answer.map_err(AuthorityError::from)?.into_inner().token;
            Ok(Zeroizing::new(token))
        })
        .await
    }

    /// The keys that the trust domain's tokens are verified with, now.
    pub async fn authorities(&self) -> Result<JwtAuthorities, TokenError> {
        within(async {
            let (mut client, request) = self.prepare(JwtBundleRequest {}).await?;
            let answer = client.jwt_bundle(request).await;
            let jwks = answer.map_err(AuthorityError::from)?.into_inner().jwks;
            let domain = self.settings.trust_domain.clone();
            Ok(JwtAuthorities::from_json(domain, &jwks)?)
        })
        .await
    }

    async fn prepare<T>(
        &self,
        message: T,
    ) -> Result<(WorkloadTokensClient<Channel>, Request<T>), AuthorityError> {
        let held = self.latest.get();
        let roots = held.as_ref().map(|held| held.identity().bundle().roots());
        let (channel, token) = self.authority.prove(roots).await?;
        let mut request = Request::new(message);
        request.set_timeout(CALL_TIMEOUT);
        request.metadata_mut().insert("authorization", token);
        Ok((WorkloadTokensClient::new(channel), request))
    }
}

async fn within<T>(call: impl Future<Output = Result<T, TokenError>>) -> Result<T, TokenError> {
    let answered = tokio::time::timeout(CALL_TIMEOUT, call).await;
    answered.map_err(|_| AuthorityError::Timeout(CALL_TIMEOUT))?
}

/// Why there is no token, or nothing to verify one with.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TokenError(#[from] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Authority(AuthorityError),
    #[error("the CA's keys for tokens cannot be used: {0}")]
    Keys(JwtError),
}

impl From<AuthorityError> for TokenError {
    fn from(error: AuthorityError) -> Self {
        Self(Cause::Authority(error))
    }
}

impl From<JwtError> for TokenError {
    fn from(error: JwtError) -> Self {
        Self(Cause::Keys(error))
    }
}
