//! Private and public keys, and which kinds are good enough.
//!
//! ECDSA P-256 is what Bulkhead makes. P-384 and RSA of 2048 to 4096 bits are
//! accepted from others. Ed25519 is not: Envoy, and with it Istio's sidecars,
//! refuses such certificates in TLS, so that issuing one makes a workload that
//! half of the mesh cannot talk to.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize, PublicKey as RsaPublicKey};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA384_ASN1,
    ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    KeyPair, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PKCS1_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::asn1_rs::{BitString, Tag};
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use crate::certificate::Fingerprint;
use crate::pem::{self, PemError};

/// The longest private key file that is read, in bytes; an RSA key of 4096
/// bits takes about 3,300.
const MAX_KEY_PEM: usize = 16 * 1024;

/// A PKCS#8 key that a passphrase protects (RFC 5958, 3).
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// The first byte of a point that is not compressed (SEC 1, 2.3.3).
pub(crate) const UNCOMPRESSED: u8 = 4;

/// The kinds of key that Bulkhead accepts, and certifies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyKind {
    EcdsaP256,
    EcdsaP384,
    Rsa { bits: usize },
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EcdsaP256 => f.write_str("ECDSA P-256"),
            Self::EcdsaP384 => f.write_str("ECDSA P-384"),
            Self::Rsa { bits } => write!(f, "RSA {bits}"),
        }
    }
}

/// A private key. Its memory is wiped when the last clone goes, and nothing
/// that prints shows it.
#[derive(Clone)]
pub struct PrivateKey {
    pair: Arc<Pair>,
    public: PublicKey,
}

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl PrivateKey {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, KeyError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| KeyError::Generate)
            .map(|pair| Self::from_ecdsa(pair, KeyKind::EcdsaP256))
    }

    /// A new RSA key of 2048 bits: for what is verified far more often than it
    /// is signed, such as tokens.
    pub fn generate_rsa() -> Result<Self, KeyError> {
        RsaKeyPair::generate(KeySize::Rsa2048)
            .map_err(|_| KeyError::Generate)
            .map(|pair| Self::from_rsa(pair, 2048))
    }

    /// Reads PKCS#8 (RFC 5958); also SEC 1 and PKCS#1, which OpenSSL writes.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        for (algorithm, kind) in [
            (&ECDSA_P256_SHA256_ASN1_SIGNING, KeyKind::EcdsaP256),
            (&ECDSA_P384_SHA384_ASN1_SIGNING, KeyKind::EcdsaP384),
        ] {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(algorithm, der) {
                return Ok(Self::from_ecdsa(pair, kind));
            }
        }
        let pair = RsaKeyPair::from_pkcs8(der)
            .or_else(|_| RsaKeyPair::from_der(der))
            .map_err(|_| KeyError::Unsupported)?;
        let bits = pair.public_modulus_len() * 8;
        check_rsa_bits(bits)?;
        Ok(Self::from_rsa(pair, bits))
    }

    /// Reads the one private key of a PEM text.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let mut blocks = pem::decode(text, MAX_KEY_PEM)?;
        // OpenSSL writes the curve's name in a block before the key.
        blocks.retain(|block| block.label.ends_with(pem::PRIVATE_KEY));
        match blocks.as_slice() {
            [block] if block.label == ENCRYPTED => {
                Err(PemError::Encrypted(block.label.clone()).into())
            }
            [block] => Self::from_der(&block.der),
            _ => Err(KeyError::Count(blocks.len())),
        }
    }

    /// PKCS#8, unencrypted.
    pub fn to_der(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        match self.pair.as_ref() {
            Pair::Ecdsa(pair) => pair
                .to_pkcs8v1()
                .map(|document| Zeroizing::new(document.as_ref().to_vec()))
                .map_err(|_| KeyError::Export),
            Pair::Rsa(pair) => AsDer::<Pkcs8V1Der<'_>>::as_der(pair)
                .map(|document| Zeroizing::new(document.as_ref().to_vec()))
                .map_err(|_| KeyError::Export),
        }
    }

    /// PKCS#8 in PEM, unencrypted.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        Ok(pem::encode(pem::PRIVATE_KEY, &self.to_der()?))
    }

    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs with the algorithm that goes with the key: ECDSA with SHA-256 or
    /// SHA-384 by curve, RSA PKCS#1 v1.5 with SHA-256.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        match self.pair.as_ref() {
            Pair::Ecdsa(pair) => pair
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map(|()| signature)
            }
        }
        .map_err(|_| KeyError::Sign)
    }

    fn from_rsa(pair: RsaKeyPair, bits: usize) -> Self {
        let kind = KeyKind::Rsa { bits };
        let public = PublicKey::new(kind, pair.public_key().as_ref().to_vec());
        Self {
            pair: Arc::new(Pair::Rsa(pair)),
            public,
        }
    }

    fn from_ecdsa(pair: EcdsaKeyPair, kind: KeyKind) -> Self {
        let public = PublicKey::new(kind, pair.public_key().as_ref().to_vec());
        Self {
            pair: Arc::new(Pair::Ecdsa(pair)),
            public,
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public.kind)
    }
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign(message)
            .map_err(|_| rcgen::Error::RingUnspecified)
    }
}

