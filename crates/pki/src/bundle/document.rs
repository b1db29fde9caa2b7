//! The SPIFFE bundle of a trust domain, as the standard writes it: a JWK Set
//! with the roots of X.509-SVIDs and the keys of JWT-SVIDs.
//!
//! Standards: SPIFFE Trust Domain and Bundle, section 4; X509-SVID, section 6;
//! JWT-SVID, section 6; RFC 7517.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_core::identity::TrustDomain;
use serde::{Deserialize, Serialize};

use super::{BundleError, Roots, TrustBundle};
use crate::certificate::{Certificate, CertificateError};
use crate::jwk::Jwk;
use crate::key::{KeyError, PublicKey};

/// The longest document that is read, in bytes.
const MAX_DOCUMENT: usize = 1024 * 1024;

const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";

/// What a trust domain publishes about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustBundleDocument {
    /// The roots of X.509-SVIDs, in the order of the document. None means that
    /// the domain trusts nobody any more.
    pub x509_authorities: Vec<Certificate>,
    pub jwt_authorities: Vec<JwtAuthority>,
    /// A greater number is a later document; 0 where the document says none.
    pub sequence: u64,
    /// How often a consumer should look again.
    pub refresh_hint: Option<Duration>,
}

/// A key that JWT-SVIDs are verified with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwtAuthority {
    /// What tokens call the key (`kid`).
    pub key_id: String,
    pub key: PublicKey,
}

#[derive(Deserialize, Serialize)]
struct JwkSet {
    keys: Vec<Jwk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

impl TrustBundleDocument {
    pub fn to_json(&self) -> Result<String, DocumentError> {
        let roots = self.x509_authorities.iter().map(root_to_jwk);
        let keys = roots.chain(self.jwt_authorities.iter().map(JwtAuthority::to_jwk));
        let set = JwkSet {
            keys: keys.collect::<Result<_, _>>()?,
            spiffe_sequence: Some(self.sequence).filter(|sequence| *sequence > 0),
            spiffe_refresh_hint: self.refresh_hint.map(|hint| hint.as_secs()),
        };
        serde_json::to_string(&set).map_err(DocumentError::Json)
    }

    /// Reads a document. Entries that the standard tells consumers to ignore
    /// are ignored; an entry that is meant for us and cannot be read makes the
    /// whole document bad, rather than trust smaller than it should be.
    pub fn from_json(text: &str) -> Result<Self, DocumentError> {
        if text.len() > MAX_DOCUMENT {
            return Err(DocumentError::TooLong);
        }
        let set: JwkSet = serde_json::from_str(text).map_err(DocumentError::Json)?;
        let mut document = Self {
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            sequence: set.spiffe_sequence.unwrap_or(0),
            refresh_hint: set.spiffe_refresh_hint.map(Duration::from_secs),
        };
        let known = |jwk: &(usize, &Jwk)| jwk.1.has_known_type();
        for (at, jwk) in set.keys.iter().enumerate().filter(known) {
            match jwk.public_key_use.as_deref() {
                Some(X509_SVID) => document.x509_authorities.extend(root_of(jwk, at)?),
                Some(JWT_SVID) => document.jwt_authorities.extend(JwtAuthority::of(jwk, at)?),
                _ => {}
            }
        }
        Ok(document)
    }

    /// What the document makes members of `trust_domain` trust. Whose bundle it
    /// is, it does not say itself.
    pub fn trust_bundle(&self, trust_domain: TrustDomain) -> Result<TrustBundle, BundleError> {
        let roots = Roots::new(self.x509_authorities.iter().cloned())?;
        Ok(TrustBundle::new(trust_domain, roots).with_sequence(self.sequence))
    }
}

impl JwtAuthority {
    fn to_jwk(&self) -> Result<Jwk, DocumentError> {
        Ok(Jwk {
            public_key_use: Some(JWT_SVID.to_owned()),
            kid: Some(self.key_id.clone()),
            ..Jwk::of(&self.key)?
        })
    }

    /// Nothing for a key without a name: no token could say that it means it.
    fn of(jwk: &Jwk, at: usize) -> Result<Option<Self>, DocumentError> {
        let Some(key_id) = jwk.kid.clone().filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let key = jwk.public_key();
        let key = key.map_err(|error| DocumentError::Key { at, error })?;
        Ok(Some(Self { key_id, key }))
    }
}

fn root_to_jwk(root: &Certificate) -> Result<Jwk, DocumentError> {
    Ok(Jwk {
        public_key_use: Some(X509_SVID.to_owned()),
        x5c: Some(vec![STANDARD.encode(root.der())]),
        ..Jwk::of(&root.public_key()?)?
    })
}

/// The root of an entry; nothing where it carries no certificate. Further
/// certificates say nothing (X509-SVID, 6.2).
fn root_of(jwk: &Jwk, at: usize) -> Result<Option<Certificate>, DocumentError> {
    let Some(text) = jwk
        .x5c
        .as_ref()
        .and_then(|certificates| certificates.first())
    else {
        return Ok(None);
    };
    let malformed = |error| DocumentError::Certificate { at, error };
    let der = STANDARD
        .decode(text)
        .map_err(|_| malformed(CertificateError::Malformed))?;
    Certificate::from_der(der.into())
        .map(Some)
        .map_err(malformed)
}

/// Why a text is no SPIFFE bundle.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("the bundle is longer than the {MAX_DOCUMENT} bytes that are accepted")]
    TooLong,
    #[error("the bundle is not the JSON of a SPIFFE bundle (a JWK Set): {0}")]
    Json(#[source] serde_json::Error),
    #[error("the certificate of key {at} of the bundle cannot be read: {error}")]
    Certificate {
        at: usize,
        #[source]
        error: CertificateError,
    },
    #[error("key {at} of the bundle cannot be used: {error}")]
    Key {
        at: usize,
        #[source]
        error: KeyError,
    },
    #[error("a key cannot be written into a bundle: {0}")]
    Write(#[from] KeyError),
}
