//! A CA whose root and intermediate a test replaces, a step at a time and as
//! often as it likes. It speaks what every CA speaks, believes every name in a
//! request, and keeps its bundle in the files that workloads look at.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_core::sidecar::{OutboundListener, SidecarConfig, default_trust_domain};
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::document::TrustBundleDocument;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::csr::ParsedCsr;
use bulkhead_pki::serving::ServerName;
use bulkhead_proto::ca::{
    CertificateAnswer, IstioCertificateService, IstioCertificateServiceServer, metadata,
};
use bulkhead_proto::generated::{IstioCertificateRequest, IstioCertificateResponse};
use bulkhead_runtime::clock::Clock;
use bulkhead_workload::Settings;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Of certificates: nothing is due by itself while a test lasts.
const LIFETIME: Duration = Duration::from_secs(3600);

pub(super) struct RotatingAuthority {
    directory: TempDir,
    address: SocketAddr,
    shared: Shared,
    task: AbortHandle,
}

/// What signs, and what is given out.
#[derive(Clone)]
struct Shared {
    lines: Arc<Mutex<Lines>>,
    issued: Arc<AtomicU64>,
}

struct Lines {
    root: Authority,
    intermediate: Authority,
    /// The one that is published and does not sign yet.
    next: Option<Authority>,
    /// Active first.
    roots: Vec<Certificate>,
    sequence: u64,
    serving: Arc<ServerConfig>,
}