/// A public key of an accepted kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PublicKey {
    kind: KeyKind,
    /// The content of the BIT STRING of a SubjectPublicKeyInfo.
    raw: Vec<u8>,
    /// The whole SubjectPublicKeyInfo (RFC 5280, 4.1) in DER.
    spki: Vec<u8>,
}

impl PublicKey {
    fn new(kind: KeyKind, raw: Vec<u8>) -> Self {
        let mut key = Self {
            kind,
            raw,
            spki: Vec::new(),
        };
        key.spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        key
    }

    /// Takes a key that a certificate or a request carries, if it is of an
    /// accepted kind.
    pub(crate) fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, KeyError> {
        let raw = spki.subject_public_key.data.to_vec();
        let kind = match spki.parsed() {
            Ok(ParsedKey::EC(_)) => match raw.len() {
                // Uncompressed points only, which is all that RFC 5480 obliges
                // anybody to understand.
                65 if is_curve(&spki.algorithm, "1.2.840.10045.3.1.7") => KeyKind::EcdsaP256,
                97 if is_curve(&spki.algorithm, "1.3.132.0.34") => KeyKind::EcdsaP384,
                _ => return Err(KeyError::Unsupported),
            },
            Ok(ParsedKey::RSA(_)) => return Self::from_rsa(raw),
            _ => return Err(KeyError::Unsupported),
        };
        Ok(Self::new(kind, raw))
    }

    /// Takes an RSAPublicKey (RFC 8017, A.1.1) in DER.
    pub(crate) fn from_rsa(raw: Vec<u8>) -> Result<Self, KeyError> {
        let key = RsaPublicKey::from_der(&raw).map_err(|_| KeyError::Unsupported)?;
        let bits = bit_length(key.modulus().big_endian_without_leading_zero());
        check_rsa_bits(bits)?;
        check_rsa_exponent(key.exponent().big_endian_without_leading_zero())?;
        Ok(Self::new(KeyKind::Rsa { bits }, raw))
    }

    /// Takes an uncompressed point of a curve (SEC 1, 2.3.3).
    pub(crate) fn from_point(kind: KeyKind, raw: Vec<u8>) -> Result<Self, KeyError> {
        let algorithm = match kind {
            KeyKind::EcdsaP256 => &ECDSA_P256_SHA256_ASN1,
            KeyKind::EcdsaP384 => &ECDSA_P384_SHA384_ASN1,
            KeyKind::Rsa { .. } => return Err(KeyError::Unsupported),
        };
        match UnparsedPublicKey::new(algorithm, &raw).parse() {
            Ok(_) if raw.first() == Some(&UNCOMPRESSED) => Ok(Self::new(kind, raw)),
            _ => Err(KeyError::Unsupported),
        }
    }

    /// The content of the BIT STRING of a SubjectPublicKeyInfo: a point in its
    /// uncompressed form, or an RSAPublicKey in DER.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw
    }

    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.spki)
    }

    /// SubjectPublicKeyInfo (RFC 5280, 4.1) in DER.
    pub fn to_spki(&self) -> Vec<u8> {
        self.spki.clone()
    }

    pub(crate) fn as_spki(&self) -> &[u8] {
        &self.spki
    }

    /// Whether `signature` over `message` was made by this key, with an
    /// algorithm that is not weak.
    pub(crate) fn verify(
        &self,
        algorithm: &AlgorithmIdentifier<'_>,
        message: &[u8],
        signature: &BitString<'_>,
    ) -> Result<(), SignatureError> {
        // One signature has one encoding: whole bytes, and no parameters but
        // the NULL that RSA writes.
        let plain = algorithm.parameters.as_ref().is_none_or(|parameters| {
            parameters.tag() == Tag::Null && parameters.as_bytes().is_empty()
        });
        if !plain || signature.unused_bits != 0 {
            return Err(SignatureError::Algorithm);
        }
        let algorithm: &dyn VerificationAlgorithm =
            match (self.kind, algorithm.algorithm.to_id_string().as_str()) {
                (KeyKind::EcdsaP256, "1.2.840.10045.4.3.2") => &ECDSA_P256_SHA256_ASN1,
                (KeyKind::EcdsaP256, "1.2.840.10045.4.3.3") => &ECDSA_P256_SHA384_ASN1,
                (KeyKind::EcdsaP384, "1.2.840.10045.4.3.2") => &ECDSA_P384_SHA256_ASN1,
                (KeyKind::EcdsaP384, "1.2.840.10045.4.3.3") => &ECDSA_P384_SHA384_ASN1,
                (KeyKind::Rsa { .. }, "1.2.840.113549.1.1.11") => &RSA_PKCS1_2048_8192_SHA256,
                (KeyKind::Rsa { .. }, "1.2.840.113549.1.1.12") => &RSA_PKCS1_2048_8192_SHA384,
                (KeyKind::Rsa { .. }, "1.2.840.113549.1.1.13") => &RSA_PKCS1_2048_8192_SHA512,
                _ => return Err(SignatureError::Algorithm),
            };
        UnparsedPublicKey::new(algorithm, &self.raw)
            .verify(message, &signature.data)
            .map_err(|_| SignatureError::Mismatch)
    }
}

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.raw
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.kind {
            KeyKind::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyKind::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyKind::Rsa { .. } => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

/// Whether there is a kind of key for which a signature of this algorithm, by its
/// object identifier, is accepted.
pub(crate) fn is_signature_accepted(algorithm: &str) -> bool {
    matches!(
        algorithm,
        "1.2.840.10045.4.3.2"
            | "1.2.840.10045.4.3.3"
            | "1.2.840.113549.1.1.11"
            | "1.2.840.113549.1.1.12"
            | "1.2.840.113549.1.1.13"
    )
}

fn is_curve(algorithm: &AlgorithmIdentifier<'_>, curve: &str) -> bool {
    algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok())
        .is_some_and(|oid| oid.to_id_string() == curve)
}

