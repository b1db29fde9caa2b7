//! The signature of a token: JWS compact serialization (RFC 7515) under the
//! public keys of a JWK set (RFC 7517).
//!
//! Keys are parsed once, when their set is read, because a CA verifies one token
//! for each certificate. What a token may be signed with is a table, which is also
//! that of JWT-SVID (section 2.1); `none` and shared secrets are not in it.

use std::collections::BTreeMap;

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::jwk::{Jwk, JwkSet};

/// The algorithms for RSA keys (RFC 7518, 3.3 and 3.5).
const RSA: [(&str, &RsaParameters); 6] = [
    ("RS256", &RSA_PKCS1_2048_8192_SHA256),
    ("RS384", &RSA_PKCS1_2048_8192_SHA384),
    ("RS512", &RSA_PKCS1_2048_8192_SHA512),
    ("PS256", &RSA_PSS_2048_8192_SHA256),
    ("PS384", &RSA_PSS_2048_8192_SHA384),
    ("PS512", &RSA_PSS_2048_8192_SHA512),
];

/// The algorithm of each curve (RFC 7518, 3.4), and how long a coordinate of its
/// points is in bytes (6.2.1.2).
const EC: [(&str, &str, usize, &dyn VerificationAlgorithm); 3] = [
    ("P-256", "ES256", 32, &ECDSA_P256_SHA256_FIXED),
    ("P-384", "ES384", 48, &ECDSA_P384_SHA384_FIXED),
    ("P-521", "ES512", 66, &ECDSA_P521_SHA512_FIXED),
];

/// The usable keys of a token issuer.
pub struct Keys(Vec<Key>);

/// A key, with the one algorithm that it is used with here.
struct Key {
    id: Option<String>,
    algorithm: &'static str,
    key: ParsedPublicKey,
}

/// What is said about a token in front of it (RFC 7515, 4.1).
#[derive(Deserialize)]
pub(crate) struct Header {
    pub(crate) alg: String,
    #[serde(default)]
    pub(crate) kid: Option<String>,
    #[serde(default)]
    pub(crate) typ: Option<String>,
    /// Extensions that must be understood; none is (4.1.11).
    #[serde(default)]
    crit: Option<IgnoredAny>,
    /// Whatever else is said.
    #[serde(flatten)]
    pub(crate) others: BTreeMap<String, IgnoredAny>,
}

impl Keys {
    /// Takes the keys that are good for signing tokens; others are passed over,
    /// as RFC 7517 (section 5) asks.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let set: JwkSet = serde_json::from_slice(text)?;
        Ok(Self::of(&set.keys))
    }

    pub(crate) fn of<'a>(keys: impl IntoIterator<Item = &'a Jwk>) -> Self {
        Self(keys.into_iter().flat_map(Key::of).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The claims of a token that one of these keys signed.
    pub fn verify<T: DeserializeOwned>(&self, token: &str) -> Result<T, JwsError> {
        self.verify_with_header(token).map(|(_, claims)| claims)
    }

    pub(crate) fn verify_with_header<T: DeserializeOwned>(
        &self,
        token: &str,
    ) -> Result<(Header, T), JwsError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(JwsError::NotThreeParts)?;
        let (header, claims) = signed.split_once('.').ok_or(JwsError::NotThreeParts)?;
        let header: Header = serde_json::from_slice(&decode(header)?)?;
        if header.crit.is_some() {
            return Err(JwsError::Critical);
        }
        let signature = decode(signature)?;
        let is_candidate = |key: &&Key| {
            key.algorithm == header.alg
                && (header.kid.is_none() || key.id.is_none() || key.id == header.kid)
        };
        let mut candidates = self.0.iter().filter(is_candidate).peekable();
        if candidates.peek().is_none() {
            return Err(JwsError::NoKey);
        }
        if candidates.any(|key| {
            let verified = key.key.verify_sig(signed.as_bytes(), &signature);
            verified.is_ok()
        }) {
            let claims = serde_json::from_slice(&decode(claims)?)?;
            Ok((header, claims))
        } else {
            Err(JwsError::Signature)
        }
    }
}

