//! What a token says, and what it must say.

use serde::Deserialize;

use crate::authenticate::{AuthenticationError, Pod, SERVICE_ACCOUNT};
use crate::config::TokenIssuer;

/// How far the issuer's clock may be off.
const LEEWAY: u64 = 30;

/// The claims of a token, as Kubernetes writes them.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    iss: String,
    pub(super) sub: String,
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
    pub(super) fn pod(&self) -> Option<&Pod> {
        self.kubernetes.as_ref()?.pod.as_ref()
    }

    pub(super) fn node(&self) -> Option<String> {
        let node = self.kubernetes.as_ref()?.node.as_ref()?;
        Some(node.name.clone())
    }

    /// Every rule on claims, in reading order.
    pub(super) fn check(&self, issuer: &TokenIssuer, now: u64) -> Result<(), AuthenticationError> {
        if self.iss != issuer.name {
            let shown = self.iss.chars().take(128).collect();
            return Err(AuthenticationError::Issuer(shown));
        }
        let ours = |audience: &String| issuer.audiences.contains(audience);
        let is_for_us = match &self.aud {
            Audience::One(one) => ours(one),
            Audience::Many(many) => many.iter().any(ours),
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
        if let Some(bound) = &self.kubernetes
            && self.sub != bound.username()
        {
            return Err(AuthenticationError::Contradiction);
        }
        self.check_namespace(issuer)
    }

    /// An issuer speaks of its own namespaces.
    fn check_namespace(&self, issuer: &TokenIssuer) -> Result<(), AuthenticationError> {
        let Some(namespaces) = &issuer.namespaces else {
            return Ok(());
        };
        let account = self.sub.strip_prefix(SERVICE_ACCOUNT);
        let namespace = account.and_then(|account| account.split(':').next());
        match namespace {
            Some(namespace) if namespaces.contains(namespace) => Ok(()),
            _ => Err(AuthenticationError::Namespace(
                self.sub.chars().take(256).collect(),
            )),
        }
    }
}

impl Binding {
    fn username(&self) -> String {
        let name = &self.serviceaccount.name;
        format!("{SERVICE_ACCOUNT}{}:{name}", self.namespace)
    }
}
