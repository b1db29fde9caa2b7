//! JWT-SVIDs: tokens by which a workload shows who it is where it cannot show a
//! certificate
//! (<https://github.com/spiffe/spiffe/blob/main/standards/JWT-SVID.md>; RFC 7519).
//!
//! - [`Audiences`]: whom a token is for.
//! - [`JwtKey`]: signs; its public half goes into the trust bundle.
//! - [`JwtAuthorities`]: the public keys of a trust domain; they validate.
//!
//! The header has `alg`, `kid` and `typ`, and nothing else (section 2).

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bulkhead_core::identity::{IdentityError, SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::jwk::{Jwk, JwkSet};
use crate::jws::{JwsError, Keys};
use crate::key::{KeyError, KeyKind, PrivateKey};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// The most audiences of a token. Whoever gets a token can show it to all the
/// others, so that one is usual (section 7.2).
pub const MAX_AUDIENCES: usize = 16;

/// The longest audience, in bytes: as long as a SPIFFE ID may be.
pub const MAX_AUDIENCE: usize = 2048;

/// What marks the keys of JWT-SVIDs in a trust bundle (section 6.1).
pub const KEY_USE: &str = "jwt-svid";

/// Whom a token is for: at least one name, each of them once, in order.
#[derive(Clone, Debug, Eq, PartialEq, Hash, Ord, PartialOrd)]
pub struct Audiences(Vec<String>);

impl Audiences {
    pub fn new(audiences: impl IntoIterator<Item = String>) -> Result<Self, AudienceError> {
        let mut list = Vec::new();
        for audience in audiences {
            if list.len() == MAX_AUDIENCES {
                return Err(AudienceError::TooMany);
            }
            if audience.is_empty() {
                return Err(AudienceError::Empty);
            }
            if audience.len() > MAX_AUDIENCE {
                return Err(AudienceError::TooLong);
            }
            list.push(audience);
        }
        if list.is_empty() {
            return Err(AudienceError::None);
        }
        list.sort_unstable();
        list.dedup();
        Ok(Self(list))
    }

    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

/// Why somebody cannot be meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AudienceError {
    #[error("there is no audience; name whom the token is for")]
    None,
    #[error("an audience is empty; name whom the token is for")]
    Empty,
    #[error("an audience is longer than {MAX_AUDIENCE} bytes")]
    TooLong,
    #[error("there are more than {MAX_AUDIENCES} audiences; ask for a token for each")]
    TooMany,
}

/// What a new token says.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    pub id: &'a SpiffeId,
    pub audiences: &'a Audiences,
    pub issued_at: SystemTime,
    pub lifetime: Duration,
    /// Where the keys can be found by OpenID Connect discovery, if anywhere.
    pub issuer: Option<&'a str>,
}

/// A key that signs JWT-SVIDs: ECDSA P-256, with the algorithm ES256.
///
/// Nothing that prints shows it.
pub struct JwtKey {
    key: PrivateKey,
    /// The same key, for signatures of fixed length (RFC 7518, 3.4).
    pair: EcdsaKeyPair,
    jwk: Jwk,
    id: String,
    /// The header in base64url, which all tokens of this key share.
    header: String,
}

