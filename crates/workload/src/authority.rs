//! The CA, as a caller sees it.

mod error;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::ports;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::serving;
use bulkhead_proto::ca::{
    CertificateAnswer, CertificateRequest, IstioCertificateServiceClient, metadata,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::bundle_file::read_to_string;
use crate::credentials::Credentials;
use crate::settings::Settings;

pub(crate) use error::AuthorityError;

/// How long the whole of a call may take: reading the token, connecting, and
/// waiting for a turn.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest answer that is read, in bytes: a chain and a bundle, and room.
const MAX_ANSWER: usize = 2 * 1024 * 1024;
/// The longest token that is sent, in bytes.
const MAX_TOKEN: usize = 64 * 1024;

/// What a workload asks with.
pub(crate) struct Ask {
    /// PEM of the certificate signing request.
    pub(crate) csr: String,
    /// What it holds now.
    pub(crate) holds: Option<Holding>,
    /// The certificate that a CA which asks for one is shown.
    pub(crate) shows: Option<Arc<Credentials>>,
}

/// What a workload holds, which it tells the CA. Whoever has nothing is served
/// first, and the CA knows who lacks a root.
pub(crate) struct Holding {
    pub(crate) bundle: TrustBundle,
    pub(crate) certificate_expires: SystemTime,
}

/// What the CA gave.
pub(crate) struct Grant {
    pub(crate) answer: CertificateAnswer,
    /// Which version of the trust bundle the roots are; 0 where it does not say.
    pub(crate) sequence: u64,
    /// The CA's time, where it says it.
    pub(crate) authority_now: Option<SystemTime>,
}

/// Where certificates come from.
pub(crate) trait Authority: Send + Sync + 'static {
    /// Has a request signed.
    fn sign(&self, ask: Ask) -> impl Future<Output = Result<Grant, AuthorityError>> + Send;

    /// Where it is, for logs.
    fn address(&self) -> &str;
}

/// A CA that is called over gRPC.
///
/// Every call makes a connection of its own, and reads the token and the roots
/// anew: calls are hours apart, and all three change meanwhile.
pub(crate) struct Remote(Settings);

impl Remote {
    pub(crate) fn new(settings: Settings) -> Self {
        Self(settings)
    }

