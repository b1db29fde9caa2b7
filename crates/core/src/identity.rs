//! Trust domains and SPIFFE IDs.
//!
//! A value of these types that exists is valid by the SPIFFE-ID standard
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>,
//! section 2), so nothing past the parser checks again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest trust domain name that is accepted, in bytes (SPIFFE-ID 2.4).
pub const MAX_TRUST_DOMAIN_LENGTH: usize = 255;

/// The longest SPIFFE ID that is accepted, in bytes. The standard asks every
/// implementation to support at least this and forbids making longer ones.
pub const MAX_SPIFFE_ID_LENGTH: usize = 2048;

const SCHEME: &str = "spiffe://";

/// The name of a trust domain, such as `cluster.local`.
///
/// Lower-case letters, digits, `.`, `-` and `_`; never empty. A name that looks
/// like an IP address or a DNS name means nothing more than any other.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Parses a name; letters are folded to lower case, as the standard asks.
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        let reject = |problem| Err(IdentityError::new(name, problem));
        if name.is_empty() {
            return reject(Problem::EmptyTrustDomain);
        }
        if name.len() > MAX_TRUST_DOMAIN_LENGTH {
            return reject(Problem::TrustDomainTooLong);
        }
        if !name.bytes().all(is_name_byte) {
            return reject(Problem::TrustDomainCharacter);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, which has no path. Signing
    /// certificates carry it; nothing may authenticate with it.
    pub fn id(&self) -> SpiffeId {
        SpiffeId {
            uri: format!("{SCHEME}{}", self.0),
            path_at: SCHEME.len() + self.0.len(),
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

/// A SPIFFE ID: `spiffe://<trust domain>/<path>`.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    /// The whole ID in canonical form: scheme and trust domain in lower case.
    uri: String,
    /// Where the path starts in `uri`; `uri.len()` where there is none.
    path_at: usize,
}

impl SpiffeId {
    /// Parses an ID by the letter of SPIFFE-ID section 2: no query, fragment,
    /// user info, port or percent-encoding, no empty or relative path segment.
    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let reject = |problem| Err(IdentityError::new(uri, problem));
        if uri.len() > MAX_SPIFFE_ID_LENGTH {
            return reject(Problem::TooLong);
        }
        let rest = match uri.get(..SCHEME.len()) {
            Some(scheme) if scheme.eq_ignore_ascii_case(SCHEME) => &uri[SCHEME.len()..],
            _ => return reject(Problem::Scheme),
        };
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let domain =
            TrustDomain::new(domain).map_err(|error| IdentityError::new(uri, error.problem))?;
        for segment in path.split('/').skip(1) {
            match segment {
                "" => return reject(Problem::EmptySegment),
                "." | ".." => return reject(Problem::RelativeSegment),
                _ if !segment.bytes().all(is_name_byte) => {
                    return reject(Problem::PathCharacter);
                }
                _ => {}
            }
        }
        let mut id = domain.id();
        id.uri.push_str(path);
        Ok(id)
    }

    /// The ID of a Kubernetes workload:
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        Self::parse(&format!(
            "{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"
        ))
        .and_then(|id| match id.workload_name() {
            // A namespace with a slash would otherwise name somebody else.
            Some(name) if name == (namespace, service_account) => Ok(id),
            _ => Err(IdentityError::new(id.as_str(), Problem::NotAWorkload)),
        })
    }

    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The name of the trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.path_at]
    }

    /// The path with its leading slash, or `""` for the ID of a trust domain.
    pub fn path(&self) -> &str {
        &self.uri[self.path_at..]
    }

    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain() == trust_domain.as_str()
    }

    /// `(namespace, service account)` where the path is that of a Kubernetes
    /// workload, and nothing for any other valid path.
    pub fn workload_name(&self) -> Option<(&str, &str)> {
        let mut segments = self.path().split('/').skip(1);
        let name = match (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) {
            (Some("ns"), Some(namespace), Some("sa"), Some(service_account)) => {
                (namespace, service_account)
            }
            _ => return None,
        };
        segments.next().is_none().then_some(name)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        Self::parse(uri)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = IdentityError;

    fn try_from(uri: String) -> Result<Self, Self::Error> {
        Self::parse(&uri)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.uri
    }
}

