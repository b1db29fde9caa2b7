//! A server of a token issuer's keys: real HTTPS, with a certificate of a CA that
//! nobody else knows, and whatever answers a test wants.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_ca::config::{FetchedKeys, KeyAddress, KeySource, TokenIssuer};
use bulkhead_ca::https::{Access, HttpsUrl};
use bulkhead_pki::serving::{ServerName, ServingAuthority};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::now;

/// The answer at a path: a status, a header, a body.
type Answer = (u16, Option<(&'static str, String)>, Vec<u8>);

#[derive(Clone, Default)]
struct Pages(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    answers: BTreeMap<String, Answer>,
    asked: Vec<(String, Option<String>)>,
}

pub(crate) struct KeyServer {
    directory: TempDir,
    address: SocketAddr,
    pages: Pages,
    serving: tokio::task::JoinHandle<()>,
}

impl KeyServer {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = ServingAuthority::new("keys", Duration::from_secs(3600), now()).unwrap();
        let root = authority.certificate().to_pem();
        std::fs::write(directory.path().join("ca.crt"), root).unwrap();
        let names = [ServerName::parse("127.0.0.1").unwrap()];
        let certificate = authority.issue(&names, Duration::from_secs(3600), now());
        let tls = certificate.unwrap().server_config(["http/1.1"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = Pages::default();
        let served = pages.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, pages) = (TlsAcceptor::from(Arc::clone(&tls)), served.clone());
                tokio::spawn(async move {
                    // Clients that do not like the certificate are part of the tests.
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| {
                        std::future::ready(Ok::<_, Infallible>(pages.answer(&request)))
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            directory,
            address,
            pages,
            serving,
        }
    }

    pub(crate) fn url(&self, path: &str) -> HttpsUrl {
        format!("https://{}{path}", self.address).parse().unwrap()
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// A file with a token for this server.
    pub(crate) fn token_file(&self) -> PathBuf {
        let path = self.directory.path().join("token");
        std::fs::write(&path, "for-the-key-server\n").unwrap();
        path
    }

    pub(crate) fn answers(&self, path: &str, status: u16, body: impl Into<Vec<u8>>) {
        self.answers_with(path, (status, None, body.into()));
    }

    pub(crate) fn answers_with(&self, path: &str, answer: Answer) {
        let mut state = self.pages.0.lock().unwrap();
        state.answers.insert(path.to_owned(), answer);
    }

    /// The paths that were asked for, each with its authorization.
    pub(crate) fn asked(&self) -> Vec<(String, Option<String>)> {
        self.pages.0.lock().unwrap().asked.clone()
    }

    /// An issuer whose keys are at a path of this server.
    pub(crate) fn issuer(&self, name: &str, path: &str) -> TokenIssuer {
        self.issuer_at(name, KeyAddress::JwkSet(self.url(path)))
    }

    pub(crate) fn issuer_at(&self, name: &str, address: KeyAddress) -> TokenIssuer {
        let access = Access {
            ca_file: Some(self.ca_file()),
            token_file: None,
        };
        let keys = KeySource::Fetched(FetchedKeys { address, access });
        TokenIssuer::new(name.to_owned(), keys)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut state = self.0.lock().unwrap();
        let path = request.uri().path().to_owned();
        let shown = request.headers().get("authorization");
        let shown = shown.map(|header| header.to_str().unwrap().to_owned());
        state.asked.push((path.clone(), shown));
        let (status, header, body) =
            state
                .answers
                .get(&path)
                .cloned()
                .unwrap_or((404, None, Vec::new()));
        let mut answer = Response::builder().status(status);
        if let Some((name, value)) = header {
            answer = answer.header(name, value);
        }
        answer.body(Full::from(body)).unwrap()
    }
}