impl JwtKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        PrivateKey::generate().and_then(Self::new)
    }

    /// Takes a key, which must be ECDSA P-256.
    pub fn new(key: PrivateKey) -> Result<Self, KeyError> {
        if key.public_key().kind() != KeyKind::EcdsaP256 {
            return Err(KeyError::Unsupported);
        }
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.to_der()?)
            .map_err(|_| KeyError::Unsupported)?;
        // An uncompressed point (SEC 1, 2.3.3).
        let point = pair.public_key().as_ref();
        let (x, y) = match point.split_first() {
            Some((4, coordinates)) if coordinates.len() == 64 => coordinates.split_at(32),
            _ => return Err(KeyError::Unsupported),
        };
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let id = thumbprint(&x, &y);
        let header = format!(r#"{{"alg":"ES256","kid":"{id}","typ":"JWT"}}"#);
        let jwk = Jwk {
            kty: "EC".to_owned(),
            public_key_use: Some(KEY_USE.to_owned()),
            kid: Some(id.clone()),
            alg: Some("ES256".to_owned()),
            crv: Some("P-256".to_owned()),
            x: Some(x),
            y: Some(y),
            ..Jwk::default()
        };
        Ok(Self {
            key,
            pair,
            jwk,
            header: URL_SAFE_NO_PAD.encode(header),
            id,
        })
    }

    /// The key's name: its thumbprint (RFC 7638), so that nobody has to keep it
    /// beside the key.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn private_key(&self) -> &PrivateKey {
        &self.key
    }

    /// The public half, as it stands in a trust bundle.
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// Signs a token. Times are whole seconds (RFC 7519, 2); a lifetime is cut
    /// to them.
    pub fn sign(&self, claims: &Claims<'_>) -> Result<Zeroizing<String>, KeyError> {
        let since_epoch = claims.issued_at.duration_since(UNIX_EPOCH);
        let issued_at = since_epoch.unwrap_or_default().as_secs();
        let claims = serde_json::to_vec(&Written {
            sub: claims.id.as_str(),
            aud: claims.audiences.as_slice(),
            exp: issued_at.saturating_add(claims.lifetime.as_secs()),
            iat: issued_at,
            iss: claims.issuer,
        })
        .expect("texts and numbers are always JSON");
        let mut token = Zeroizing::new(String::with_capacity(512));
        token.push_str(&self.header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self
            .pair
            .sign(&SystemRandom::new(), token.as_bytes())
            .map_err(|_| KeyError::Sign)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtKey({})", self.id)
    }
}

/// The thumbprint of a P-256 key: SHA-256 over its required members in
/// alphabetical order (RFC 7638, 3.2).
fn thumbprint(x: &str, y: &str) -> String {
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest(&SHA256, members.as_bytes()))
}

/// The claims as they stand in a token.
#[derive(Serialize)]
struct Written<'a> {
    sub: &'a str,
    aud: &'a [String],
    exp: u64,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

/// The public keys that sign the JWT-SVIDs of one trust domain.
pub struct JwtAuthorities {
    trust_domain: TrustDomain,
    /// As they stand in the bundle; only those that can be used.
    jwks: Vec<Jwk>,
    keys: Keys,
}

impl JwtAuthorities {
    /// Picks the keys of JWT-SVIDs out of a trust bundle (section 6.2). There
    /// may be none: then every token is refused.
    pub fn new<'a>(trust_domain: TrustDomain, bundle: impl IntoIterator<Item = &'a Jwk>) -> Self {
        let is_ours = |key: &&Jwk| {
            key.public_key_use.as_deref() == Some(KEY_USE)
                && key.kid.as_deref().is_some_and(|kid| !kid.is_empty())
                && !Keys::of([*key]).is_empty()
        };
        let jwks: Vec<Jwk> = bundle.into_iter().filter(is_ours).cloned().collect();
        Self {
            trust_domain,
            keys: Keys::of(&jwks),
            jwks,
        }
    }

    /// Reads a trust bundle, or the part of one that has the keys of JWT-SVIDs.
    pub fn from_json(trust_domain: TrustDomain, text: &str) -> Result<Self, JwtError> {
        if text.len() > MAX_BUNDLE {
            return Err(JwtError::BundleTooLong);
        }
        let set: JwkSet = serde_json::from_str(text).map_err(JwtError::Bundle)?;
        Ok(Self::new(trust_domain, &set.keys))
    }

    /// The key set in JSON (RFC 7517, 5): the same keys give the same text.
    pub fn to_json(&self) -> String {
        let set = JwkSet {
            keys: self.jwks.clone(),
        };
        serde_json::to_string(&set).expect("texts are always JSON")
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn jwks(&self) -> &[Jwk] {
        &self.jwks
    }

    /// Reads a token that somebody showed, for whom it must be meant.
    ///
    /// Its end is taken at its word, without leeway: the CA's clock wrote it and
    /// lifetimes are minutes.
    pub fn validate(
        &self,
        token: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<JwtSvid, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::TooLong);
        }
        let (header, claims): (_, Map<String, Value>) = self.keys.verify_with_header(token)?;
        if let Some(name) = header.others.keys().next() {
            return Err(JwtError::HeaderMember(name.chars().take(64).collect()));
        }
        if header
            .typ
            .as_deref()
            .is_some_and(|typ| !matches!(typ, "JWT" | "JOSE"))
        {
            return Err(JwtError::Type);
        }
        let key_id = header.kid.ok_or(JwtError::NoKeyId)?;
        let read = Read::deserialize(&claims).map_err(JwtError::Claims)?;
        let id = SpiffeId::parse(&read.sub)?;
        if !id.is_member_of(&self.trust_domain) {
            return Err(JwtError::TrustDomain(id));
        }
        if id.path().is_empty() {
            return Err(JwtError::NoPath(id));
        }
        let audiences = match read.aud {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        };
        if !audiences.iter().any(|one| one == audience) {
            return Err(JwtError::Audience);
        }
        let expires_at = read.exp.at().ok_or(JwtError::Time("exp"))?;
        if expires_at <= now {
            return Err(JwtError::Expired);
        }
        if let Some(not_before) = read.nbf {
            let not_before = not_before.at().ok_or(JwtError::Time("nbf"))?;
            if not_before > now {
                return Err(JwtError::NotYetValid);
            }
        }
        Ok(JwtSvid {
            id,
            key_id,
            audiences,
            expires_at,
            claims,
        })
    }
}