impl Drop for RotatingAuthority {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RotatingAuthority {
    pub(super) async fn start() -> Self {
        let directory = TempDir::with_prefix("bulkhead-rotation-").unwrap();
        std::fs::write(directory.path().join("token"), "anybody").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let root = new_root();
        let intermediate = root.new_intermediate(50 * DAY, now()).unwrap();
        let lines = Lines {
            serving: serving(&intermediate),
            roots: vec![root.certificate().clone()],
            next: None,
            // The time at which it is made, as a CA counts.
            sequence: now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_secs(),
            root,
            intermediate,
        };
        let shared = Shared {
            lines: Arc::new(Mutex::new(lines)),
            issued: Arc::default(),
        };
        let authority = Self {
            directory,
            address,
            task: tokio::spawn(serve(listener, shared.clone())).abort_handle(),
            shared,
        };
        authority.change(|_| {});
        authority
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn roots_path(&self) -> String {
        self.path("roots.pem")
    }

    pub(super) fn token_path(&self) -> String {
        self.path("token")
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// The settings of a workload's proxy.
    pub(super) fn workload(&self, namespace: &str, service_account: &str) -> SidecarConfig {
        let mut config = SidecarConfig::new(
            default_trust_domain(),
            namespace.to_owned(),
            service_account.to_owned(),
        );
        config.ca_address = self.address.to_string();
        config.ca_roots_path = self.roots_path();
        config.token_path = self.token_path();
        config.status_address = SocketAddr::from(([127, 0, 0, 1], 0));
        config.admin_address = config.status_address;
        config.inbound = Vec::new();
        config.control_address = "none".to_owned();
        config
    }

    /// What a workload is told of the CA.
    pub(super) fn settings(&self, namespace: &str, service_account: &str) -> Settings {
        let config = self.workload(namespace, service_account);
        let id = config.spiffe_id().unwrap();
        Settings::of_sidecar(&config, id)
    }

    pub(super) fn upstream(
        &self,
        namespace: &str,
        service_account: &str,
        endpoints: &[SocketAddr],
    ) -> OutboundListener {
        OutboundListener {
            name: format!("{service_account}.{namespace}"),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            addresses: endpoints.to_vec(),
            identity: SpiffeId::workload(&trust_domain(), namespace, service_account).unwrap(),
            protocol: bulkhead_core::protocol::Protocol::Auto,
        }
    }

    /// How many certificates it has issued.
    pub(super) fn issued(&self) -> u64 {
        self.shared.issued.load(Ordering::SeqCst)
    }

    pub(super) fn sequence(&self) -> u64 {
        self.shared.lines.lock().unwrap().sequence
    }

    pub(super) fn signing_root(&self) -> Certificate {
        let lines = self.shared.lines.lock().unwrap();
        lines.root.certificate().clone()
    }

    /// Gives out a new root, which does not sign yet.
    pub(super) fn publish(&self) -> Certificate {
        let root = new_root();
        let certificate = root.certificate().clone();
        self.change(|lines| {
            lines.roots.push(certificate.clone());
            lines.next = Some(root);
            lines.sequence += 1;
        });
        certificate
    }

    /// Signs by the root that was given out, its own certificate included.
    pub(super) fn activate(&self) {
        self.change(|lines| {
            lines.root = lines.next.take().expect("a root is published first");
            lines.intermediate = lines.root.new_intermediate(50 * DAY, now()).unwrap();
            lines.roots.reverse();
            lines.sequence += 1;
        });
    }

    /// Takes the old root away.
    pub(super) fn retire(&self) {
        self.change(|lines| {
            lines.roots.truncate(1);
            lines.sequence += 1;
        });
    }

    /// Changes what signs, and writes the files as a careful program does.
    fn change(&self, change: impl FnOnce(&mut Lines)) {
        let mut lines = self.shared.lines.lock().unwrap();
        change(&mut lines);
        lines.serving = serving(&lines.intermediate);
        let document = TrustBundleDocument {
            x509_authorities: lines.roots.clone(),
            jwt_authorities: Vec::new(),
            sequence: lines.sequence,
            refresh_hint: None,
        };
        for (name, text) in [
            ("roots.pem", lines.roots_pem()),
            ("bundle.json", document.to_json().unwrap()),
        ] {
            let unfinished = self.path(&format!(".{name}"));
            std::fs::write(&unfinished, text).unwrap();
            std::fs::rename(unfinished, self.path(name)).unwrap();
        }
    }
}

impl Lines {
    fn roots_pem(&self) -> String {
        self.roots.iter().map(Certificate::to_pem).collect()
    }
}

fn now() -> SystemTime {
    Clock::system().now()
}

fn trust_domain() -> TrustDomain {
    default_trust_domain()
}

fn new_root() -> Authority {
    Authority::new_root(&trust_domain(), 100 * DAY, now()).unwrap()
}

fn serving(intermediate: &Authority) -> Arc<ServerConfig> {
    let names = [ServerName::parse("127.0.0.1").unwrap()];
    let certificate = intermediate.issue_serving(&names, DAY, now()).unwrap();
    certificate.server_config(["h2"]).unwrap()
}

async fn serve(listener: TcpListener, shared: Shared) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(answer(stream, shared.clone()));
    }
}

async fn answer(stream: TcpStream, shared: Shared) {
    let serving = Arc::clone(&shared.lines.lock().unwrap().serving);
    // A client that is refused, or refuses us, says so on its own side.
    let Ok(stream) = TlsAcceptor::from(serving).accept(stream).await else {
        return;
    };
    let service = service_fn(move |request: http::Request<Incoming>| {
        let mut service = IstioCertificateServiceServer::new(shared.clone());
        async move { Ok::<_, Infallible>(service.call(request).await.unwrap()) }
    });
    let _ = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

#[tonic::async_trait]
impl IstioCertificateService for Shared {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let csr = ParsedCsr::from_pem(&request.into_inner().csr).unwrap();
        let id = SpiffeId::parse(&csr.uris()[0]).unwrap();
        let lines = self.lines.lock().unwrap();
        let issued = lines
            .intermediate
            .issue_svid(&id, csr.public_key(), LIFETIME, now());
        let answer = CertificateAnswer {
            chain: vec![issued.unwrap().to_pem()],
            roots: lines.roots_pem(),
        };
        let mut response = Response::new(answer.into());
        let sequence = lines.sequence.into();
        let name = metadata::TRUST_BUNDLE_SEQUENCE;
        response.metadata_mut().insert(name, sequence);
        self.issued.fetch_add(1, Ordering::SeqCst);
        Ok(response)
    }
}
