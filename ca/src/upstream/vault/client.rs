//! One HTTP request to Vault, on a connection of its own.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bulkhead_pki::serving;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, Uri};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::answer::{MAX_ANSWER, refusal};
use crate::https;
use crate::upstream::{Reason, UpstreamError, read_roots};

/// How long a request may take in all.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where Vault is: `https://HOST[:PORT]`, or `http://` on loopback, where an
/// agent may listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Url {
    host: String,
    port: u16,
    tls: bool,
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        let host = uri.host().ok_or(UrlError::Malformed)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(UrlError::Path);
        }
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(&host) => false,
            Some("http") => return Err(UrlError::Plaintext),
            _ => return Err(UrlError::Malformed),
        };
        Ok(Self {
            host,
            port: uri.port_u16().unwrap_or(8200),
            tls,
        })
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl Url {
    fn authority(&self) -> String {
        https::authority(&self.host, self.port)
    }
}

/// Why a text is not Vault's address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UrlError {
    #[error("is not of the form https://HOST:PORT")]
    Malformed,
    #[error("has a path or a query: the mount of the PKI engine has a setting of its own")]
    Path,
    #[error("is http://, and a token in plaintext is for loopback alone: use https://")]
    Plaintext,
}

/// Asks Vault.
pub(super) struct Client {
    url: Url,
    ca_file: Option<PathBuf>,
    namespace: Option<String>,
}

/// Which Vault it asks.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        write!(f, "vault {} {namespace}", self.url)
    }
}

impl Client {
    pub(super) fn new(url: Url, ca_file: Option<PathBuf>, namespace: Option<String>) -> Self {
        Self {
            url,
            ca_file,
            namespace,
        }
    }

    /// The body of a good answer to a POST to `/v1/<path>`.
    pub(super) async fn post(
        &self,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> Result<Vec<u8>, UpstreamError> {
        // It may have a token in it.
        let body = Zeroizing::new(body.to_string());
        let asked = tokio::time::timeout(TIMEOUT, self.ask(path, token, &body)).await;
        let (status, answer) = asked.map_err(|_| {
            let seconds = TIMEOUT.as_secs();
            self.unreachable(format!("it did not answer within {seconds} s"))
        })??;
        match status {
            200..=299 => Ok(answer),
            _ => Err(refusal(&self.url, path, status, &answer)),
        }
    }

    async fn ask(
        &self,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> Result<(u16, Vec<u8>), UpstreamError> {
        let (host, port) = (self.url.host.as_str(), self.url.port);
        let stream = TcpStream::connect((host, port)).await;
        let stream = stream.map_err(|error| self.unreachable(error))?;
        let request = self.request(path, token, body)?;
        if !self.url.tls {
            return self.exchange(stream, request).await;
        }
        let connector = self.connector().await?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| self.unusable(format!("its name cannot be verified: {error}")))?;
        let stream = connector.connect(name, stream).await.map_err(|error| {
            self.unreachable(format!(
                "{error}; is BULKHEAD_CA_VAULT_CA_FILE the root of Vault's own certificate, and \
                 is Vault's certificate for {host}?"
            ))
        })?;
        self.exchange(stream, request).await
    }

    async fn connector(&self) -> Result<TlsConnector, UpstreamError> {
        let roots = read_roots(self.ca_file.as_deref()).await?.ok_or_else(|| {
            self.unusable(
                "nothing says which CA signed its certificate: name the file of that in \
                 BULKHEAD_CA_VAULT_CA_FILE",
            )
        })?;
        let config =
            serving::client_config(&roots, ["http/1.1"]).map_err(|error| self.unusable(error))?;
        Ok(TlsConnector::from(config))
    }

    fn request(
        &self,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> Result<Request<Full<Bytes>>, UpstreamError> {
        let mut request = Request::post(format!("/v1/{path}"))
            .header(HOST, self.url.authority())
            .header(CONTENT_TYPE, "application/json")
            // Vault asks for it, so that a browser that was fooled is no client.
            .header("x-vault-request", "true");
        if let Some(token) = token {
            request = request.header("x-vault-token", token);
        }
        if let Some(namespace) = &self.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        request
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .map_err(|error| {
                self.unusable(format!(
                    "a request to it cannot be made ({error}): are path, token and namespace plain text?"
                ))
            })
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<(u16, Vec<u8>), UpstreamError> {
        let read = async |answer: Response<Incoming>| {
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| self.unreachable(error))?;
            Ok((status, body.to_bytes().to_vec()))
        };
        let exchanged = https::exchange(stream, request, read).await;
        exchanged.map_err(|error| self.unreachable(error))?
    }

    fn unreachable(&self, why: impl fmt::Display) -> UpstreamError {
        UpstreamError::new(
            Reason::Unreachable,
            format!("asking Vault at {} failed: {why}", self.url),
        )
    }

    fn unusable(&self, why: impl fmt::Display) -> UpstreamError {
        UpstreamError::new(
            Reason::Unusable,
            format!("Vault at {} cannot be asked: {why}", self.url),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_unless_it_is_loopback() {
        for (text, shown) in [
            ("https://vault.example", "https://vault.example:8200"),
            ("https://vault.example:443/", "https://vault.example:443"),
            ("https://[2001:db8::1]:1", "https://[2001:db8::1]:1"),
            ("http://127.0.0.1:8100", "http://127.0.0.1:8100"),
            ("http://localhost", "http://localhost:8200"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
        }
        for (text, error) in [
            ("http://vault.example", UrlError::Plaintext),
            ("https://vault.example/v1/pki", UrlError::Path),
            ("vault.example:8200", UrlError::Malformed),
            ("ftp://vault.example", UrlError::Malformed),
            ("", UrlError::Malformed),
        ] {
            assert_eq!(text.parse::<Url>(), Err(error), "{text}");
        }
    }
}