fn bit_length(big_endian: &[u8]) -> usize {
    big_endian.first().map_or(0, |first| {
        big_endian.len() * 8 - first.leading_zeros() as usize
    })
}

fn check_rsa_bits(bits: usize) -> Result<(), KeyError> {
    if (2048..=4096).contains(&bits) {
        Ok(())
    } else {
        Err(KeyError::RsaSize(bits))
    }
}

/// NIST SP 800-56B asks for an odd exponent above 2^16; more than 33 bits only
/// make verifying slow.
fn check_rsa_exponent(big_endian: &[u8]) -> Result<(), KeyError> {
    let odd = big_endian.last().is_some_and(|last| last % 2 == 1);
    if odd && (17..=33).contains(&bit_length(big_endian)) {
        Ok(())
    } else {
        Err(KeyError::RsaExponent)
    }
}

/// Why a key was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    #[error("making a key failed: the system's random source is not available")]
    Generate,
    #[error("signing with the private key failed")]
    Sign,
    #[error("writing the private key as PKCS#8 failed")]
    Export,
    #[error("the key is of no accepted kind (ECDSA P-256 or P-384, RSA of 2048 to 4096 bits)")]
    Unsupported,
    #[error("the RSA key has {0} bits; 2048 to 4096 are accepted")]
    RsaSize(usize),
    #[error("the RSA key's public exponent must be odd and have 17 to 33 bits; 65537 is usual")]
    RsaExponent,
    #[error("there are {0} private keys in the PEM text where one is expected")]
    Count(usize),
    #[error(transparent)]
    Pem(#[from] PemError),
}

/// Why a signature proves nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum SignatureError {
    #[error("the signature's algorithm is not accepted for this key")]
    Algorithm,
    #[error("the signature was not made by this key, or what it signs was changed")]
    Mismatch,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_way_to_disk_and_back() {
        for key in [PrivateKey::generate(), PrivateKey::generate_rsa()] {
            let key = key.unwrap();
            let again = PrivateKey::from_pem(&key.to_pem().unwrap()).unwrap();
            assert_eq!(again.public_key(), key.public_key());
            assert_eq!(again.to_der().unwrap(), key.to_der().unwrap());
        }
    }

    #[test]
    fn printing_a_key_shows_its_kind_and_nothing_else() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(ECDSA P-256)");
    }

    #[test]
    fn a_text_without_exactly_one_key_is_refused() {
        let key = PrivateKey::generate().unwrap().to_pem().unwrap();
        assert_eq!(PrivateKey::from_pem("").unwrap_err(), KeyError::Count(0));
        let two = format!("{}{}", *key, *key);
        assert_eq!(PrivateKey::from_pem(&two).unwrap_err(), KeyError::Count(2));
        let garbage = pem::encode(pem::PRIVATE_KEY, b"garbage");
        assert_eq!(
            PrivateKey::from_pem(&garbage).unwrap_err(),
            KeyError::Unsupported
        );
    }

    #[test]
    fn exponents_that_make_rsa_weak_or_slow_are_refused() {
        assert!(check_rsa_exponent(&[1, 0, 1]).is_ok());
        for weak in [&[3][..], &[1, 0, 0], &[1, 0, 0, 0, 0, 0, 1], &[]] {
            assert_eq!(check_rsa_exponent(weak), Err(KeyError::RsaExponent));
        }
    }
}