impl fmt::Debug for JwtAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.jwks.iter().filter_map(|key| key.kid.as_deref());
        f.debug_list().entries(ids).finish()
    }
}

impl PartialEq for JwtAuthorities {
    fn eq(&self, other: &Self) -> bool {
        (&self.trust_domain, &self.jwks) == (&other.trust_domain, &other.jwks)
    }
}

/// The longest trust bundle that is read, in bytes of JSON.
const MAX_BUNDLE: usize = 1024 * 1024;

/// What a valid token says. Only validating makes one.
#[derive(Clone, Debug)]
pub struct JwtSvid {
    id: SpiffeId,
    key_id: String,
    audiences: Vec<String>,
    expires_at: SystemTime,
    claims: Map<String, Value>,
}

impl JwtSvid {
    /// Whose token it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The name of the key that signed it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Everything that the token says, in its own words.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// The claims that rules look at.
#[derive(Deserialize)]
struct Read {
    sub: String,
    aud: OneOrMore,
    exp: NumericDate,
    nbf: Option<NumericDate>,
}

/// RFC 7519, 4.1.3.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// Seconds since 1970, which may have a fraction (RFC 7519, 2).
#[derive(Deserialize)]
struct NumericDate(f64);

impl NumericDate {
    fn at(&self) -> Option<SystemTime> {
        let since_epoch = Duration::try_from_secs_f64(self.0).ok()?;
        UNIX_EPOCH.checked_add(since_epoch)
    }
}

impl JwtError {
    /// Whether a later bundle may have the key that signed the token.
    pub fn is_unknown_key(&self) -> bool {
        matches!(self, Self::Signature(JwsError::NoKey))
    }
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token proves nothing: {0}")]
    Signature(#[from] JwsError),
    #[error(
        "the token's header has {0:?}, and may have alg, kid and typ alone (JWT-SVID section 2)"
    )]
    HeaderMember(String),
    #[error("the token's type is neither JWT nor JOSE (JWT-SVID section 2.3)")]
    Type,
    #[error("the token does not say which key signed it (kid)")]
    NoKeyId,
    #[error(
        "the token lacks a claim of a JWT-SVID (sub, aud or exp), or has it in another form: {0}"
    )]
    Claims(serde_json::Error),
    #[error("the token's subject is no SPIFFE ID (JWT-SVID section 3.1): {0}")]
    NotSpiffe(#[from] IdentityError),
    #[error("the token is for {0}, of another trust domain than the key that signed it")]
    TrustDomain(SpiffeId),
    #[error("the token is for {0}, which is a trust domain and no workload")]
    NoPath(SpiffeId),
    #[error("the token is for another audience (JWT-SVID section 3.2)")]
    Audience,
    #[error("the token's claim {0} is no point in time")]
    Time(&'static str),
    #[error(
        "the token has expired (JWT-SVID section 3.3), or the clocks of issuer and validator differ"
    )]
    Expired,
    #[error("the token is not valid yet, or the clocks of issuer and validator differ")]
    NotYetValid,
    #[error("the trust bundle is longer than {MAX_BUNDLE} bytes")]
    BundleTooLong,
    #[error("the trust bundle is not a JWK set (RFC 7517): {0}")]
    Bundle(serde_json::Error),
}

#[cfg(test)]
mod tests;
