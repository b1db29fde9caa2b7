//! The CSR service: one call, `istio.v1.auth.IstioCertificateService/CreateCertificate`.

use std::time::Duration;

use prost_types::value::Kind;

use crate::generated::{IstioCertificateRequest, IstioCertificateResponse};

pub use crate::generated::istio_certificate_service_client::IstioCertificateServiceClient;
pub use crate::generated::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};

/// What goes beside a call, as gRPC metadata.
pub mod metadata {
    /// Of a request: the id of the trust bundle that the caller holds, in
    /// lower-case hexadecimal digits. Absent where it holds none.
    pub const TRUST_BUNDLE: &str = "bulkhead-trust-bundle";
    /// Of a request: when the caller's present certificate expires, in seconds
    /// since 1970. Absent where it has none.
    pub const CERTIFICATE_EXPIRES: &str = "bulkhead-certificate-expires";
    /// Of an answer: which version of the trust bundle its roots are; a greater
    /// number is a later one. Absent where the CA does not know.
    pub const TRUST_BUNDLE_SEQUENCE: &str = "bulkhead-trust-bundle-sequence";
}

/// The key under which node proxies name the workload that they act for.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// What a caller asks the CA for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateRequest {
    /// PEM of a certificate signing request; not looked at yet.
    pub csr: String,
    /// The lifetime asked for, where the caller has a wish.
    pub lifetime: Option<Duration>,
    /// The identity of another workload, for which a node proxy asks.
    pub on_behalf_of: Option<String>,
}

impl From<IstioCertificateRequest> for CertificateRequest {
    /// A duration of nothing, or less, is no wish: it is what a client sends
    /// that leaves the field out.
    fn from(request: IstioCertificateRequest) -> Self {
        let seconds = u64::try_from(request.validity_duration).unwrap_or(0);
        let on_behalf_of = request
            .metadata
            .and_then(|mut metadata| metadata.fields.remove(IMPERSONATED_IDENTITY))
            .and_then(|value| match value.kind {
                Some(Kind::StringValue(identity)) if !identity.is_empty() => Some(identity),
                _ => None,
            });
        Self {
            csr: request.csr,
            lifetime: (seconds > 0).then(|| Duration::from_secs(seconds)),
            on_behalf_of,
        }
    }
}

impl From<CertificateRequest> for IstioCertificateRequest {
    fn from(request: CertificateRequest) -> Self {
        let seconds = request.lifetime.unwrap_or_default().as_secs();
        let metadata = request.on_behalf_of.map(|identity| {
            let value = Kind::StringValue(identity).into();
            prost_types::Struct {
                fields: [(IMPERSONATED_IDENTITY.to_owned(), value)].into(),
            }
        });
        Self {
            csr: request.csr,
            validity_duration: i64::try_from(seconds).unwrap_or(i64::MAX),
            metadata,
        }
    }
}

/// What the CA answers: PEM throughout.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateAnswer {
    /// The leaf, then each certificate above it, the root excepted.
    pub chain: Vec<String>,
    /// All trust roots in one text.
    pub roots: String,
}

impl From<CertificateAnswer> for IstioCertificateResponse {
    fn from(answer: CertificateAnswer) -> Self {
        let mut cert_chain = answer.chain;
        cert_chain.push(answer.roots);
        Self { cert_chain }
    }
}

impl TryFrom<IstioCertificateResponse> for CertificateAnswer {
    type Error = AnswerError;

    fn try_from(response: IstioCertificateResponse) -> Result<Self, Self::Error> {
        let mut chain = response.cert_chain;
        match chain.pop() {
            Some(roots) if !chain.is_empty() => Ok(Self { chain, roots }),
            _ => Err(AnswerError),
        }
    }
}

/// The CA's answer has too few parts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the CA's answer has no certificate, or no trust roots after it")]
pub struct AnswerError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_way_over_the_wire() {
        for request in [
            CertificateRequest {
                csr: "csr".into(),
                lifetime: None,
                on_behalf_of: None,
            },
            CertificateRequest {
                csr: "csr".into(),
                lifetime: Some(Duration::from_secs(3600)),
                on_behalf_of: Some("spiffe://cluster.local/ns/a/sa/b".into()),
            },
        ] {
            let wire = IstioCertificateRequest::from(request.clone());
            assert_eq!(CertificateRequest::from(wire), request);
        }
    }

    #[test]
    fn a_lifetime_of_nothing_or_less_is_no_wish() {
        for validity_duration in [0, -1, i64::MIN] {
            let wire = IstioCertificateRequest {
                validity_duration,
                ..Default::default()
            };
            assert_eq!(CertificateRequest::from(wire).lifetime, None);
        }
    }

    #[test]
    fn the_roots_come_last_and_an_answer_without_them_is_none() {
        let answer = CertificateAnswer {
            chain: vec!["leaf".into(), "intermediate".into()],
            roots: "root one, root two".into(),
        };
        let wire = IstioCertificateResponse::from(answer.clone());
        assert_eq!(
            wire.cert_chain,
            ["leaf", "intermediate", "root one, root two"]
        );
        assert_eq!(CertificateAnswer::try_from(wire), Ok(answer));
        for cert_chain in [vec![], vec!["leaf".to_owned()]] {
            let wire = IstioCertificateResponse { cert_chain };
            assert_eq!(CertificateAnswer::try_from(wire), Err(AnswerError));
        }
    }
}