impl Key {
    /// A key for each algorithm that goes with it: the one that it names, or
    /// every one of its type. A key for encryption is for none.
    fn of(jwk: &Jwk) -> Vec<Self> {
        if jwk.public_key_use.as_deref() == Some("enc") {
            return Vec::new();
        }
        let is_named = |algorithm: &str| jwk.alg.as_deref().is_none_or(|named| named == algorithm);
        let with = |algorithm, key| Self {
            id: jwk.kid.clone(),
            algorithm,
            key,
        };
        match jwk.kty.as_str() {
            "RSA" => RSA
                .into_iter()
                .filter(|(algorithm, _)| is_named(algorithm))
                .filter_map(|(algorithm, how)| Some(with(algorithm, rsa_key(jwk, how)?)))
                .collect(),
            "EC" => EC
                .into_iter()
                .filter(|(curve, algorithm, ..)| {
                    jwk.crv.as_deref() == Some(curve) && is_named(algorithm)
                })
                .filter_map(|(_, algorithm, length, how)| {
                    Some(with(algorithm, ec_key(jwk, length, how)?))
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

fn rsa_key(jwk: &Jwk, how: &'static RsaParameters) -> Option<ParsedPublicKey> {
    let components = PublicKeyComponents {
        n: decode(jwk.n.as_deref()?).ok()?,
        e: decode(jwk.e.as_deref()?).ok()?,
    };
    components.to_parsed_public_key(how).ok()
}

fn ec_key(
    jwk: &Jwk,
    length: usize,
    how: &'static dyn VerificationAlgorithm,
) -> Option<ParsedPublicKey> {
    let coordinate = |text: &Option<String>| {
        let bytes = decode(text.as_deref()?).ok()?;
        (bytes.len() == length).then_some(bytes)
    };
    // An uncompressed point (SEC 1, 2.3.3).
    let point = [vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat();
    ParsedPublicKey::new(how, point).ok()
}

fn decode(part: &str) -> Result<Vec<u8>, JwsError> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| JwsError::NotBase64)
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum JwsError {
    #[error("it does not have three parts")]
    NotThreeParts,
    #[error("a part is not base64url")]
    NotBase64,
    #[error("its header or claims are not those that such a token has: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its header asks for an extension")]
    Critical,
    #[error("the issuer has no key of its name and algorithm")]
    NoKey,
    #[error("its signature is wrong")]
    Signature,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair};
    use jsonwebtoken::{Algorithm, EncodingKey};
    use serde_json::{Value, json};

    /// An issuer's keys, and a token by one of them.
    fn issuer(key: &EncodingKey, algorithm: Algorithm) -> (Keys, String) {
        let mut jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(key, algorithm).unwrap();
        jwk.common.key_id = Some("one".into());
        let set = serde_json::to_vec(&json!({ "keys": [jwk] })).unwrap();
        let mut header = jsonwebtoken::Header::new(algorithm);
        header.kid = Some("one".into());
        let token = jsonwebtoken::encode(&header, &json!({"a": 1}), key).unwrap();
        (Keys::parse(&set).unwrap(), token)
    }

    fn rsa() -> EncodingKey {
        let pem = PrivateKey::generate_rsa().unwrap().to_pem().unwrap();
        EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()
    }

    fn p256() -> EncodingKey {
        let pem = PrivateKey::generate().unwrap().to_pem().unwrap();
        EncodingKey::from_ec_pem(pem.as_bytes()).unwrap()
    }

    fn p384() -> EncodingKey {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
        EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref())
    }

    #[test]
    fn tokens_by_every_accepted_algorithm_are_verified() {
        let (rsa, p256, p384) = (rsa(), p256(), p384());
        for (key, algorithm) in [
            (&rsa, Algorithm::RS256),
            (&rsa, Algorithm::RS384),
            (&rsa, Algorithm::RS512),
            (&rsa, Algorithm::PS256),
            (&rsa, Algorithm::PS384),
            (&rsa, Algorithm::PS512),
            (&p256, Algorithm::ES256),
            (&p384, Algorithm::ES384),
        ] {
            let (keys, token) = issuer(key, algorithm);
            assert_eq!(keys.verify::<Value>(&token).unwrap(), json!({"a": 1}));
        }
    }

    #[test]
    fn a_token_that_was_changed_anywhere_is_refused() {
        let (keys, token) = issuer(&p256(), Algorithm::ES256);
        for at in 0..token.len() {
            let mut bent = token.clone().into_bytes();
            bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
            let bent = String::from_utf8(bent).unwrap();
            assert!(keys.verify::<Value>(&bent).is_err(), "{at}: {bent}");
        }
        for length in 0..token.len() {
            assert!(keys.verify::<Value>(&token[..length]).is_err());
        }
        for bent in [
            format!("{token}."),
            format!(".{token}"),
            format!("{token}="),
        ] {
            assert!(keys.verify::<Value>(&bent).is_err());
        }
    }

    #[test]
    fn another_key_another_name_and_another_algorithm_are_refused() {
        let key = rsa();
        let (keys, token) = issuer(&key, Algorithm::RS256);
        let (others, _) = issuer(&rsa(), Algorithm::RS256);
        assert!(matches!(
            others.verify::<Value>(&token),
            Err(JwsError::Signature)
        ));
        let sign = |algorithm, kid: &str| {
            let mut header = jsonwebtoken::Header::new(algorithm);
            header.kid = Some(kid.into());
            jsonwebtoken::encode(&header, &json!({}), &key).unwrap()
        };
        // The set says what the key is for: RS256.
        for token in [sign(Algorithm::RS256, "two"), sign(Algorithm::PS256, "one")] {
            assert!(matches!(keys.verify::<Value>(&token), Err(JwsError::NoKey)));
        }
    }

    #[test]
    fn a_header_that_asks_for_an_extension_is_refused() {
        let (keys, token) = issuer(&rsa(), Algorithm::RS256);
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","crit":["b64"],"b64":false}"#);
        let (_, rest) = token.split_once('.').unwrap();
        assert!(matches!(
            keys.verify::<Value>(&format!("{header}.{rest}")),
            Err(JwsError::Critical)
        ));
    }

    #[test]
    fn keys_that_are_not_for_tokens_are_passed_over() {
        for set in [
            json!({"keys": []}),
            json!({"keys": [{"kty": "oct", "k": "AAAA", "alg": "HS256"}]}),
            json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}),
            json!({"keys": [{"kty": "RSA", "n": "!", "e": "AQAB"}]}),
            json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA"}]}),
        ] {
            let keys = Keys::parse(set.to_string().as_bytes()).unwrap();
            assert!(keys.is_empty(), "{set}");
        }
        assert!(Keys::parse(b"{}").is_err());
    }
}
