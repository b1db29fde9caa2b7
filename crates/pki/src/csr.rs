//! Certificate signing requests (PKCS#10, RFC 2986).
//!
//! [`create`] makes one; [`ParsedCsr`] is one that somebody else made and that
//! broke no rule which holds whoever asks. Whether the caller may have what it
//! asks for is for the CA to say.

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose, SanType,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer;

use crate::key::{KeyError, PrivateKey, PublicKey};
use crate::pem::{self, PemError};
use crate::serving::ServerName;

/// The longest request that is read, in bytes of PEM. One with an RSA key of
/// 4096 bits takes about 1,700; a SPIFFE ID adds 2,800 at most.
pub const MAX_CSR_PEM: usize = 8 * 1024;

/// Makes a request for `id`, or for whatever the CA thinks right.
///
/// The subject is empty and there is no other name: a CA that knows its callers
/// takes nothing else from a request than the public key.
pub fn create(key: &PrivateKey, id: Option<&SpiffeId>) -> Result<String, CreateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(id) = id {
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    }
    let request = params.serialize_request(key)?;
    Ok(std::mem::take(&mut *pem::encode(
        pem::CERTIFICATE_REQUEST,
        request.der(),
    )))
}

/// Makes a request for a server's certificate with these names, and no subject.
pub fn create_serving(key: &PrivateKey, names: &[ServerName]) -> Result<String, CreateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for name in names {
        params.subject_alt_names.push(match name {
            ServerName::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            ServerName::Ip(address) => SanType::IpAddress(*address),
        });
    }
    let request = params.serialize_request(key)?;
    Ok(std::mem::take(&mut *pem::encode(
        pem::CERTIFICATE_REQUEST,
        request.der(),
    )))
}

/// What an intermediate is called, for people.
pub const INTERMEDIATE_NAME: &str = "Bulkhead intermediate";

/// Makes a request for an intermediate of a trust domain, which signs leaves.
pub fn create_intermediate(
    key: &PrivateKey,
    trust_domain: &TrustDomain,
) -> Result<String, CreateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let subject = &mut params.distinguished_name;
    subject.push(DnType::OrganizationName, trust_domain.as_str());
    subject.push(DnType::CommonName, INTERMEDIATE_NAME);
    params.subject_alt_names = vec![SanType::URI(trust_domain.id().as_str().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let request = params.serialize_request(key)?;
    Ok(std::mem::take(&mut *pem::encode(
        pem::CERTIFICATE_REQUEST,
        request.der(),
    )))
}

/// Making a request failed.
#[derive(Debug, thiserror::Error)]
#[error("making a certificate request failed: {0}")]
pub struct CreateError(#[from] rcgen::Error);

/// A request whose sender holds the private key, and which asks for nothing
/// but names.
#[derive(Clone, Debug)]
pub struct ParsedCsr {
    der: Vec<u8>,
    public_key: PublicKey,
    uris: Vec<String>,
    other_names: Vec<OtherName>,
}

/// A kind of name that an SVID has no place for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OtherName {
    Subject,
    Dns,
    Ip,
    Email,
    /// Any other kind of alternative name of RFC 5280, 4.2.1.6.
    Unusual,
}

impl OtherName {
    /// What a person calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Dns => "DNS name",
            Self::Ip => "IP address",
            Self::Email => "e-mail address",
            Self::Unusual => "name of an unusual kind",
        }
    }
}

