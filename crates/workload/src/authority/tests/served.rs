//! A CA on loopback that answers what a test says, and the files of a workload.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_pki::authority::Authority as Signer;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_pki::verifier::ShownChain;
use bulkhead_proto::ca::{IstioCertificateService, IstioCertificateServiceServer, metadata};
use bulkhead_proto::generated::{IstioCertificateRequest, IstioCertificateResponse};
use bulkhead_runtime::clock::Clock;
use http::HeaderMap;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use crate::credentials::Credentials;
use crate::settings::Settings;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn now() -> SystemTime {
    Clock::system().now()
}

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// A root with its intermediate.
pub(super) struct Line {
    pub(super) root: Certificate,
    intermediate: Signer,
}

impl Line {
    pub(super) fn new() -> Self {
        let root = Signer::new_root(&trust_domain(), 100 * DAY, now()).unwrap();
        Self {
            intermediate: root.new_intermediate(50 * DAY, now()).unwrap(),
            root: root.certificate().clone(),
        }
    }

    /// A workload's certificate of it.
    pub(super) fn credentials(&self) -> Arc<Credentials> {
        let id = SpiffeId::workload(&trust_domain(), "shop", "cart").unwrap();
        let key = PrivateKey::generate().unwrap();
        let chain = self
            .intermediate
            .issue_svid(&id, key.public_key(), DAY, now());
        let identity = WorkloadIdentity::new(&id, &key, chain.unwrap(), self.bundle(), now());
        Arc::new(Credentials::new(identity.unwrap()).unwrap())
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::new(trust_domain(), Roots::new([self.root.clone()]).unwrap())
    }

    fn server(&self, name: &str) -> Arc<ServerConfig> {
        self.serving(name).server_config(["h2"]).unwrap()
    }

    fn serving(&self, name: &str) -> ServingCertificate {
        let names = [ServerName::parse(name).unwrap()];
        let certificate = self.intermediate.issue_serving(&names, DAY, now());
        certificate.unwrap()
    }
}

/// The files of a workload.
pub(super) struct Place(TempDir);

impl Place {
    pub(super) fn new(roots: &[&Line]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write_token("a-token\n");
        place.write_lines(roots);
        place
    }

    pub(super) fn settings(&self, address: &str) -> Settings {
        let path = |name| self.0.path().join(name).display().to_string();
        Settings {
            id: SpiffeId::workload(&trust_domain(), "shop", "cart").unwrap(),
            trust_domain: trust_domain(),
            ca_address: address.to_owned(),
            ca_roots_path: path("ca.crt"),
            token_path: path("token"),
            certificate_lifetime: DAY,
            reports_to_control: true,
        }
    }

    pub(super) fn write_token(&self, token: &str) {
        std::fs::write(self.0.path().join("token"), token).unwrap();
    }

    pub(super) fn remove_token(&self) {
        std::fs::remove_file(self.0.path().join("token")).unwrap();
    }

    pub(super) fn write_roots(&self, text: &str) {
        std::fs::write(self.0.path().join("ca.crt"), text).unwrap();
    }

    pub(super) fn write_lines(&self, roots: &[&Line]) {
        let text: String = roots.iter().map(|line| line.root.to_pem()).collect();
        self.write_roots(&text);
    }
}

/// What a CA does with a call.
#[derive(Clone)]
enum Manner {
    Answer(Vec<String>),
    Refuse(Status),
    Stall,
}

/// A CA that serves; it stops when this is dropped.
pub(super) struct Served {
    pub(super) address: String,
    heard: Arc<Mutex<HeaderMap>>,
    shown: Arc<Mutex<Option<ShownChain>>>,
    task: AbortHandle,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    pub(super) async fn honest(line: &Line) -> Self {
        Self::named(line, "127.0.0.1").await
    }

    /// With a certificate of this name.
    pub(super) async fn named(line: &Line, name: &str) -> Self {
        let answer = Manner::Answer(vec!["leaf".to_owned(), line.root.to_pem()]);
        Self::start(line.server(name), answer).await
    }

    /// It asks clients for a certificate.
    pub(super) async fn asking(line: &Line) -> Self {
        let tls = line.serving("127.0.0.1").server_config_that_asks(["h2"]);
        let answer = Manner::Answer(vec!["leaf".to_owned(), line.root.to_pem()]);
        Self::start(tls.unwrap(), answer).await
    }

    pub(super) async fn answering(line: &Line, parts: Vec<String>) -> Self {
        Self::start(line.server("127.0.0.1"), Manner::Answer(parts)).await
    }

    pub(super) async fn refusing(line: &Line, refusal: Status) -> Self {
        Self::start(line.server("127.0.0.1"), Manner::Refuse(refusal)).await
    }

    pub(super) async fn stalling(line: &Line) -> Self {
        Self::start(line.server("127.0.0.1"), Manner::Stall).await
    }

    async fn start(tls: Arc<ServerConfig>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = Arc::new(Mutex::new(HeaderMap::new()));
        let shown = Arc::default();
        let calls = Calls {
            heard: Arc::clone(&heard),
            shown: Arc::clone(&shown),
            manner,
        };
        let task = tokio::spawn(serve(listener, tls, calls)).abort_handle();
        Self {
            address,
            heard,
            shown,
            task,
        }
    }

    /// The headers of the last call.
    pub(super) fn heard(&self) -> HeaderMap {
        self.heard.lock().unwrap().clone()
    }

    /// Who the last client showed to be, by a certificate of this line.
    pub(super) fn shown(&self, line: &Line) -> Option<SpiffeId> {
        let shown = self.shown.lock().unwrap().clone()?;
        let shown = shown.verify(&line.bundle(), now()).unwrap();
        Some(shown.peer.id().clone())
    }
}

async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, calls: Calls) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, calls) = (acceptor.clone(), calls.clone());
        tokio::spawn(async move {
            // A client that refuses us says so on its own side.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            *calls.shown.lock().unwrap() = ShownChain::of_connection(stream.get_ref().1);
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let calls = calls.clone();
                *calls.heard.lock().unwrap() = request.headers().clone();
                let mut service = IstioCertificateServiceServer::new(calls);
                async move { Ok::<_, Infallible>(service.call(request).await.unwrap()) }
            });
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[derive(Clone)]
struct Calls {
    heard: Arc<Mutex<HeaderMap>>,
    shown: Arc<Mutex<Option<ShownChain>>>,
    manner: Manner,
}

#[tonic::async_trait]
impl IstioCertificateService for Calls {
    async fn create_certificate(
        &self,
        _request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        match self.manner.clone() {
            Manner::Answer(cert_chain) => {
                let mut response = Response::new(IstioCertificateResponse { cert_chain });
                let sequence = metadata::TRUST_BUNDLE_SEQUENCE;
                response.metadata_mut().insert(sequence, 7.into());
                Ok(response)
            }
            Manner::Refuse(refusal) => Err(refusal),
            Manner::Stall => std::future::pending().await,
        }
    }
}
