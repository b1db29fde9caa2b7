//! Tokens of Kubernetes, judged by the API server.
//!
//! The API server knows whether the pod that the token is bound to still exists.
//! An answer is kept only where a watch knows that too ([`super::review_cache`]),
//! and whoever asks about a token that is being reviewed waits for that review.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bulkhead_core::identity::TrustDomain;
use bulkhead_runtime::clock::Clock;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Api;
use kube::api::PostParams;
use tokio::sync::Semaphore;

use super::review_cache::{ReviewCache, TokenHash};
use super::unverified::Unverified;
use super::{Authenticate, AuthenticationError, Caller, Pod, Source};
use crate::config::TokenRules;

/// How many reviews run at once. More would not be faster, and would take the
/// API server from everybody else when a whole cluster starts.
const MAX_IN_FLIGHT: usize = 64;

/// What every ServiceAccount is a member of.
const GROUP: &str = "system:serviceaccounts";

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// How many reviews are remembered to be under way before those that have ended
/// are looked for.
const MANY: usize = 4 * MAX_IN_FLIGHT;

/// Asks the API server about tokens.
pub struct TokenReviewer {
    reviews: Arc<Reviews>,
    cache: Option<ReviewCache>,
    clock: Clock,
    under_way: Mutex<HashMap<TokenHash, WeakShared<Review>>>,
}

/// How to ask.
struct Reviews {
    api: Api<TokenReview>,
    trust_domain: TrustDomain,
    rules: TokenRules,
    places: Semaphore,
    deadline: Duration,
    clock: Clock,
}

type Review = BoxFuture<'static, Result<Caller, Arc<AuthenticationError>>>;

impl TokenReviewer {
    pub fn new(
        client: kube::Client,
        trust_domain: TrustDomain,
        rules: TokenRules,
        cache: Option<ReviewCache>,
        deadline: Duration,
        clock: Clock,
    ) -> Self {
        Self {
            reviews: Arc::new(Reviews {
                api: Api::all(client),
                trust_domain,
                rules,
                places: Semaphore::new(MAX_IN_FLIGHT),
                deadline,
                clock: clock.clone(),
            }),
            cache,
            clock,
            under_way: Mutex::default(),
        }
    }

    /// The review of this token that is under way, or a new one. It goes on for
    /// as long as anybody waits for it.
    fn review(&self, hash: TokenHash, token: &str) -> Shared<Review> {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(review) = under_way.get(&hash).and_then(WeakShared::upgrade) {
            return review;
        }
        if under_way.len() >= MANY {
            under_way.retain(|_, review| review.upgrade().is_some());
        }
        let (reviews, token) = (Arc::clone(&self.reviews), token.to_owned());
        let review = async move { reviews.caller(&token).await.map_err(Arc::new) };
        let review = review.boxed().shared();
        if let Some(weak) = review.downgrade() {
            under_way.insert(hash, weak);
        }
        review
    }
}

impl Reviews {
    async fn caller(&self, token: &str) -> Result<Caller, AuthenticationError> {
        let status = self.ask(token).await?;
        match judge(status, &self.trust_domain, &self.rules) {
            Err(AuthenticationError::Rejected(why)) => {
                let why = Unverified::of(token).explain(why, self.clock.now());
                Err(AuthenticationError::Rejected(why))
            }
            judged => judged,
        }
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, AuthenticationError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![self.rules.audience.clone()]),
            },
            ..TokenReview::default()
        };
        let asked = async {
            let _place = self.places.acquire().await;
            self.api.create(&PostParams::default(), &review).await
        };
        // When all callers go away this future is dropped, and the request to the
        // API server with it.
        let answer = tokio::time::timeout(self.deadline, asked)
            .await
            .map_err(|_| AuthenticationError::ReviewTimeout)?
            .map_err(|error| AuthenticationError::Review(Box::new(error)))?;
        Ok(answer.status.unwrap_or_default())
    }
}