impl ParsedCsr {
    /// Reads the one request of a PEM text.
    pub fn from_pem(text: &str) -> Result<Self, CsrError> {
        let blocks = pem::decode(text, MAX_CSR_PEM)?;
        match blocks.as_slice() {
            // The longer label is what older OpenSSL versions write.
            [block] if block.label.ends_with(pem::CERTIFICATE_REQUEST) => {
                Self::from_der(&block.der)
            }
            _ => Err(CsrError::NotOneRequest),
        }
    }

    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        let Ok(([], request)) = X509CertificationRequest::from_der(der) else {
            return Err(CsrError::Malformed);
        };
        let info = &request.certification_request_info;
        let public_key = PublicKey::from_spki(&info.subject_pki)?;
        public_key
            .verify(
                &request.signature_algorithm,
                info.raw,
                &request.signature_value,
            )
            .map_err(|error| match error {
                crate::key::SignatureError::Algorithm => CsrError::SignatureAlgorithm,
                crate::key::SignatureError::Mismatch => CsrError::Signature,
            })?;
        let mut parsed = Self {
            der: der.to_vec(),
            public_key,
            uris: Vec::new(),
            other_names: Vec::new(),
        };
        // Go's x509 package, and with it istio-agent, writes an organization
        // of no letters, which names nobody.
        if info
            .subject
            .iter_attributes()
            .any(|attribute| !attribute.attr_value().data.is_empty())
        {
            parsed.other_names.push(OtherName::Subject);
        }
        for extension in requested_extensions(&request)? {
            parsed.take(extension)?;
        }
        Ok(parsed)
    }

    /// The request as its sender signed it, for another CA to see.
    pub fn to_pem(&self) -> String {
        std::mem::take(&mut *pem::encode(pem::CERTIFICATE_REQUEST, &self.der))
    }

    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The URIs that are asked for, as they stand in the request.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// The names of other kinds that are asked for.
    pub fn other_names(&self) -> &[OtherName] {
        &self.other_names
    }

    /// Notes what an extension asks for. Only those are let pass that ask for a
    /// name, or for no more than a leaf has anyway.
    fn take(&mut self, extension: &X509Extension<'_>) -> Result<(), CsrError> {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
                        GeneralName::DNSName(_) => self.other_names.push(OtherName::Dns),
                        GeneralName::IPAddress(_) => self.other_names.push(OtherName::Ip),
                        GeneralName::RFC822Name(_) => self.other_names.push(OtherName::Email),
                        _ => self.other_names.push(OtherName::Unusual),
                    }
                }
                Ok(())
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                Err(CsrError::CertificateAuthority)
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                Err(CsrError::KeyUsage)
            }
            ParsedExtension::ExtendedKeyUsage(usage)
                if usage.any
                    || usage.code_signing
                    || usage.email_protection
                    || usage.time_stamping
                    || usage.ocsp_signing
                    || !usage.other.is_empty() =>
            {
                Err(CsrError::ExtendedKeyUsage)
            }
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectKeyIdentifier(_) => Ok(()),
            ParsedExtension::ParseError { .. } => Err(CsrError::Malformed),
            _ => Err(CsrError::Extension(extension.oid.to_id_string())),
        }
    }
}

/// The extensions of the one extension request (RFC 2985, 5.4.2). Readers that
/// took the first of two would disagree with readers that took the last.
fn requested_extensions<'a>(
    request: &'a X509CertificationRequest<'_>,
) -> Result<&'a [X509Extension<'a>], CsrError> {
    let mut extensions: Option<&[X509Extension<'_>]> = None;
    for attribute in request.certification_request_info.iter_attributes() {
        match attribute.parsed_attribute() {
            ParsedCriAttribute::ExtensionRequest(requested) if extensions.is_none() => {
                extensions = Some(&requested.extensions);
            }
            _ => return Err(CsrError::Attribute(attribute.oid.to_id_string())),
        }
    }
    let extensions = extensions.unwrap_or_default();
    for (at, extension) in extensions.iter().enumerate() {
        if extensions[..at]
            .iter()
            .any(|earlier| earlier.oid == extension.oid)
        {
            return Err(CsrError::Malformed);
        }
    }
    Ok(extensions)
}

/// Why a request was refused: a variant for each rule.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CsrError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("the text is not one PEM block CERTIFICATE REQUEST")]
    NotOneRequest,
    #[error("the request is malformed (RFC 2986)")]
    Malformed,
    #[error("the request's key is refused: {0}")]
    Key(#[from] KeyError),
    #[error("the request is signed with an algorithm that is not accepted for its key")]
    SignatureAlgorithm,
    #[error("the request's signature is wrong: its sender does not prove to hold the key")]
    Signature,
    #[error("the request asks for a CA certificate")]
    CertificateAuthority,
    #[error("the request asks for the key usage of a CA (keyCertSign, cRLSign)")]
    KeyUsage,
    #[error("the request asks for an extended key usage besides serverAuth and clientAuth")]
    ExtendedKeyUsage,
    #[error("the request asks for an extension that no SVID has: {0}")]
    Extension(String),
    #[error("the request has an attribute besides one extension request: {0}")]
    Attribute(String),
}
