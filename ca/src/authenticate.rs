//! Who is calling: a bearer token becomes a [`Caller`], or a reason why not.
//!
//! Two kinds of sources say whether a token is good, behind one trait: the API
//! server ([`token_review`]), and the keys of a token issuer ([`jwks`]) for callers
//! outside the cluster. Where there are several, each token has one judge, by the
//! issuer that it names ([`sources`]). [`local_issuer`] is an issuer of our own.
//!
//! Where the settings allow it, a workload's present certificate stands for a token
//! when it is renewed ([`certificate`]).

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::sync::Arc;

use bulkhead_core::identity::{IdentityError, SpiffeId, TrustDomain};
use bulkhead_pki::jws::JwsError;
use bulkhead_pki::verifier::PeerError;
use serde::{Deserialize, Serialize};
use tonic::metadata::MetadataMap;

use self::certificate::Succession;

pub mod certificate;
pub mod jwks;
pub mod local_issuer;
mod memo;
pub mod pods;
pub mod review_cache;
pub mod sources;
pub mod token_review;
mod unverified;

/// The longest token that is looked at, in bytes. Those of Kubernetes take about
/// 1,100.
const MAX_TOKEN_LENGTH: usize = 8 * 1024;

/// What usernames of ServiceAccounts begin with.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Decides whose token it is.
#[tonic::async_trait]
pub trait Authenticate: Send + Sync + 'static {
    async fn authenticate(&self, token: &str) -> Result<Caller, AuthenticationError>;
}

/// A workload that proved who it is. Only authentication makes one.
#[derive(Clone, Debug)]
pub struct Caller {
    id: SpiffeId,
    pod: Option<Pod>,
    node: Option<String>,
    /// Where the call comes from, where that is known.
    address: Option<IpAddr>,
    source: Source,
    /// What it may have, where its certificate stands for a token.
    succession: Option<Succession>,
}

/// What vouched for a caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The API server.
    TokenReview,
    /// The keys of a token issuer.
    Jwks,
    /// A PodCertificateRequest, by what the API server wrote into it.
    PodCertificateRequest,
    /// The certificate that it has.
    Certificate,
}

impl Source {
    /// As it stands in audit records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TokenReview => "token-review",
            Self::Jwks => "jwks",
            Self::PodCertificateRequest => "pod-certificate-request",
            Self::Certificate => "certificate",
        }
    }
}

/// The pod that a token is bound to.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    pub name: String,
    pub uid: String,
}

impl Caller {
    /// One way to become a caller: by the username of a ServiceAccount.
    pub(crate) fn service_account(
        trust_domain: &TrustDomain,
        username: &str,
        pod: Option<Pod>,
        pod_required: bool,
        source: Source,
    ) -> Result<Self, AuthenticationError> {
        let (namespace, name) = username
            .strip_prefix(SERVICE_ACCOUNT)
            .and_then(|rest| rest.split_once(':'))
            .filter(|(namespace, name)| {
                !namespace.is_empty() && !name.is_empty() && !name.contains(':')
            })
            .ok_or(AuthenticationError::NotAServiceAccount)?;
        if pod_required && pod.is_none() {
            return Err(AuthenticationError::NoPod);
        }
        Ok(Self {
            id: SpiffeId::workload(trust_domain, namespace, name)?,
            pod,
            node: None,
            address: None,
            source,
            succession: None,
        })
    }

    /// The other: by a certificate that peers would believe.
    fn by_certificate(id: SpiffeId, succession: Succession) -> Self {
        Self {
            id,
            pod: None,
            node: None,
            address: None,
            source: Source::Certificate,
            succession: Some(succession),
        }
    }

    #[cfg(test)]
    pub(crate) fn of_pod(id: SpiffeId, pod: Pod) -> Self {
        Self {
            id,
            pod: Some(pod),
            node: None,
            address: None,
            source: Source::TokenReview,
            succession: None,
        }
    }

    /// The identity that the caller may have, and no other.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn pod(&self) -> Option<&Pod> {
        self.pod.as_ref()
    }

    /// The node that the token says its pod runs on, for tokens of Kubernetes 1.32
    /// and later.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    fn on_node(mut self, node: Option<String>) -> Self {
        self.node = node;
        self
    }

    /// Notes where the call comes from.
    #[must_use]
    pub fn from_address(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// What tells this caller from others of its identity: the UID of its pod.
    ///
    /// A token that is bound to no pod may be held by many programs, and nothing in
    /// it says by which; the address does, as far as it goes. Addresses are a few
    /// together (a caller outside the cluster may have any number of them), so that
    /// whoever holds such a token counts as so many pods at most.
    pub fn instance(&self) -> String {
        if let Some(pod) = &self.pod {
            return pod.uid.clone();
        }
        match self.address {
            Some(address) => format!("{}, no pod, {}", self.id, place_of(address)),
            None => self.id.to_string(),
        }
    }

    /// What it may have, where its certificate stands for a token.
    pub fn succession(&self) -> Option<&Succession> {
        self.succession.as_ref()
    }

    /// What vouched for it.
    pub fn source(&self) -> Source {
        self.source
    }
}

