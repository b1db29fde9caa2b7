//! JSON Web Keys (RFC 7517): public keys of the kinds that Bulkhead accepts
//! (RFC 7518, 6.2 and 6.3), in bundles and in the documents of token issuers.

use aws_lc_rs::rsa::PublicKey as RsaPublicKey;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::key::{KeyError, KeyKind, PublicKey, UNCOMPRESSED};
use crate::leaf;

/// A key set (RFC 7517, 5).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct JwkSet {
    pub keys: Vec<Jwk>,
}

/// One key of a key set. What is absent is not written; what is unknown is not
/// read (RFC 7517, 4).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Jwk {
    /// The key type: `EC` or `RSA`.
    pub kty: String,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    pub public_key_use: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// Certificates: base64 of their DER, in the usual alphabet and not in that
    /// of the other members (RFC 7517, 4.7).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x5c: Option<Vec<String>>,
}

impl Jwk {
    /// The members that say which key it is, and no others.
    pub fn of(key: &PublicKey) -> Result<Self, KeyError> {
        let curve = |name: &str| {
            let [_, coordinates @ ..] = key.raw() else {
                return Err(KeyError::Unsupported);
            };
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            Ok(Self {
                kty: EC.to_owned(),
                crv: Some(name.to_owned()),
                x: Some(URL_SAFE_NO_PAD.encode(x)),
                y: Some(URL_SAFE_NO_PAD.encode(y)),
                ..Self::default()
            })
        };
        match key.kind() {
            KeyKind::EcdsaP256 => curve(P256),
            KeyKind::EcdsaP384 => curve(P384),
            KeyKind::Rsa { .. } => {
                let key = RsaPublicKey::from_der(key.raw()).map_err(|_| KeyError::Unsupported)?;
                let number = |digits: &[u8]| Some(URL_SAFE_NO_PAD.encode(digits));
                Ok(Self {
                    kty: RSA.to_owned(),
                    n: number(key.modulus().big_endian_without_leading_zero()),
                    e: number(key.exponent().big_endian_without_leading_zero()),
                    ..Self::default()
                })
            }
        }
    }

    /// The key that the members say, if it is of an accepted kind.
    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        match (self.kty.as_str(), self.crv.as_deref()) {
            (EC, Some(P256)) => self.point(KeyKind::EcdsaP256),
            (EC, Some(P384)) => self.point(KeyKind::EcdsaP384),
            (RSA, _) => {
                let (modulus, exponent) = (read(self.n.as_ref())?, read(self.e.as_ref())?);
                PublicKey::from_rsa(leaf::rsa_public_key(&modulus, &exponent))
            }
            _ => Err(KeyError::Unsupported),
        }
    }

    /// Whether this is a type of key that the standard names and we know.
    pub(crate) fn has_known_type(&self) -> bool {
        matches!(self.kty.as_str(), EC | RSA)
    }

    fn point(&self, kind: KeyKind) -> Result<PublicKey, KeyError> {
        let (x, y) = (read(self.x.as_ref())?, read(self.y.as_ref())?);
        if x.len() != y.len() {
            return Err(KeyError::Unsupported);
        }
        PublicKey::from_point(kind, [&[UNCOMPRESSED], x.as_slice(), &y].concat())
    }
}

const EC: &str = "EC";
const RSA: &str = "RSA";
const P256: &str = "P-256";
const P384: &str = "P-384";

fn read(member: Option<&String>) -> Result<Vec<u8>, KeyError> {
    let text = member.ok_or(KeyError::Unsupported)?;
    let decoded = URL_SAFE_NO_PAD.decode(text);
    decoded.map_err(|_| KeyError::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    #[test]
    fn a_key_of_every_kind_survives_the_way_through_json() {
        for key in [PrivateKey::generate(), PrivateKey::generate_rsa()] {
            let key = key.unwrap().public_key().clone();
            let text = serde_json::to_string(&Jwk::of(&key).unwrap()).unwrap();
            let read: Jwk = serde_json::from_str(&text).unwrap();
            assert_eq!(read.public_key(), Ok(key), "{text}");
        }
    }

    #[test]
    fn a_point_that_is_not_on_its_curve_is_refused() {
        let key = PrivateKey::generate().unwrap();
        let good = Jwk::of(key.public_key()).unwrap();
        let zero = Some(URL_SAFE_NO_PAD.encode([0; 32]));
        for bad in [
            Jwk {
                y: zero,
                ..good.clone()
            },
            Jwk {
                y: None,
                ..good.clone()
            },
            Jwk {
                x: Some("!".to_owned()),
                ..good.clone()
            },
            Jwk {
                crv: Some(P384.to_owned()),
                ..good.clone()
            },
            Jwk {
                crv: None,
                ..good.clone()
            },
            Jwk {
                kty: "OKP".to_owned(),
                ..good.clone()
            },
        ] {
            assert_eq!(bad.public_key(), Err(KeyError::Unsupported), "{bad:?}");
        }
    }
}