/// The bytes of a trust domain (folded to lower case) and of a path segment.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// Why a text is not a trust domain or SPIFFE ID.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not a valid SPIFFE identity: {problem}")]
pub struct IdentityError {
    text: String,
    problem: Problem,
}

impl IdentityError {
    fn new(text: &str, problem: Problem) -> Self {
        // A hostile text may be megabytes long; its beginning tells enough.
        let text = text.chars().take(128).collect();
        Self { text, problem }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Problem {
    #[error("it must start with spiffe://")]
    Scheme,
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    #[error("the trust domain is longer than {MAX_TRUST_DOMAIN_LENGTH} bytes")]
    TrustDomainTooLong,
    #[error("a trust domain has only letters, digits, '.', '-' and '_'")]
    TrustDomainCharacter,
    #[error("a path segment is empty, or the path ends in '/'")]
    EmptySegment,
    #[error("'.' and '..' are not allowed as path segments")]
    RelativeSegment,
    #[error("a path has only letters, digits, '.', '-' and '_' between slashes")]
    PathCharacter,
    #[error("it is longer than {MAX_SPIFFE_ID_LENGTH} bytes")]
    TooLong,
    #[error("namespace and service account must be one path segment each")]
    NotAWorkload,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_named_by_namespace_and_service_account() {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let id = SpiffeId::workload(&domain, "shop", "cart").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.path(), "/ns/shop/sa/cart");
        assert_eq!(id.workload_name(), Some(("shop", "cart")));
        assert!(id.is_member_of(&domain));
    }

    #[test]
    fn a_slash_in_a_name_cannot_make_somebody_elses_identity() {
        let domain = TrustDomain::new("cluster.local").unwrap();
        assert!(SpiffeId::workload(&domain, "shop/sa/cart", "x").is_err());
        assert!(SpiffeId::workload(&domain, "shop", "cart/sa/x").is_err());
        assert!(SpiffeId::workload(&domain, "", "cart").is_err());
    }

    #[test]
    fn every_rule_of_the_standard_refuses() {
        let long_domain = format!("spiffe://{}/x", "a".repeat(256));
        let long_path = format!("spiffe://a/{}", "a".repeat(2048));
        for bad in [
            "",
            "spiffe",
            "spiffe:/cluster.local/x",
            "https://cluster.local/x",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/./x",
            "spiffe://cluster.local/x?y",
            "spiffe://cluster.local/x#y",
            "spiffe://cluster.local:8080/x",
            "spiffe://user@cluster.local/x",
            "spiffe://cluster.local/%61",
            "spiffe://clust%65r.local/x",
            "spiffe://clüster.local/x",
            "spiffe://cluster.local/é",
            "spiffe://cluster.local/x\0",
            long_domain.as_str(),
            long_path.as_str(),
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn scheme_and_trust_domain_ignore_case_and_the_path_does_not() {
        let id = SpiffeId::parse("SPIFFE://Cluster.LOCAL/ns/A/sa/b").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/A/sa/b");
        assert_ne!(
            id,
            SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap()
        );
    }

    #[test]
    fn the_longest_id_is_accepted_and_a_domain_may_look_like_an_address() {
        let head = "spiffe://10.0.0.1/";
        let longest = format!("{head}{}", "a".repeat(MAX_SPIFFE_ID_LENGTH - head.len()));
        assert_eq!(SpiffeId::parse(&longest).unwrap().as_str(), longest);
    }

    #[test]
    fn a_trust_domains_own_id_has_no_path() {
        let id = TrustDomain::new("cluster.local").unwrap().id();
        assert_eq!(id, SpiffeId::parse("spiffe://cluster.local").unwrap());
        assert_eq!((id.path(), id.workload_name()), ("", None));
    }
}
