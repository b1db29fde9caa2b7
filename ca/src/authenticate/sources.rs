//! Several judges of tokens, of which each token has one: by the issuer that it
//! names, before anybody has verified that.
//!
//! Whoever writes another issuer's name into a token is judged by that issuer's
//! keys, and fails. No judge is asked about what another refused: what the API
//! server does not believe is not good because some issuer outside signed it, nor
//! the other way round.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::unverified::Unverified;
use super::{Authenticate, AuthenticationError, Caller};

/// The judges.
#[derive(Clone, Default)]
pub struct Sources {
    /// By the names of their issuers.
    pub issuers: BTreeMap<String, Arc<dyn Authenticate>>,
    /// The API server, for everybody else: it knows whom it believes.
    pub kubernetes: Option<Arc<dyn Authenticate>>,
}

impl Sources {
    /// All as one. Where there is one alone, that is it: it says best what is wrong
    /// with a token.
    pub fn into_one(mut self) -> Arc<dyn Authenticate> {
        match (&self.kubernetes, self.issuers.len()) {
            (Some(kubernetes), 0) => Arc::clone(kubernetes),
            (None, 1) => {
                let (_, only) = self.issuers.pop_first().expect("there is one");
                only
            }
            _ => Arc::new(self),
        }
    }

    fn judge(&self, token: &str) -> Result<&dyn Authenticate, AuthenticationError> {
        let unverified = Unverified::of(token);
        let issuer = unverified.issuer();
        let by_name = issuer.and_then(|issuer| self.issuers.get(issuer));
        match (by_name.or(self.kubernetes.as_ref()), issuer) {
            (Some(judge), _) => Ok(judge.as_ref()),
            (None, Some(issuer)) => {
                let shown = issuer.chars().take(128).collect();
                Err(AuthenticationError::Issuer(shown))
            }
            (None, None) => Err(AuthenticationError::NoIssuer),
        }
    }
}

#[tonic::async_trait]
impl Authenticate for Sources {
    async fn authenticate(&self, token: &str) -> Result<Caller, AuthenticationError> {
        self.judge(token)?.authenticate(token).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::Source;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use bulkhead_core::sidecar::default_trust_domain;

    /// Believes everything, or nothing, and calls everybody by its own name.
    struct Judge {
        name: &'static str,
        believes: bool,
    }

    #[tonic::async_trait]
    impl Authenticate for Judge {
        async fn authenticate(&self, _: &str) -> Result<Caller, AuthenticationError> {
            if !self.believes {
                return Err(AuthenticationError::Rejected(self.name.to_owned()));
            }
            let name = format!("system:serviceaccount:judged-by:{}", self.name);
            Caller::service_account(&default_trust_domain(), &name, None, false, Source::Jwks)
        }
    }

    fn judge(name: &'static str, believes: bool) -> Arc<dyn Authenticate> {
        Arc::new(Judge { name, believes })
    }

    fn token(claims: &str) -> String {
        format!("e30.{}.AA", URL_SAFE_NO_PAD.encode(claims))
    }

    /// Who judged a token of this issuer.
    async fn judged(sources: &Sources, claims: &str) -> Result<String, AuthenticationError> {
        let (judges, token) = (sources.clone().into_one(), token(claims));
        let caller = judges.authenticate(&token).await?;
        Ok(caller.id().workload_name().unwrap().1.to_owned())
    }

    fn issuers(believe: bool) -> BTreeMap<String, Arc<dyn Authenticate>> {
        let [vms, lab] = ["vms", "lab"].map(|name| (name.to_owned(), judge(name, believe)));
        [vms, lab].into()
    }

    #[tokio::test]
    async fn each_token_is_judged_by_the_one_whom_its_issuer_names() {
        let sources = Sources {
            issuers: issuers(true),
            kubernetes: Some(judge("cluster", true)),
        };
        for (claims, expected) in [
            (r#"{"iss": "vms"}"#, "vms"),
            (r#"{"iss": "lab"}"#, "lab"),
            (r#"{"iss": "https://kubernetes.default.svc"}"#, "cluster"),
            (r#"{"iss": "VMS"}"#, "cluster"),
            (r#"{"iss": "vms/"}"#, "cluster"),
            (r#"{"iss": ["vms"]}"#, "cluster"),
            (r#"{"iss": "cluster", "iss": "vms"}"#, "cluster"),
            ("{}", "cluster"),
        ] {
            assert_eq!(
                judged(&sources, claims).await.unwrap(),
                expected,
                "{claims}"
            );
        }
    }

    #[tokio::test]
    async fn what_one_refused_nobody_else_is_asked_about() {
        let outside_refuses = Sources {
            issuers: issuers(false),
            kubernetes: Some(judge("cluster", true)),
        };
        let refused = judged(&outside_refuses, r#"{"iss": "vms"}"#).await;
        assert!(matches!(refused, Err(AuthenticationError::Rejected(by)) if by == "vms"));

        let cluster_refuses = Sources {
            issuers: issuers(true),
            kubernetes: Some(judge("cluster", false)),
        };
        let refused = judged(&cluster_refuses, r#"{"iss": "k"}"#).await;
        assert!(matches!(refused, Err(AuthenticationError::Rejected(by)) if by == "cluster"));
    }

    #[tokio::test]
    async fn without_a_cluster_an_issuer_that_nobody_named_is_refused() {
        let sources = Sources {
            issuers: issuers(true),
            kubernetes: None,
        };
        let refused = judged(&sources, r#"{"iss": "k"}"#).await;
        assert!(matches!(refused, Err(AuthenticationError::Issuer(name)) if name == "k"));
        let refused = judged(&sources, "{}").await;
        assert!(matches!(refused, Err(AuthenticationError::NoIssuer)));
    }
}