    async fn call(&self, ask: Ask) -> Result<Grant, AuthorityError> {
        let held = ask.holds.as_ref().map(|holds| holds.bundle.roots());
        let shows = ask.shows.as_ref().map(|shows| shows.identity());
        // A CA that renews by certificate needs no token of whoever has one.
        let (token, lacks) = match self.token().await {
            Ok(token) => (Some(token), None),
            Err(error) if shows.is_some() => (None, Some(error)),
            Err(error) => return Err(error),
        };
        let roots = self.roots(held).await?;
        let channel = self.connect(&roots, shows).await?;
        let wish = CertificateRequest {
            csr: ask.csr,
            lifetime: Some(self.0.certificate_lifetime),
            on_behalf_of: None,
        };
        let mut request = tonic::Request::new(wish.into());
        request.set_timeout(CALL_TIMEOUT);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token);
        }
        if let Some(holds) = &ask.holds {
            claim(request.metadata_mut(), holds);
        }
        let answered = IstioCertificateServiceClient::new(channel)
            .max_decoding_message_size(MAX_ANSWER)
            .create_certificate(request)
            .await;
        let response = match (answered, lacks) {
            // What is wrong is that there is no token.
            (Err(status), Some(lacks)) if status.code() == Code::Unauthenticated => {
                return Err(lacks);
            }
            (answered, _) => answered?,
        };
        Ok(Grant {
            sequence: sequence(response.metadata()),
            authority_now: date(response.metadata()),
            answer: response.into_inner().try_into()?,
        })
    }

    /// A connection to the CA, and what proves there who this is.
    pub(crate) async fn prove(
        &self,
        held: Option<&Roots>,
    ) -> Result<(Channel, MetadataValue<Ascii>), AuthorityError> {
        let token = self.token().await?;
        let roots = self.roots(held).await?;
        Ok((self.connect(&roots, None).await?, token))
    }

    async fn token(&self) -> Result<MetadataValue<Ascii>, AuthorityError> {
        let path = &self.0.token_path;
        let token = read(path)
            .await
            .map_err(|error| AuthorityError::Token(path.clone(), error))?;
        let token = token.trim();
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(AuthorityError::TokenLength(path.clone(), token.len()));
        }
        let is_sound = token.bytes().all(|byte| byte.is_ascii_graphic());
        let value = is_sound.then(|| format!("Bearer {token}").parse());
        let Some(Ok(mut value)): Option<Result<MetadataValue<Ascii>, _>> = value else {
            return Err(AuthorityError::TokenCharacters(path.clone()));
        };
        // Kept out of logs and out of the compression's memory.
        value.set_sensitive(true);
        Ok(value)
    }

    /// What the CA's own certificate is verified by: the roots of the file, and
    /// those that the workload holds. While a root is being replaced, either may
    /// be the first to have the new one.
    async fn roots(&self, held: Option<&Roots>) -> Result<Roots, AuthorityError> {
        let path = &self.0.ca_roots_path;
        let read = read(path).await;
        let read = read
            .map_err(|error| AuthorityError::Roots(path.clone(), error))
            .and_then(|text| Ok(Roots::from_pem(&text)?));
        match (read, held) {
            (Ok(file), None) => Ok(file),
            (Err(error), None) => Err(error),
            (Ok(file), Some(held)) => {
                let both = file.certificates().iter().chain(held.certificates());
                Ok(Roots::new(both.cloned())?)
            }
            (Err(error), Some(held)) => {
                tracing::warn!(
                    %error,
                    "the CA is verified by the roots that this workload holds; a workload that starts now would fail"
                );
                Ok(held.clone())
            }
        }
    }

    async fn connect(
        &self,
        roots: &Roots,
        shows: Option<&WorkloadIdentity>,
    ) -> Result<Channel, AuthorityError> {
        let tls = TlsConnector::from(match shows {
            Some(identity) => serving::client_config_as(identity, roots, ["h2"])?,
            None => serving::client_config(roots, ["h2"])?,
        });
        // tonic wants a scheme; the connection is TLS whatever it says here.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.0.ca_address))
            .map_err(|_| AuthorityError::Address(self.0.ca_address.clone()))?;
        let mut stream = Some(self.dial(endpoint.uri(), &tls).await?);
        let connector = tower::service_fn(move |_| {
            // A call has one connection; where it breaks, the next call has another.
            let stream = stream.take().map(TokioIo::new);
            std::future::ready(stream.ok_or(io::Error::from(io::ErrorKind::NotConnected)))
        });
        Ok(endpoint.connect_with_connector(connector).await?)
    }

    async fn dial(
        &self,
        address: &Uri,
        tls: &TlsConnector,
    ) -> Result<TlsStream<TcpStream>, AuthorityError> {
        let malformed = || AuthorityError::Address(self.0.ca_address.clone());
        let authority = address.authority().ok_or_else(malformed)?;
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => ports::CONTROL_PLANE,
            None => return Err(malformed()),
        };
        let host = authority.host().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| malformed())?;
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(AuthorityError::Connect)?;
        tls.connect(name, stream)
            .await
            .map_err(AuthorityError::Handshake)
    }
}

impl Authority for Remote {
    async fn sign(&self, ask: Ask) -> Result<Grant, AuthorityError> {
        let answered = tokio::time::timeout(CALL_TIMEOUT, self.call(ask)).await;
        answered.map_err(|_| AuthorityError::Timeout(CALL_TIMEOUT))?
    }

    fn address(&self) -> &str {
        &self.0.ca_address
    }
}

async fn read(path: &str) -> io::Result<String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || read_to_string(Path::new(&path)))
        .await
        .map_err(io::Error::other)?
}

/// Says what the workload holds.
fn claim(map: &mut MetadataMap, holds: &Holding) {
    let expires = holds.certificate_expires.duration_since(UNIX_EPOCH);
    let expires = expires.unwrap_or_default().as_secs();
    let bundle = holds.bundle.id().to_string();
    let bundle = bundle.parse().expect("hexadecimal digits are ASCII");
    map.insert(metadata::TRUST_BUNDLE, bundle);
    map.insert(metadata::CERTIFICATE_EXPIRES, expires.into());
}

fn sequence(map: &MetadataMap) -> u64 {
    let text = map.get(metadata::TRUST_BUNDLE_SEQUENCE);
    let text = text.and_then(|text| text.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The CA's time, as HTTP says it (RFC 9110, 6.6.1), to the second.
fn date(map: &MetadataMap) -> Option<SystemTime> {
    let text = map.get("date")?.to_str().ok()?;
    httpdate::parse_http_date(text).ok()
}
