//! A CA on loopback, a token issuer, and clients.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_ca::app::{App, Dependencies};
use bulkhead_ca::authenticate::Pod;
use bulkhead_ca::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use bulkhead_ca::config::{Authentication, Config, Lifetimes, StoreLocation};
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
use bulkhead_runtime::readiness::Readiness;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
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
        always_listen();
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
        let authentication = Authentication::jwks_file(self.issuer.jwks_path(), ISSUER);
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
    issuer_with(place, clock, place.config().lifetimes, Metrics::default()).await
}

/// The same, with certificates that live as long as a test wants.
pub(crate) async fn issuer_with(
    place: &Place,
    clock: &Clock,
    lifetimes: Lifetimes,
    metrics: Metrics,
) -> Arc<RotatingIssuer> {
    let given = given(place, clock, lifetimes, metrics);
    Arc::new(RotatingIssuer::open(given).await.unwrap())
}

/// What such an issuer is given: it leads.
pub(crate) fn given(place: &Place, clock: &Clock, lifetimes: Lifetimes, metrics: Metrics) -> Given {
    Given {
        store: Box::new(Directory::open(place.store()).unwrap()),
        trust_domain: default_trust_domain(),
        lifetimes,
        clock: clock.clone(),
        metrics,
        upstream: None,
        settle: SETTLE,
        steering: Steering {
            holders: Arc::new(Reports::new(lifetimes.max, clock.clone())),
            orders: Arc::new(FileOrders::new(&place.store())),
            leads: watch::Sender::new(true).subscribe(),
        },
        ready: Readiness::default().condition("store_seen"),
    }
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
        Self::start_given(change, Dependencies::default()).await
    }

    pub(crate) async fn start_given(change: impl FnOnce(&mut Config), given: Dependencies) -> Self {
        let place = Place::new();
        let mut config = place.config();
        change(&mut config);
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

    /// A connection from an address on loopback, where the CA has room for one.
    pub(crate) async fn try_client(
        &self,
        from: Ipv4Addr,
    ) -> Result<Client, tonic::transport::Error> {
        let bundle = self.app.trust_bundle();
        let channel = try_channel(from, self.app.address(), bundle.roots()).await?;
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

/// A client of the CSR service. Clones share a connection.
#[derive(Clone)]
pub(crate) struct Client(IstioCertificateServiceClient<Channel>);

impl Client {
    pub(crate) async fn connect(address: SocketAddr, roots: &Roots) -> Self {
        Self(IstioCertificateServiceClient::new(
            channel(address, roots).await,
        ))
    }

    pub(crate) fn on(channel: Channel) -> Self {
        Self(IstioCertificateServiceClient::new(channel))
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
    let from = Ipv4Addr::LOCALHOST;
    try_channel(from, address, roots).await.unwrap()
}

async fn try_channel(
    from: Ipv4Addr,
    address: SocketAddr,
    roots: &Roots,
) -> Result<Channel, tonic::transport::Error> {
    let tls = serving::client_config(roots, ["h2"]).unwrap();
    channel_from(from, address, tls).await
}

/// A connection to the CA with a TLS configuration of one's own.
pub(crate) async fn channel_by(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    channel_from(Ipv4Addr::LOCALHOST, address, tls).await
}

async fn channel_from(
    from: Ipv4Addr,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let tls = TlsConnector::from(tls);
    let connect = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let stream = connect(from, address).await?;
            let name = SERVER_NAME.try_into().unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://ca.test");
    endpoint.connect_with_connector(connect).await
}

/// A TCP connection from an address on loopback.
pub(crate) async fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    socket.connect(to).await
}

/// A message as gRPC sends it: not compressed, and how long it is.
pub(crate) fn grpc(message: &impl prost::Message) -> Bytes {
    let length = u32::try_from(message.encoded_len()).unwrap();
    let mut bytes = [&[0], length.to_be_bytes().as_slice()].concat();
    message.encode(&mut bytes).unwrap();
    bytes.into()
}

/// What a metric shows, all its labels together that begin like this.
pub(crate) fn metric(ca: &Ca, name: &str) -> usize {
    let metrics = ca.monitoring.metrics();
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let is_it = rest.starts_with([' ', '{']);
        is_it.then(|| rest.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
    });
    values.sum()
}

/// Waits for something that takes a while to become so.
pub(crate) async fn until(is_so: impl Fn() -> bool) {
    let becomes = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), becomes).await;
    waited.expect("it becomes so");
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

/// Lets somebody listen to the log from the first line on. Where nobody does, a
/// line that is reached for the first time just as a test begins to capture may be
/// remembered as one that nobody wants, and that test would never see it.
fn always_listen() {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        let deaf = tracing_subscriber::registry();
        tracing::subscriber::set_global_default(deaf).unwrap();
    });
}

/// Everything that is logged on this thread while this exists, as JSON lines.
pub(crate) struct Logs {
    lines: Arc<std::sync::Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Logs {
    pub(crate) fn capture() -> Self {
        always_listen();
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
