//! A client of the webhook, as much an API server as these tests need.

use std::net::SocketAddr;

use bulkhead_core::identity::TrustDomain;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_inject::Namespace;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving;
use bulkhead_webhook::app::{App, Deps};
use bulkhead_webhook::config::Config;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) const IMAGE: &str = "registry.example/bulkhead-proxy:1";

/// The settings of a webhook on ports of its own, with more said by `also`.
pub(crate) fn config(also: &[(&str, &str)]) -> Config {
    let variables = [
        ("BULKHEAD_WEBHOOK_PROXY_IMAGE", IMAGE),
        ("BULKHEAD_WEBHOOK_ADDRESS", "127.0.0.1:0"),
        ("BULKHEAD_WEBHOOK_MONITORING_ADDRESS", "127.0.0.1:0"),
        ("BULKHEAD_WEBHOOK_URL", "https://127.0.0.1"),
        ("BULKHEAD_WEBHOOK_LAME_DUCK", "300ms"),
    ];
    Config::from_lookup(&|name| {
        also.iter()
            .chain(&variables)
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    })
    .unwrap()
}

/// Namespaces: `mesh` opted in by label, `plain` says nothing.
pub(crate) fn namespaces() -> Vec<Namespace> {
    let namespace = |name: &str, labels: &[(&str, &str)]| Namespace {
        name: name.to_owned(),
        labels: labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Namespace::default()
    };
    vec![
        namespace("mesh", &[("bulkhead.io/inject", "enabled")]),
        namespace("plain", &[]),
    ]
}

pub(crate) async fn start() -> App {
    start_with(config(&[])).await
}

pub(crate) async fn start_with(config: Config) -> App {
    App::start(config, Deps::fixed(namespaces())).await.unwrap()
}

/// What the pods of these tests are injected with.
pub(crate) fn settings() -> PodSettings {
    let domain = TrustDomain::new("cluster.local").unwrap();
    PodSettings::new(domain, IMAGE.to_owned())
}

/// An answer in whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) closes: bool,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The response of the AdmissionReview.
    pub(crate) fn review(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        let mut review: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(review["kind"], "AdmissionReview");
        review["response"].take()
    }
}

/// Connects TLS, trusting `roots` alone.
pub(crate) async fn connect_tls(
    address: SocketAddr,
    roots: &str,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let roots = Roots::from_pem(roots).unwrap();
    let config = serving::client_config(&roots, [alpn]).unwrap();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    TlsConnector::from(config).connect(name, stream).await
}

/// The certificate that a server presented.
pub(crate) fn presented(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let (_, session) = stream.get_ref();
    session.peer_certificates().unwrap()[0].clone().into_owned()
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A kept connection.
pub(crate) struct Client {
    sender: Sender,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, roots: &str) -> std::io::Result<Self> {
        Self::connect_as(address, roots, Version::HTTP_11).await
    }

    pub(crate) async fn connect_as(
        address: SocketAddr,
        roots: &str,
        version: Version,
    ) -> std::io::Result<Self> {
        let other = std::io::Error::other;
        let is_http2 = version == Version::HTTP_2;
        let alpn = if is_http2 { "h2" } else { "http/1.1" };
        let stream = connect_tls(address, roots, alpn).await?;
        let certificate = presented(&stream);
        let io = TokioIo::new(stream);
        let sender = if is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(other)?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(other)?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Ok(Self {
            sender,
            certificate,
        })
    }

    pub(crate) async fn of(app: &App) -> Self {
        Self::connect(app.address(), &app.ca_bundle().await)
            .await
            .unwrap()
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        let response: Response<Incoming> = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => sender.send_request(request).await?,
        };
        let (head, body) = response.into_parts();
        Ok(Answer {
            status: head.status,
            closes: head
                .headers
                .get("connection")
                .is_some_and(|value| value == "close"),
            body: body.collect().await?.to_bytes().to_vec(),
        })
    }

    /// Posts a review the way an API server does.
    pub(crate) async fn post(&mut self, body: impl Into<Bytes>) -> Answer {
        self.try_post(body).await.unwrap()
    }

    pub(crate) async fn try_post(&mut self, body: impl Into<Bytes>) -> hyper::Result<Answer> {
        let request = post(body);
        self.send(request).await
    }

    pub(crate) async fn review(&mut self, review: &Value) -> Value {
        self.post(review.to_string()).await.review()
    }
}

pub(crate) fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("https://127.0.0.1/inject?timeout=5s")
        .header("host", "127.0.0.1")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// Asks a monitoring endpoint.
pub(crate) async fn monitoring(app: &App, path: &str) -> (StatusCode, String) {
    let stream = TcpStream::connect(app.monitoring_address()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}
