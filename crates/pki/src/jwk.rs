//! JSON Web Keys (RFC 7517), as far as bundles and token issuers need them:
//! public keys of the kinds that RFC 7518 (6.2 and 6.3) describes.

use serde::{Deserialize, Serialize};

/// One key of a key set. What is absent is not written; what is unknown is not
/// read (RFC 7517, 4).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Jwk {
    /// The key type: `EC` or `RSA`.
    #[serde(default)]
    pub kty: String,
    #[serde(rename = "use", default, skip_serializing_if = "Option::is_none")]
    pub public_key_use: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// Certificates in base64 of their DER, which is not the alphabet of the
    /// other members (RFC 7517, 4.7).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x5c: Option<Vec<String>>,
}

/// A key set (RFC 7517, 5).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct JwkSet {
    pub keys: Vec<Jwk>,
}
