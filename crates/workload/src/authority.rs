//! The CA, as a caller sees it.

use std::io;
use std::time::Duration;

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::bundle::{BundleError, Roots};
use bulkhead_pki::serving::{self, TlsError};
use bulkhead_proto::ca::{
    AnswerError, CertificateAnswer, CertificateRequest, IstioCertificateServiceClient,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::renewal::Settings;

/// How long the whole of a call may take, the connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest token that is sent, in bytes.
const MAX_TOKEN: u64 = 64 * 1024;

/// Where certificates come from.
///
/// Every call makes a connection of its own, and reads the token and the roots
/// anew: calls are hours apart, and all three change meanwhile.
pub(crate) struct Authority(Settings);

impl Authority {
    pub(crate) fn new(settings: Settings) -> Self {
        Self(settings)
    }

    /// Who asks.
    pub(crate) fn caller(&self) -> &SpiffeId {
        &self.0.id
    }

    pub(crate) fn address(&self) -> &str {
        &self.0.ca_address
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// Has a request signed.
    pub(crate) async fn sign(&self, csr: String) -> Result<CertificateAnswer, AuthorityError> {
        let token = self.token().await?;
        let call = async {
            let channel = self.connect().await?;
            let wish = CertificateRequest {
                csr,
                lifetime: Some(self.0.certificate_lifetime),
                on_behalf_of: None,
            };
            let mut request = tonic::Request::new(wish.into());
            request.metadata_mut().insert("authorization", token);
            let response = IstioCertificateServiceClient::new(channel)
                .create_certificate(request)
                .await
                .map_err(AuthorityError::Call)?;
            Ok(response.into_inner().try_into()?)
        };
        tokio::time::timeout(CALL_TIMEOUT, call)
            .await
            .map_err(|_| AuthorityError::Timeout)?
    }

    async fn token(&self) -> Result<MetadataValue<Ascii>, AuthorityError> {
        let token = read(&self.0.token_path, MAX_TOKEN)
            .await
            .map_err(|error| AuthorityError::File("the token", self.0.token_path.clone(), error))?;
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| AuthorityError::Token(self.0.token_path.clone()))?;
        // Kept out of logs and out of the compression's memory.
        value.set_sensitive(true);
        Ok(value)
    }

    async fn connect(&self) -> Result<Channel, AuthorityError> {
        let roots = read(&self.0.ca_roots_path, u64::MAX)
            .await
            .map_err(|error| {
                AuthorityError::File("the roots", self.0.ca_roots_path.clone(), error)
            })?;
        let config = serving::client_config(&Roots::from_pem(&roots)?, ["h2"])?;
        // tonic wants a scheme; the connection is TLS whatever it says here.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.0.ca_address))
            .map_err(|_| AuthorityError::Address(self.0.ca_address.clone()))?;
        let connector = tower::service_fn(move |uri: Uri| {
            let connector = TlsConnector::from(config.clone());
            async move {
                let host = uri
                    .host()
                    .unwrap_or_default()
                    .trim_matches(['[', ']'])
                    .to_owned();
                let port = uri
                    .port_u16()
                    .unwrap_or(bulkhead_core::ports::CONTROL_PLANE);
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                let stream = connector.connect(name, stream).await?;
                io::Result::Ok(TokioIo::new(stream))
            }
        });
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(AuthorityError::Connect)
    }
}

async fn read(path: &str, limit: u64) -> io::Result<String> {
    let path = path.to_owned();
    let read = move || {
        let length = std::fs::metadata(&path)?.len();
        if length > limit {
            return Err(io::Error::other(format!("{length} bytes are too many")));
        }
        std::fs::read_to_string(&path)
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(io::Error::other)?
}

/// Why the CA gave no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    #[error("reading {0} from {1} failed: {2}")]
    File(&'static str, String, io::Error),
    #[error("the token in {0} has characters that no token has")]
    Token(String),
    #[error("the roots that the CA is verified by are unusable: {0}")]
    Roots(#[from] BundleError),
    #[error("the CA's address {0:?} is not host:port")]
    Address(String),
    #[error("setting up TLS to the CA failed: {0}")]
    Tls(#[from] TlsError),
    #[error("connecting to the CA failed: {}; is it up, and does its certificate have this name?", chain(.0))]
    Connect(tonic::transport::Error),
    #[error("the CA refused: {} ({}); its log says why", .0.message(), .0.code())]
    Call(tonic::Status),
    #[error("the CA did not answer within {CALL_TIMEOUT:?}")]
    Timeout,
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

impl AuthorityError {
    /// The metric label.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::File(..) | Self::Token(_) | Self::Roots(_) | Self::Address(_) | Self::Tls(_) => {
                "local_failure"
            }
            Self::Connect(_) | Self::Timeout => "authority_unreachable",
            Self::Call(_) => "authority_refused",
            Self::Answer(_) => "malformed_answer",
        }
    }
}

/// An error with all of its causes; tonic's own text stops at the first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
