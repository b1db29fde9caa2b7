//! The call: wait for a turn, authenticate, wait for a turn, vet, issue, check,
//! answer.

use std::sync::Arc;

use bulkhead_pki::csr::{CsrError, ParsedCsr};
use bulkhead_pki::jwt::{AudienceError, JwtError};
use bulkhead_pki::key::KeyError;
use bulkhead_proto::ca::{CertificateRequest, IstioCertificateService, metadata};
use bulkhead_proto::generated::{IstioCertificateRequest, IstioCertificateResponse};
use bulkhead_proto::retry;
use bulkhead_runtime::clock::Clock;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status};

use crate::admission::Admission;
use crate::audit::{Record, RequestId};
use crate::authenticate::AuthenticationError;
use crate::authenticate::certificate::Succession;
use crate::claims::Claims;
use crate::config::Lifetimes;
use crate::issuer::{IssueError, Issued, Issuer};
use crate::metrics::Metrics;
use crate::node_proxy::NodeProxies;
use crate::queue::Busy;
use crate::server::Peer;
use crate::vet::{VetError, VettedCsr, vet};

/// The CSR service.
pub struct CaService {
    pub admission: Admission,
    pub node_proxies: NodeProxies,
    pub issuer: Arc<dyn Issuer>,
    pub lifetimes: Lifetimes,
    pub clock: Clock,
    pub metrics: Metrics,
}

impl CaService {
    /// The call as one paragraph.
    async fn certify(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
        request: CertificateRequest,
        record: &mut Record,
    ) -> Result<Issued, Refusal> {
        let admission = &self.admission;
        let caller = admission
            .authenticate_renewal(metadata, peer, record)
            .await?;
        let wanted = request.on_behalf_of.as_deref();
        let subject = self.node_proxies.subject(&caller, wanted)?;
        record.asks_for(subject.id());
        let turn = admission.turn(&caller, subject.id().as_str(), record);
        let _turn = turn.await?;
        let csr = ParsedCsr::from_pem(&request.csr)?;
        let vetted = vet(&subject, &csr)?;
        let wish = request.lifetime.unwrap_or(self.lifetimes.default);
        if let Some(bundle) = record.claims().bundle() {
            self.issuer.claimed(vetted.holder(), bundle);
        }
        let succession = caller.succession();
        let most = succession.map_or(self.lifetimes.max, |next| {
            next.lifetime.min(self.lifetimes.max)
        });
        let issued = self.issuer.issue(&vetted, wish.min(most)).await?;
        self.check(&issued, &vetted, succession)?;
        Ok(issued)
    }

    /// Whatever the issuer is, and whatever became of it: what leaves here is
    /// for the caller, for its key, and for no longer than allowed.
    fn check(
        &self,
        issued: &Issued,
        vetted: &VettedCsr,
        succession: Option<&Succession>,
    ) -> Result<(), Refusal> {
        let svid = &issued.svid;
        let remaining = svid.not_after().duration_since(self.clock.now());
        let is_within = |next: &Succession| {
            let validity = svid.not_after().duration_since(svid.not_before());
            validity.is_ok_and(|validity| validity <= next.validity)
        };
        let as_vetted = svid.id() == vetted.id()
            && svid.is_for(vetted.public_key())
            && remaining.is_ok_and(|remaining| remaining <= self.lifetimes.max)
            && succession.is_none_or(is_within);
        as_vetted.then_some(()).ok_or(Refusal::NotAsVetted)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (headers, extensions, message) = request.into_parts();
        let peer = Peer::of_call(&extensions)?;
        let mut record = Record::begin(peer.address(), Claims::read(&headers), &self.metrics);
        let certified = self.certify(&headers, peer, message.into(), &mut record);
        match certified.await {
            Ok(issued) => {
                record.issued(&issued);
                let mut answer = Response::new(issued.to_answer().into());
                let sequence = MetadataValue::from(issued.sequence);
                answer
                    .metadata_mut()
                    .insert(metadata::TRUST_BUNDLE_SEQUENCE, sequence);
                Ok(answer)
            }
            Err(refusal) => {
                let status = refusal.to_status(record.id());
                record.refused(&refusal);
                Err(status)
            }
        }
    }
}

/// Why a call ends without a certificate, or a token. Complete in the log, opaque to the
/// caller.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Authentication(#[from] AuthenticationError),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Vet(#[from] VetError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("what was issued is not what was vetted; nothing was given out")]
    NotAsVetted,
    #[error(transparent)]
    Audience(#[from] AudienceError),
    #[error("signing a token failed: {0}")]
    Token(KeyError),
    #[error("the CA's own bundle document cannot be read: {0}")]
    Bundle(#[from] JwtError),
}

impl Refusal {
    /// A stable word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Busy(busy) => busy.why.reason(),
            Self::Authentication(error) => error.reason(),
            Self::Csr(error) => csr_reason(error),
            Self::Vet(error) => error.reason(),
            Self::Issue(error) => error.reason(),
            Self::NotAsVetted => "issued_not_as_vetted",
            Self::Audience(_) => "token_audience",
            Self::Token(_) | Self::Bundle(_) => "issuer_failed",
        }
    }

    /// Clients tell by the code whether to come again, and learn nothing else
    /// but the name under which the log has the rest.
    pub(crate) fn to_status(&self, request: RequestId) -> Status {
        let message = format!("nothing was issued; the CA's log has the reason, request {request}");
        let code = match self {
            Self::Busy(busy) => return retry::too_busy(&message, busy.retry_after),
            Self::Authentication(error) if error.is_temporary() => Code::Unavailable,
            Self::Authentication(_) => Code::Unauthenticated,
            Self::Csr(_) | Self::Audience(_) => Code::InvalidArgument,
            Self::Vet(_) => Code::PermissionDenied,
            Self::Issue(_) | Self::Token(_) => Code::Unavailable,
            Self::NotAsVetted | Self::Bundle(_) => Code::Internal,
        };
        Status::new(code, message)
    }
}

fn csr_reason(error: &CsrError) -> &'static str {
    match error {
        CsrError::Pem(_) | CsrError::NotOneRequest | CsrError::Malformed => "csr_malformed",
        CsrError::Key(_) => "csr_key",
        CsrError::SignatureAlgorithm | CsrError::Signature => "csr_signature",
        CsrError::CertificateAuthority | CsrError::KeyUsage => "csr_asks_for_ca",
        CsrError::ExtendedKeyUsage | CsrError::Extension(_) | CsrError::Attribute(_) => {
            "csr_extension"
        }
    }
}
