//! A CA certificate with its private key: what signs other certificates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use bulkhead_core::identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose, SanType,
    SerialNumber,
};
use time::OffsetDateTime;

use crate::certificate::{Certificate, CertificateError};
use crate::key::{KeyError, PrivateKey, PublicKey};
use crate::leaf::{LeafWriter, Name, Purpose};

/// Validity starts this long before issuing, because clocks differ.
pub const BACKDATE: Duration = Duration::from_secs(120);

/// 128 random bits, so that nobody can foresee or repeat a serial number.
const SERIAL_LENGTH: usize = 16;

/// A signing certificate, parsed once for all that it will sign.
pub(crate) struct Signer {
    certificate: Certificate,
    key: PrivateKey,
    leaf: LeafWriter,
}

impl Signer {
    /// A certificate that signs itself.
    pub(crate) fn self_signed(mut params: CertificateParams) -> Result<Self, SignError> {
        let key = PrivateKey::generate()?;
        params.serial_number = Some(SerialNumber::from_slice(&new_serial()?));
        let made = params.self_signed(&key)?;
        Self::new(Certificate::from_der(made.into())?, key)
    }

    pub(crate) fn new(certificate: Certificate, key: PrivateKey) -> Result<Self, SignError> {
        if certificate.public_key().as_ref() != Ok(key.public_key()) {
            return Err(SignError::KeyMismatch);
        }
        Ok(Self {
            leaf: LeafWriter::new(&certificate, &key),
            certificate,
            key,
        })
    }

    /// A certificate for this key below this one, which signs leaves of the
    /// trust domain.
    pub(crate) fn subordinate(
        &self,
        key: &PrivateKey,
        trust_domain: &TrustDomain,
        validity: Validity,
    ) -> Result<Self, SignError> {
        let serial = new_serial()?;
        let subject_key = key.public_key();
        let der = self.leaf.write_intermediate(
            trust_domain,
            subject_key,
            validity,
            &serial,
            &self.key,
        )?;
        Self::new(Certificate::from_der(der.into())?, key.clone())
    }

    /// A leaf below this one, under a new serial number.
    pub(crate) fn sign_leaf(
        &self,
        purpose: Purpose,
        names: &[Name<'_>],
        key: &PublicKey,
        validity: Validity,
    ) -> Result<Certificate, SignError> {
        let serial = new_serial()?;
        let der = self
            .leaf
            .write(purpose, names, key, validity, &serial, &self.key)?;
        Ok(Certificate::from_der(der.into())?)
    }

    pub(crate) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub(crate) fn key(&self) -> &PrivateKey {
        &self.key
    }
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Validity {
    /// From shortly before `now` until `lifetime` after it.
    pub(crate) fn new(now: SystemTime, lifetime: Duration) -> Result<Self, SignError> {
        let range = || {
            let not_after = now.checked_add(lifetime)?;
            Some((now.checked_sub(BACKDATE)?, not_after))
        };
        let (not_before, not_after) = range().ok_or(SignError::Time)?;
        if lifetime < Duration::from_secs(1) {
            return Err(SignError::Time);
        }
        Ok(Self {
            not_before,
            not_after,
        })
    }
}

/// The parameters of a signing certificate. RFC 5280 (4.1.2.6) wants its
/// subject to have a name.
pub(crate) fn signing(
    validity: Validity,
    organization: &str,
    name: &str,
    constraints: BasicConstraints,
) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    params.distinguished_name = DistinguishedName::new();
    let subject = &mut params.distinguished_name;
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A URI among the alternative names.
pub(crate) fn uri(uri: &str) -> Result<SanType, SignError> {
    Ok(SanType::URI(uri.try_into()?))
}

fn new_serial() -> Result<[u8; SERIAL_LENGTH], SignError> {
    let mut bytes = [0; SERIAL_LENGTH];
    rand::fill(&mut bytes).map_err(|_| SignError::Random)?;
    Ok(bytes)
}

/// Certificates count whole seconds.
pub(crate) fn date(time: SystemTime) -> Result<OffsetDateTime, SignError> {
    time.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(SignError::Time)
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("making a certificate failed: {0}")]
    Encode(#[from] rcgen::Error),
    #[error("the system's random source is not available")]
    Random,
    #[error("the validity asked for cannot be written into a certificate, or is empty")]
    Time,
    #[error("the private key is not the one of the signing certificate")]
    KeyMismatch,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("what was signed cannot be read back: {0}")]
    Certificate(#[from] CertificateError),
}