#[tonic::async_trait]
impl Authenticate for TokenReviewer {
    async fn authenticate(&self, token: &str) -> Result<Caller, AuthenticationError> {
        let mut hash = TokenHash::default();
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let kept = self.cache.as_ref();
        if let Some(caller) = kept.and_then(|cache| cache.get(&hash, self.clock.now())) {
            return Ok(caller);
        }
        let caller = self
            .review(hash, token)
            .await
            .map_err(AuthenticationError::Shared)?;
        if let Some(cache) = &self.cache {
            let expires = Unverified::of(token).expires();
            cache.put(hash, &caller, expires, self.clock.now());
        }
        Ok(caller)
    }
}

/// What the API server's answer means.
fn judge(
    status: TokenReviewStatus,
    trust_domain: &TrustDomain,
    rules: &TokenRules,
) -> Result<Caller, AuthenticationError> {
    if let Some(error) = status.error.filter(|error| !error.is_empty()) {
        return Err(AuthenticationError::Rejected(error));
    }
    if status.authenticated != Some(true) {
        let error = "not authenticated".to_owned();
        return Err(AuthenticationError::Rejected(error));
    }
    // An API server that knows nothing of audiences leaves them out; then the
    // token was checked against none (TokenReview's documentation).
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.contains(&rules.audience) {
        return Err(AuthenticationError::Audience);
    }
    let user = status.user.unwrap_or_default();
    let groups = user.groups.unwrap_or_default();
    if !groups.iter().any(|group| group == GROUP) {
        return Err(AuthenticationError::NotAServiceAccount);
    }
    let extra = user.extra.unwrap_or_default();
    let pod = pod(&extra);
    let caller = Caller::service_account(
        trust_domain,
        &user.username.unwrap_or_default(),
        pod,
        !rules.allow_without_pod,
        Source::TokenReview,
    )?;
    Ok(caller.on_node(only(&extra, NODE_NAME)))
}

fn pod(extra: &BTreeMap<String, Vec<String>>) -> Option<Pod> {
    Some(Pod {
        name: only(extra, POD_NAME)?,
        uid: only(extra, POD_UID)?,
    })
}

fn only(extra: &BTreeMap<String, Vec<String>>, key: &str) -> Option<String> {
    match extra.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod stalled;

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::sidecar::default_trust_domain;
    use k8s_openapi::api::authentication::v1::UserInfo;

    fn status(change: impl FnOnce(&mut TokenReviewStatus)) -> Result<Caller, AuthenticationError> {
        let one = |text: &str| vec![text.to_owned()];
        let mut status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(one("bulkhead-ca")),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:shop:cart".into()),
                groups: Some(one(GROUP)),
                extra: Some(
                    [
                        (POD_NAME.to_owned(), one("cart-0")),
                        (POD_UID.to_owned(), one("1")),
                    ]
                    .into(),
                ),
                uid: None,
            }),
        };
        change(&mut status);
        let rules = TokenRules {
            audience: "bulkhead-ca".into(),
            allow_without_pod: false,
        };
        judge(status, &default_trust_domain(), &rules)
    }

    fn reason(change: impl FnOnce(&mut TokenReviewStatus)) -> &'static str {
        status(change).unwrap_err().reason()
    }

    #[test]
    fn a_reviewed_token_of_a_pod_is_a_caller() {
        let caller = status(|_| {}).unwrap();
        assert_eq!(
            caller.id().as_str(),
            "spiffe://cluster.local/ns/shop/sa/cart"
        );
        assert_eq!(caller.pod().unwrap().name, "cart-0");
    }

    #[test]
    fn anything_less_is_refused_with_the_reason() {
        assert_eq!(
            reason(|status| status.error = Some("token expired".into())),
            "token_rejected"
        );
        for authenticated in [None, Some(false)] {
            assert_eq!(
                reason(|status| status.authenticated = authenticated),
                "token_rejected"
            );
        }
        for audiences in [None, Some(vec![]), Some(vec!["istio-ca".to_owned()])] {
            assert_eq!(
                reason(|status| status.audiences = audiences),
                "token_audience"
            );
        }
        assert_eq!(reason(|status| status.user = None), "not_a_service_account");
        assert_eq!(
            reason(|status| status.user.as_mut().unwrap().groups = None),
            "not_a_service_account"
        );
        assert_eq!(
            reason(|status| status.user.as_mut().unwrap().username = Some("admin".into())),
            "not_a_service_account"
        );
        assert_eq!(
            reason(|status| status.user.as_mut().unwrap().extra = None),
            "token_without_pod"
        );
    }
}
