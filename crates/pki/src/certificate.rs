//! A parsed certificate, and what the rules look at.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::key::{KeyError, PublicKey};
use crate::pem::{self, PemError};

/// The longest certificate that is parsed, in bytes.
const MAX_CERTIFICATE: usize = 16 * 1024;

/// A certificate: its bytes, and what it says. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: CertificateDer<'static>,
    facts: Arc<Facts>,
}

impl Certificate {
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, CertificateError> {
        let facts = Arc::new(Facts::parse(&der)?);
        Ok(Self { der, facts })
    }

    /// Reads every certificate of a PEM text of at most `limit` bytes.
    pub fn all_from_pem(text: &str, limit: usize) -> Result<Vec<Self>, CertificateError> {
        pem::decode(text, limit)?
            .into_iter()
            .map(|block| match block.label.as_str() {
                pem::CERTIFICATE => Self::from_der(block.der.to_vec().into()),
                label => Err(CertificateError::Label(pem::shown(label))),
            })
            .collect()
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub fn to_pem(&self) -> String {
        std::mem::take(&mut *pem::encode(pem::CERTIFICATE, &self.der))
    }

    /// Whose certificate it is, for people (RFC 4514). Names identify nobody:
    /// two authorities may have the same.
    pub fn subject(&self) -> String {
        with_parsed(&self.der, |parsed| parsed.subject().to_string()).unwrap_or_default()
    }

    /// Who signed it, in the same form.
    pub fn issuer(&self) -> String {
        with_parsed(&self.der, |parsed| parsed.issuer().to_string()).unwrap_or_default()
    }

    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// The serial number in lower-case hexadecimal digits.
    pub fn serial(&self) -> String {
        self.facts.serial()
    }

    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.der)
    }

    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        with_parsed(&self.der, |parsed| {
            PublicKey::from_spki(parsed.public_key())
        })
        .unwrap_or(Err(KeyError::Unsupported))
    }

    /// Every name that it carries.
    pub(crate) fn alternative_names(&self) -> Result<AlternativeNames, CertificateError> {
        with_parsed(&self.der, AlternativeNames::of)?
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether it is its own signer, as a root is.
    pub fn is_self_signed(&self) -> bool {
        self.is_signed_by(self)
    }

    /// Whether `issuer` signed this certificate, by name and by signature.
    pub(crate) fn is_signed_by(&self, issuer: &Self) -> bool {
        self.facts.issuer == issuer.facts.subject
            && issuer.public_key().is_ok_and(|key| {
                with_parsed(&self.der, |parsed| {
                    key.verify(
                        &parsed.signature_algorithm,
                        parsed.tbs_certificate.as_ref(),
                        &parsed.signature_value,
                    )
                    .is_ok()
                })
                .unwrap_or(false)
            })
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Certificate {}

/// SHA-256 of a certificate, or of a public key, written in lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let bytes = digest.as_ref().try_into();
        Self(bytes.expect("a SHA-256 digest has 32 bytes"))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read_hex(text).map(Self)
    }
}

/// Whom a certificate is for, in every form that anybody may read.
#[derive(Debug, Default)]
pub(crate) struct AlternativeNames {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether there are names of other kinds.
    pub(crate) others: bool,
    /// Of the subject.
    pub(crate) common_name: Option<String>,
}

impl AlternativeNames {
    fn of(parsed: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let common_name = parsed.subject().iter_common_name().next();
        let mut found = Self {
            common_name: common_name.map(|name| name.as_str().unwrap_or("unreadable").to_owned()),
            ..Self::default()
        };
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| CertificateError::Malformed)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => found.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => found.dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => found.addresses.push(address(bytes)?),
                _ => found.others = true,
            }
        }
        Ok(found)
    }
}

/// An address as a certificate has it (RFC 5280, 4.2.1.6).
fn address(bytes: &[u8]) -> Result<IpAddr, CertificateError> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Ok(bytes.into());
    }
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| CertificateError::Malformed)?;
    Ok(bytes.into())
}

