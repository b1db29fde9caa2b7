//! One HTTPS GET, on a connection of its own: what the CA asks for it asks for
//! rarely, and a connection that was kept may have died meanwhile.
//!
//! Everything has a bound, and a redirect is an error: whoever answers for the
//! address that people configured does not say where else keys come from.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bulkhead_pki::bundle::{BundleError, Roots};
use bulkhead_pki::serving::{self, TlsError};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, HOST, HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// How long a request may take in all.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// What there is to fetch: `https://HOST[:PORT][/PATH][?QUERY]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpsUrl {
    text: String,
    host: String,
    port: u16,
    target: String,
}

impl FromStr for HttpsUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") => return Err(UrlError::Plaintext),
            _ => return Err(UrlError::Malformed),
        }
        let authority = uri.authority().ok_or(UrlError::Malformed)?;
        if text.contains('#') || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(UrlError::Malformed);
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self {
            text: text.to_owned(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(443),
            target: target.to_owned(),
        })
    }
}

impl HttpsUrl {
    /// The document of a path below this one.
    pub fn below(&self, path: &str) -> Result<Self, UrlError> {
        format!("{}{path}", self.text.trim_end_matches('/')).parse()
    }

    /// Whether the same server answers for both.
    pub fn has_origin_of(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(&other.host) && self.port == other.port
    }

    fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a text is nothing that can be fetched.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UrlError {
    #[error("it is not of the form https://HOST[:PORT]/PATH")]
    Malformed,
    #[error("it is http://, where anybody on the way could put in keys: use https://")]
    Plaintext,
}

/// How to ask: by whom servers are verified, and what is shown to them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Access {
    /// PEM file of the roots; those of the system where there is none.
    pub ca_file: Option<PathBuf>,
    /// File with a bearer token; none is sent where there is none.
    pub token_file: Option<PathBuf>,
}

/// A document, and for how long whoever serves it says that it holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Document {
    pub text: Vec<u8>,
    pub max_age: Option<Duration>,
}

/// Fetches a document. Both files are read anew each time: they change.
pub async fn get(url: &HttpsUrl, access: &Access) -> Result<Document, FetchError> {
    let fetched = tokio::time::timeout(TIMEOUT, fetch(url, access)).await;
    fetched.unwrap_or(Err(FetchError::Timeout))
}

async fn fetch(url: &HttpsUrl, access: &Access) -> Result<Document, FetchError> {
    let request = request(url, access.token_file.as_deref()).await?;
    let roots = roots(access.ca_file.as_deref()).await?;
    let tls = serving::foreign_client_config(roots, ["http/1.1"])?;
    let name = ServerName::try_from(url.host.clone()).map_err(|_| FetchError::Name)?;
    let stream = TcpStream::connect((url.host.as_str(), url.port)).await;
    let stream = stream.map_err(FetchError::Connect)?;
    let stream = TlsConnector::from(tls).connect(name, stream).await;
    let stream = stream.map_err(FetchError::Handshake)?;
    let read = async |answer: Response<Incoming>| {
        let status = answer.status();
        if status.is_redirection() {
            return Err(FetchError::Redirect(location(answer.headers())));
        }
        if !status.is_success() {
            return Err(FetchError::Status(status.as_u16()));
        }
        let max_age = max_age(answer.headers());
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let text = body.map_err(FetchError::Body)?.to_bytes().to_vec();
        Ok(Document { text, max_age })
    };
    exchange(stream, request, read).await?
}

/// One request on a connection of its own, and what `read` makes of the answer.
pub(crate) async fn exchange<B, T>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<B>,
    read: impl AsyncFnOnce(Response<Incoming>) -> T,
) -> hyper::Result<T>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
{
    let stream = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let exchanged = async { Ok(read(sender.send_request(request).await?).await) };
    // The connection ends with the exchange, whichever is done first.
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        exchanged = exchanged => exchanged,
        never = driven => never,
    }
}

/// Host and port as a URL has them.
pub(crate) fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

async fn request(
    url: &HttpsUrl,
    token_file: Option<&Path>,
) -> Result<Request<Empty<Bytes>>, FetchError> {
    let mut request = Request::get(url.target.as_str())
        .header(HOST, url.authority())
        .header(USER_AGENT, "bulkhead-ca")
        .header(ACCEPT, "application/json, application/jwk-set+json");
    if let Some(file) = token_file {
        let unusable = |why: String| FetchError::Token(file.to_owned(), why);
        let token = tokio::fs::read_to_string(file).await;
        let token = Zeroizing::new(token.map_err(|error| unusable(error.to_string()))?);
        let header = Zeroizing::new(format!("Bearer {}", token.trim()));
        let header = HeaderValue::from_str(&header);
        let mut header = header.map_err(|_| unusable("it is not plain text".to_owned()))?;
        header.set_sensitive(true);
        request = request.header(AUTHORIZATION, header);
    }
    request.body(Empty::new()).map_err(|_| FetchError::Name)
}

