//! A CA on loopback, a token issuer, and clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_ca::app::{App, Dependencies};
use bulkhead_ca::authenticate::Pod;
use bulkhead_ca::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use bulkhead_ca::config::{AuthenticationSource, Config, StoreLocation};
use bulkhead_ca::issuer::rotating::{Given, RotatingIssuer, Steering};
use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::rotation::SETTLE;
use bulkhead_ca::rotation::orders::FileOrders;
use bulkhead_ca::rotation::reports::Reports;
use bulkhead_ca::store::directory::Directory;
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::{self, ServerName};
use bulkhead_proto::ca::{CertificateAnswer, CertificateRequest, IstioCertificateServiceClient};
use bulkhead_proto::generated::IstioCertificateRequest;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::monitoring::Monitoring;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

pub(crate) const ISSUER: &str = "https://issuer.test";
pub(crate) const SERVER_NAME: &str = "ca.test";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// The CA's directories, which outlive any one CA on them.
pub(crate) struct Place {
    directory: TempDir,
    pub(crate) issuer: LocalIssuer,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuer = LocalIssuer::open(&directory.path().join("issuer"), ISSUER).unwrap();
        Self { directory, issuer }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("ca")
    }

    /// The token issuer's private key, for tokens that no honest issuer signs.
    pub(crate) fn issuer_key(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("issuer/issuer.key")).unwrap()
    }

    pub(crate) fn config(&self) -> Config {
        let loopback = "127.0.0.1:0".parse().unwrap();
        let authentication = AuthenticationSource::Jwks {
            path: self.issuer.jwks_path().to_owned(),
            issuer: ISSUER.to_owned(),
        };
        Config {
            listen: loopback,
            monitoring_listen: loopback,
            server_names: vec![ServerName::parse(SERVER_NAME).unwrap()],
            ..Config::new(StoreLocation::Directory(self.store()), authentication)
        }
    }
}

/// An issuer on the place's store, by a clock that a test has in its hands.
pub(crate) async fn issuer(place: &Place, clock: &Clock) -> Arc<RotatingIssuer> {
    let lifetimes = place.config().lifetimes;
    let given = Given {
        store: Box::new(Directory::open(place.store()).unwrap()),
        trust_domain: default_trust_domain(),
        lifetimes,
        clock: clock.clone(),
        metrics: Metrics::default(),
        upstream: None,
        settle: SETTLE,
        steering: Steering {
            holders: Arc::new(Reports::new(lifetimes.max, clock.clone())),
            orders: Arc::new(FileOrders::new(&place.store())),
            leads: watch::Sender::new(true).subscribe(),
        },
    };
    Arc::new(RotatingIssuer::open(given).await.unwrap())
}

/// A running CA with its place.
pub(crate) struct Ca {
    pub(crate) app: App,
    pub(crate) monitoring: Monitoring,
    pub(crate) place: Place,
}

impl Ca {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let place = Place::new();
        let mut config = place.config();
        change(&mut config);
        let given = Dependencies::default();
        let monitoring = given.monitoring.clone();
        Self {
            app: App::start(config, given).await.unwrap(),
            monitoring,
            place,
        }
    }

    pub(crate) fn token(&self, request: &TokenRequest) -> String {
        self.place.issuer.mint(request, now()).unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.app.address(), self.app.trust_bundle().roots()).await
    }

    /// A connection, where the CA has room for one.
    pub(crate) async fn try_client(&self) -> Result<Client, tonic::transport::Error> {
        let bundle = self.app.trust_bundle();
        let channel = try_channel(self.app.address(), bundle.roots()).await?;
        Ok(Client(IstioCertificateServiceClient::new(channel)))
    }

    /// One call on a connection of its own.
    pub(crate) async fn call(
        &self,
        token: Option<&str>,
        request: CertificateRequest,
    ) -> Result<CertificateAnswer, Status> {
        self.client().await.call(token, request).await
    }
}

/// A client of the CSR service.
pub(crate) struct Client(IstioCertificateServiceClient<Channel>);

impl Client {
    pub(crate) async fn connect(address: SocketAddr, roots: &Roots) -> Self {
        Self(IstioCertificateServiceClient::new(
            channel(address, roots).await,
        ))
    }

    pub(crate) async fn call(
        &mut self,
        token: Option<&str>,
        request: CertificateRequest,
    ) -> Result<CertificateAnswer, Status> {
        let mut request = Request::new(IstioCertificateRequest::from(request));
        if let Some(token) = token {
            let header = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", header);
        }
        let response = self.0.create_certificate(request).await?;
        Ok(CertificateAnswer::try_from(response.into_inner()).unwrap())
    }
}

/// A connection to the CA.
pub(crate) async fn channel(address: SocketAddr, roots: &Roots) -> Channel {
    try_channel(address, roots).await.unwrap()
}

async fn try_channel(
    address: SocketAddr,
    roots: &Roots,
) -> Result<Channel, tonic::transport::Error> {
    let tls = TlsConnector::from(serving::client_config(roots, ["h2"]).unwrap());
    let connect = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = SERVER_NAME.try_into().unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://ca.test");
    endpoint.connect_with_connector(connect).await
}

pub(crate) fn now() -> SystemTime {
    let seconds = Clock::system().now().duration_since(UNIX_EPOCH).unwrap();
    UNIX_EPOCH + Duration::from_secs(seconds.as_secs())
}

pub(crate) fn cart() -> SpiffeId {
    SpiffeId::workload(&default_trust_domain(), "shop", "cart").unwrap()
}

/// A token for `shop/cart`, as a pod would have it.
pub(crate) fn token_for_cart() -> TokenRequest {
    TokenRequest {
        namespace: "shop".into(),
        service_account: "cart".into(),
        pod: Some(Pod {
            name: "cart-0".into(),
            uid: "0f4b".into(),
        }),
        audience: "bulkhead-ca".into(),
        lifetime: HOUR,
    }
}

/// A request for `id` with a key of its own.
pub(crate) fn request(id: Option<&SpiffeId>) -> (PrivateKey, CertificateRequest) {
    let key = PrivateKey::generate().unwrap();
    let csr = csr::create(&key, id).unwrap();
    (key, wanting(csr))
}

/// A request with this CSR and no further wish.
pub(crate) fn wanting(csr: impl Into<String>) -> CertificateRequest {
    CertificateRequest {
        csr: csr.into(),
        lifetime: None,
        on_behalf_of: None,
    }
}

/// Everything that is logged on this thread while this exists, as JSON lines.
pub(crate) struct Logs {
    lines: Arc<std::sync::Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Logs {
    pub(crate) fn capture() -> Self {
        let lines = Arc::<std::sync::Mutex<Vec<u8>>>::default();
        let writer = Arc::clone(&lines);
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || Writer(Arc::clone(&writer)))
            .finish();
        Self {
            lines,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.lines.lock().unwrap().clone()).unwrap()
    }

    /// The audit records.
    pub(crate) fn records(&self) -> Vec<serde_json::Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|line: &serde_json::Value| line["target"] == bulkhead_ca::audit::TARGET)
            .collect()
    }
}

struct Writer(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