/// What a certificate says, as far as any rule asks.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) uris: Vec<String>,
    /// Whether the subject alternative names are marked critical.
    pub(crate) names_critical: bool,
    pub(crate) subject_empty: bool,
    pub(crate) is_ca: bool,
    /// How many intermediates may be below it (RFC 5280, 4.2.1.9).
    pub(crate) path_length: Option<u32>,
    pub(crate) key_usage: Option<KeyUsage>,
    pub(crate) extended_key_usage: Option<ExtendedKeyUsage>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// The names in DER, as they stand in the certificate.
    pub(crate) subject: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    /// SubjectPublicKeyInfo in DER.
    pub(crate) spki: Vec<u8>,
    /// The subject key identifier (RFC 5280, 4.2.1.2).
    pub(crate) key_identifier: Option<Vec<u8>>,
    /// The object identifier of what its signer signed it with.
    pub(crate) signature_algorithm: String,
    serial: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyUsage {
    pub(crate) critical: bool,
    pub(crate) digital_signature: bool,
    pub(crate) key_cert_sign: bool,
    pub(crate) crl_sign: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ExtendedKeyUsage {
    pub(crate) server_auth: bool,
    pub(crate) client_auth: bool,
}

impl Facts {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        with_parsed(der, Self::of)?
    }

    fn of(parsed: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let validity = parsed.validity();
        let mut facts = Self {
            uris: Vec::new(),
            names_critical: false,
            subject_empty: parsed.subject().iter_rdn().next().is_none(),
            is_ca: false,
            path_length: None,
            key_usage: None,
            extended_key_usage: None,
            not_before: system_time(validity.not_before)?,
            not_after: system_time(validity.not_after)?,
            subject: parsed.subject().as_raw().to_vec(),
            issuer: parsed.issuer().as_raw().to_vec(),
            spki: parsed.public_key().raw.to_vec(),
            key_identifier: None,
            signature_algorithm: parsed.signature_algorithm.algorithm.to_id_string(),
            serial: parsed.raw_serial().to_vec(),
        };
        for (at, extension) in parsed.extensions().iter().enumerate() {
            // RFC 5280, 4.2: never more than one of a kind. Two readers that
            // each believe another one would disagree about who this is.
            if parsed.extensions()[..at]
                .iter()
                .any(|earlier| earlier.oid == extension.oid)
            {
                return Err(CertificateError::Malformed);
            }
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    facts.names_critical = extension.critical;
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                            GeneralName::Invalid(..) => return Err(CertificateError::Malformed),
                            _ => {}
                        }
                    }
                }
                ParsedExtension::BasicConstraints(constraints) => {
                    facts.is_ca = constraints.ca;
                    facts.path_length = constraints.path_len_constraint;
                }
                ParsedExtension::KeyUsage(usage) => {
                    facts.key_usage = Some(KeyUsage {
                        critical: extension.critical,
                        digital_signature: usage.digital_signature(),
                        key_cert_sign: usage.key_cert_sign(),
                        crl_sign: usage.crl_sign(),
                    });
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    facts.extended_key_usage = Some(ExtendedKeyUsage {
                        server_auth: usage.server_auth,
                        client_auth: usage.client_auth,
                    });
                }
                ParsedExtension::SubjectKeyIdentifier(identifier) => {
                    facts.key_identifier = Some(identifier.0.to_vec());
                }
                ParsedExtension::ParseError { .. } => return Err(CertificateError::Malformed),
                _ => {}
            }
        }
        Ok(facts)
    }

    /// Whether `now` is within the validity, both ends included (RFC 5280,
    /// 4.1.2.5).
    pub(crate) fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    pub(crate) fn serial(&self) -> String {
        // A positive number whose first bit is set has a zero byte before it.
        match self.serial.as_slice() {
            [0, rest @ ..] if !rest.is_empty() => hex(rest),
            serial => hex(serial),
        }
    }
}

/// Parses `der`, which must be one whole certificate, and looks at it.
fn with_parsed<T>(
    der: &[u8],
    look: impl FnOnce(&X509Certificate<'_>) -> T,
) -> Result<T, CertificateError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(CertificateError::TooLong);
    }
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(look(&parsed)),
        _ => Err(CertificateError::Malformed),
    }
}

fn system_time(time: ASN1Time) -> Result<SystemTime, CertificateError> {
    u64::try_from(time.timestamp())
        .ok()
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .ok_or(CertificateError::Malformed)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Reads what [`hex`] writes, and nothing else.
pub(crate) fn read_hex<const LENGTH: usize>(text: &str) -> Result<[u8; LENGTH], HexError> {
    let problem = HexError { digits: 2 * LENGTH };
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(problem),
    };
    let mut bytes = [0; LENGTH];
    if text.len() != 2 * LENGTH {
        return Err(problem);
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

/// A text is not the name of a certificate or bundle.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected {digits} lower-case hexadecimal digits")]
pub struct HexError {
    digits: usize,
}

/// Why bytes are not a certificate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate is malformed (RFC 5280)")]
    Malformed,
    #[error("the certificate is longer than {MAX_CERTIFICATE} bytes")]
    TooLong,
    #[error("the PEM text has a block {0:?} where only certificates are expected")]
    Label(String),
    #[error(transparent)]
    Pem(#[from] PemError),
}