/// As how many pods all holders of one identity's tokens count at most that are
/// bound to no pod.
const PLACES_WITHOUT_POD: u64 = 32;

/// Which of the places an address belongs to. Of an IPv6 address the network
/// counts: hosts choose the rest themselves (RFC 4291, 2.5.4).
fn place_of(address: IpAddr) -> u64 {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let hash = match address {
        IpAddr::V4(address) => hasher.hash_one(address),
        IpAddr::V6(address) => hasher.hash_one(&address.segments()[..4]),
    };
    hash % PLACES_WITHOUT_POD
}

/// The token of a call, from its one `authorization` header (RFC 6750, 2.1).
pub fn bearer_token(metadata: &MetadataMap) -> Result<&str, AuthenticationError> {
    let mut headers = metadata.get_all("authorization").iter();
    let header = headers.next().ok_or(AuthenticationError::NoToken)?;
    if headers.next().is_some() {
        return Err(AuthenticationError::TwoTokens);
    }
    let (scheme, token) = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or(AuthenticationError::NotBearer)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(AuthenticationError::NotBearer);
    }
    if token.len() > MAX_TOKEN_LENGTH {
        return Err(AuthenticationError::TokenTooLong);
    }
    Ok(token)
}

/// Why nobody is calling. The texts are for the log: the caller learns nothing.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    #[error("the call has no authorization header")]
    NoToken,
    #[error("the call has more than one authorization header")]
    TwoTokens,
    #[error("the authorization header is not of the form: Bearer TOKEN")]
    NotBearer,
    #[error("the token is longer than {MAX_TOKEN_LENGTH} bytes")]
    TokenTooLong,
    #[error("the token is not one that its issuer signed: {0}")]
    Signature(#[from] JwsError),
    #[error("the token's subject and its ServiceAccount differ")]
    Contradiction,
    #[error("the token is of issuer {0:?}, whom this CA does not believe")]
    Issuer(String),
    #[error("the token does not say who issued it, or is none")]
    NoIssuer,
    #[error("the keys of issuer {0:?} could not be fetched yet: the log says why")]
    NoKeys(String),
    #[error(
        "the token is by a key that issuer {0:?} did not have when its keys were fetched last; they are fetched again"
    )]
    NewKey(String),
    #[error("the token is of {0:?}, and its issuer may not speak of that namespace")]
    Namespace(String),
    #[error("the token is for another audience than this CA")]
    Audience,
    #[error("the token expired at {at}, and this CA's clock says {now} (seconds since 1970)")]
    Expired { at: u64, now: u64 },
    #[error(
        "the token is valid only from {at}, and this CA's clock says {now} (seconds since 1970): do the clocks differ?"
    )]
    NotYetValid { at: u64, now: u64 },
    #[error("the certificate that was shown in place of a token proves nothing: {0}")]
    Certificate(#[from] PeerError),
    #[error(
        "the certificate that was shown in place of a token is too short-lived to be renewed by itself once more: where is the workload's token?"
    )]
    RenewedTooOften,
    #[error("the token is bound to no pod")]
    NoPod,
    #[error("the token is not that of a ServiceAccount")]
    NotAServiceAccount,
    #[error("the ServiceAccount has no identity: {0}")]
    Identity(#[from] IdentityError),
    #[error("the API server rejected the token: {0}")]
    Rejected(String),
    #[error("asking the API server about the token failed: {0}")]
    Review(#[source] Box<kube::Error>),
    /// What somebody else was told who asked about the same token meanwhile.
    #[error(transparent)]
    Shared(Arc<Self>),
    #[error("the API server did not answer a TokenReview in time")]
    ReviewTimeout,
}

impl AuthenticationError {
    /// A stable word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "token_missing",
            Self::TwoTokens
            | Self::NotBearer
            | Self::TokenTooLong
            | Self::NoIssuer
            | Self::Contradiction
            | Self::Signature(JwsError::NotThreeParts | JwsError::NotBase64 | JwsError::Json(_)) => {
                "token_malformed"
            }
            Self::Signature(_) => "token_signature",
            Self::Issuer(_) => "token_issuer",
            Self::NoKeys(_) | Self::NewKey(_) => "token_keys_missing",
            Self::Namespace(_) => "token_namespace",
            Self::Audience => "token_audience",
            Self::Expired { .. } => "token_expired",
            Self::NotYetValid { .. } => "token_not_yet_valid",
            Self::Certificate(error) if error.is_expiry() => "certificate_expired",
            Self::Certificate(_) => "certificate_unverified",
            Self::RenewedTooOften => "certificate_renewed_too_often",
            Self::NoPod => "token_without_pod",
            Self::NotAServiceAccount | Self::Identity(_) => "not_a_service_account",
            Self::Rejected(_) => "token_rejected",
            Self::Review(_) | Self::ReviewTimeout => "token_review_failed",
            Self::Shared(error) => error.reason(),
        }
    }

    /// Whether the token may be good, and nobody could tell: the caller should
    /// come again.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Review(_) | Self::ReviewTimeout | Self::NoKeys(_) | Self::NewKey(_) => true,
            Self::Shared(error) => error.is_temporary(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::sidecar::default_trust_domain;
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn caller(username: &str, pod: Option<Pod>) -> Result<Caller, AuthenticationError> {
        Caller::service_account(&default_trust_domain(), username, pod, true, Source::Jwks)
    }

    fn pod() -> Option<Pod> {
        Some(Pod {
            name: "cart-0".into(),
            uid: "1".into(),
        })
    }

    #[test]
    fn a_service_account_is_a_workload() {
        let caller = caller("system:serviceaccount:shop:cart.v1", pod()).unwrap();
        assert_eq!(
            caller.id().as_str(),
            "spiffe://cluster.local/ns/shop/sa/cart.v1"
        );
        assert_eq!(caller.pod(), pod().as_ref());
    }

    #[test]
    fn whoever_is_not_a_service_account_is_nobody() {
        for username in [
            "",
            "admin",
            "system:node:worker",
            "system:serviceaccount",
            "system:serviceaccount:",
            "system:serviceaccount:shop",
            "system:serviceaccount:shop:",
            "system:serviceaccount::cart",
            "system:serviceaccount:shop:cart:admin",
            "system:serviceaccount:shop/sa/admin:cart",
            "system:serviceaccount:shop:../../kube-system/sa/admin",
            "system:serviceaccount:shop:c%61rt",
            "System:ServiceAccount:shop:cart",
        ] {
            assert!(caller(username, pod()).is_err(), "{username:?}");
        }
    }

    #[test]
    fn a_token_that_is_bound_to_no_pod_is_refused_unless_the_rules_allow_it() {
        let name = "system:serviceaccount:shop:cart";
        assert!(matches!(
            caller(name, None),
            Err(AuthenticationError::NoPod)
        ));
        let domain = default_trust_domain();
        assert!(Caller::service_account(&domain, name, None, false, Source::Jwks).is_ok());
    }

    #[test]
    fn holders_of_tokens_without_a_pod_are_told_apart_and_are_not_without_number() {
        let domain = default_trust_domain();
        let name = "system:serviceaccount:shop:cart";
        let caller =
            |pod| Caller::service_account(&domain, name, pod, false, Source::Jwks).unwrap();
        let from = |address: IpAddr| caller(None).from_address(address).instance();
        let one = from("10.0.0.1".parse().unwrap());
        assert_ne!(one, from("10.0.0.2".parse().unwrap()));
        let distinct = |addresses: Vec<IpAddr>| {
            let instances: BTreeSet<_> = addresses.into_iter().map(from).collect();
            instances.len()
        };
        let many = (0..10_000_u32).map(|number| Ipv4Addr::from(0x0a00_0000 + number).into());
        assert_eq!(distinct(many.collect()), 32);
        let of_one_host = (0..10_000_u16).map(|number| {
            let address = [0x2001, 0xdb8, 0, 7, 0, 0, 0, number];
            Ipv6Addr::from(address).into()
        });
        assert_eq!(distinct(of_one_host.collect()), 1);
        let address = "10.0.0.1".parse().unwrap();
        assert_eq!(caller(pod()).from_address(address).instance(), "1");
    }

    #[test]
    fn a_call_has_one_bearer_token() {
        let metadata = |headers: &[&str]| {
            let mut metadata = MetadataMap::new();
            for header in headers {
                metadata.append("authorization", header.parse().unwrap());
            }
            metadata
        };
        for header in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(bearer_token(&metadata(&[header])).unwrap(), "abc");
        }
        for headers in [
            &[][..],
            &[""],
            &["abc"],
            &["Bearer"],
            &["Bearer "],
            &["Basic abc"],
            &["Bearer abc", "Bearer abc"],
        ] {
            assert!(bearer_token(&metadata(headers)).is_err(), "{headers:?}");
        }
        let long = format!("Bearer {}", "x".repeat(MAX_TOKEN_LENGTH + 1));
        assert!(matches!(
            bearer_token(&metadata(&[&long])),
            Err(AuthenticationError::TokenTooLong)
        ));
    }
}
