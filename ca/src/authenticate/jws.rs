//! The signature of a token: JWS compact serialization (RFC 7515) under the
//! public keys of a JWK set (RFC 7517).
//!
//! Keys are parsed once, when their file is read, because a CA verifies one
//! token for each certificate. What a token may be signed with is a table; `none`
//! and shared secrets are not in it.

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, EllipticCurveKeyParameters, Jwk, JwkSet, RSAKeyParameters,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The algorithms of RFC 7518 (3.1) for RSA keys.
const RSA: [(&str, &RsaParameters); 3] = [
    ("RS256", &RSA_PKCS1_2048_8192_SHA256),
    ("RS384", &RSA_PKCS1_2048_8192_SHA384),
    ("RS512", &RSA_PKCS1_2048_8192_SHA512),
];

/// The usable keys of a token issuer.
pub(super) struct Keys(Vec<Key>);

/// A key, with the one algorithm that it is used with here.
struct Key {
    id: Option<String>,
    algorithm: &'static str,
    key: ParsedPublicKey,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood; none is (RFC 7515, 4.1.11).
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

impl Keys {
    /// Takes the keys that are good for signing tokens; others are passed over,
    /// as RFC 7517 (section 5) asks.
    pub(super) fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let set: JwkSet = serde_json::from_slice(text)?;
        Ok(Self(set.keys.iter().flat_map(Key::of).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The claims of a token that one of these keys signed.
    pub(super) fn verify<T: DeserializeOwned>(&self, token: &str) -> Result<T, JwsError> {
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
            Ok(serde_json::from_slice(&decode(claims)?)?)
        } else {
            Err(JwsError::Signature)
        }
    }
}

impl Key {
    /// A key for each algorithm that goes with it.
    fn of(jwk: &Jwk) -> Vec<Self> {
        let with = |algorithm, key| Self {
            id: jwk.common.key_id.clone(),
            algorithm,
            key,
        };
        match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => RSA
                .into_iter()
                .filter_map(|(algorithm, how)| Some(with(algorithm, rsa_key(rsa, how)?)))
                .collect(),
            AlgorithmParameters::EllipticCurve(ec) => {
                let (algorithm, how): (_, &'static dyn VerificationAlgorithm) = match ec.curve {
                    EllipticCurve::P256 => ("ES256", &ECDSA_P256_SHA256_FIXED),
                    EllipticCurve::P384 => ("ES384", &ECDSA_P384_SHA384_FIXED),
                    _ => return Vec::new(),
                };
                let key = ec_key(ec, how).map(|key| with(algorithm, key));
                key.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }
}

fn rsa_key(rsa: &RSAKeyParameters, how: &'static RsaParameters) -> Option<ParsedPublicKey> {
    let components = PublicKeyComponents {
        n: decode(&rsa.n).ok()?,
        e: decode(&rsa.e).ok()?,
    };
    components.to_parsed_public_key(how).ok()
}

fn ec_key(
    ec: &EllipticCurveKeyParameters,
    how: &'static dyn VerificationAlgorithm,
) -> Option<ParsedPublicKey> {
    // An uncompressed point (SEC 1, 2.3.3).
    let point = [vec![4], decode(&ec.x).ok()?, decode(&ec.y).ok()?].concat();
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
    #[error("its header or claims are not those of a Kubernetes token: {0}")]
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
    use bulkhead_pki::key::PrivateKey;
    use jsonwebtoken::{Algorithm, EncodingKey};
    use serde_json::{Value, json};

    /// An issuer's keys, and a token by one of them.
    fn issuer(key: &EncodingKey, algorithm: Algorithm) -> (Keys, String) {
        let mut jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
        jwk.common.key_id = Some("one".into());
        let set = serde_json::to_vec(&JwkSet { keys: vec![jwk] }).unwrap();
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

    #[test]
    fn tokens_by_every_accepted_algorithm_are_verified() {
        let (rsa, p256) = (rsa(), p256());
        for (key, algorithm) in [
            (&rsa, Algorithm::RS256),
            (&rsa, Algorithm::RS384),
            (&rsa, Algorithm::RS512),
            (&p256, Algorithm::ES256),
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
        ] {
            let keys = Keys::parse(set.to_string().as_bytes()).unwrap();
            assert!(keys.is_empty(), "{set}");
        }
        assert!(Keys::parse(b"{}").is_err());
    }
}