async fn roots(file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, FetchError> {
    let Some(file) = file else {
        let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
        let roots = found.map(|found| found.certs).unwrap_or_default();
        return match roots.is_empty() {
            true => Err(FetchError::NoRoots),
            false => Ok(roots),
        };
    };
    let unusable = |why| FetchError::Roots(file.to_owned(), why);
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| unusable(RootsError::Read(error)))?;
    let roots = Roots::from_pem(&text).map_err(|error| unusable(RootsError::Parse(error)))?;
    let certificates = roots.certificates().iter();
    Ok(certificates.map(|root| root.der().clone()).collect())
}

/// RFC 9111, 5.2.2.1.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get(CACHE_CONTROL)?.to_str().ok()?;
    let mut directives = directives.split(',').map(str::trim);
    let seconds = directives.find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then_some(value)
    })?;
    Some(Duration::from_secs(seconds.trim_matches('"').parse().ok()?))
}

fn location(headers: &HeaderMap) -> String {
    let location = headers.get(LOCATION).and_then(|to| to.to_str().ok());
    location.unwrap_or_default().chars().take(256).collect()
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("there was no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("connecting failed: {0}")]
    Connect(#[source] std::io::Error),
    #[error(
        "TLS failed: {0}; is its certificate for the host in the address, and are the roots those of its CA?"
    )]
    Handshake(#[source] std::io::Error),
    #[error("the host in the address is not one that a certificate can be for")]
    Name,
    #[error("HTTP failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answered with status {0}")]
    Status(u16),
    #[error(
        "it redirects to {0:?}, and redirects are not followed: configure the address of the keys themselves"
    )]
    Redirect(String),
    #[error("its answer cannot be read, or is longer than {MAX_ANSWER} bytes: {0}")]
    Body(#[source] Box<dyn Error + Send + Sync>),
    #[error(
        "this system has no roots to verify it by: name a PEM file with those of its CA (images of Bulkhead have none)"
    )]
    NoRoots,
    #[error("the roots in {0} cannot be used: {1}")]
    Roots(PathBuf, #[source] RootsError),
    #[error("the token in {0} cannot be used: {1}")]
    Token(PathBuf, String),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What is wrong with a file of roots.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error(transparent)]
    Read(std::io::Error),
    #[error(transparent)]
    Parse(BundleError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_and_names_nobody() {
        for (text, authority, target) in [
            ("https://a.example", "a.example:443", "/"),
            (
                "https://a.example:8443/jwks?p=1",
                "a.example:8443",
                "/jwks?p=1",
            ),
            ("https://[2001:db8::1]/keys", "[2001:db8::1]:443", "/keys"),
        ] {
            let url: HttpsUrl = text.parse().unwrap();
            assert_eq!(
                (url.authority().as_str(), url.target.as_str()),
                (authority, target)
            );
            assert_eq!(url.to_string(), text);
        }
        for text in [
            "",
            "a.example",
            "/keys",
            "https://",
            "https://u@a.example",
            "https://a/#b",
        ] {
            assert_eq!(text.parse::<HttpsUrl>(), Err(UrlError::Malformed), "{text}");
        }
        let plaintext = "http://a.example/keys".parse::<HttpsUrl>();
        assert_eq!(plaintext, Err(UrlError::Plaintext));
    }

    #[test]
    fn a_document_below_an_address_is_of_the_same_server() {
        let issuer: HttpsUrl = "https://a.example/mesh/".parse().unwrap();
        let below = issuer.below("/.well-known/x").unwrap();
        assert_eq!(below.to_string(), "https://a.example/mesh/.well-known/x");
        assert!(below.has_origin_of(&issuer));
        let other: HttpsUrl = "https://a.example:8443/mesh".parse().unwrap();
        assert!(!below.has_origin_of(&other));
    }

    #[test]
    fn whoever_serves_a_document_may_say_how_long_it_holds() {
        let said = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, text.parse().unwrap());
            max_age(&headers)
        };
        assert_eq!(said("public, max-age=60"), Some(Duration::from_secs(60)));
        assert_eq!(
            said("Max-Age=\"7\", must-revalidate"),
            Some(Duration::from_secs(7))
        );
        for nothing in [
            "no-cache",
            "max-age",
            "max-age=",
            "max-age=-1",
            "s-maxage=5",
        ] {
            assert_eq!(said(nothing), None, "{nothing}");
        }
        assert_eq!(max_age(&HeaderMap::new()), None);
    }
}
