//! A CA outside Kubernetes, whose rotations go on by themselves once they were
//! ordered; two proxies with its certificates, and what goes through them.

use std::sync::Arc;
use std::time::Duration;

use bulkhead::mesh::{self, Mesh};
use bulkhead_ca::config::{Config, StoreLocation};
use bulkhead_ca::steer::{Wish, steer};
use bulkhead_core::policy::MtlsMode;
use bulkhead_pki::certificate::Certificate;
use bulkhead_proxy::app::Proxy;
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::apps::{self, App};
use bulkhead_workload::credentials::Credentials;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::traffic::Traffic;
use super::{becomes, renewal_failures, roots, until};

/// Of certificates: what is short is how long proxies take to say what they hold,
/// which is up to a tenth of this and of the two minutes that certificates are
/// dated back by.
const LIFETIME: Duration = Duration::from_secs(60);

/// More than the PEM of any bundle here, in bytes.
const MAX_BUNDLE: usize = 64 * 1024;

const GREETING: &[u8] = b"220 ready\r\n";

pub(super) struct World {
    mesh: Mesh,
    directory: TempDir,
    client: Proxy,
    server: Proxy,
    pub(super) traffic: Traffic,
    kept: Kept,
}

impl World {
    /// `web/front` calls `shop/cart`, which takes nothing in plain text.
    pub(super) async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let directory = TempDir::with_prefix("bulkhead-ordered-").unwrap();
        let mesh = Mesh::start_with(directory.path(), |config| {
            config.lifetimes.default = LIFETIME;
            config.lifetimes.max = LIFETIME;
            change(config);
        });
        let mesh = mesh.await.unwrap();
        let http = apps::echo_http().await.unwrap();
        let tcp = apps::server_first(GREETING).await.unwrap();

        let mut config = mesh.workload("shop", "cart").unwrap();
        config.mode = MtlsMode::Strict;
        config.inbound = [&http, &tcp].map(|app| mesh::inbound(app.address)).into();
        let server = mesh.proxy(config).await.unwrap();
        let mut config = mesh.workload("web", "front").unwrap();
        let upstream = |address| mesh::upstream(&mesh, "shop", "cart", &[address]).unwrap();
        let inbound = server.addresses.inbound.iter().copied();
        config.outbound = inbound.map(upstream).collect();
        let client = mesh.proxy(config).await.unwrap();

        let outbound = &client.addresses.outbound;
        let traffic = Traffic::start(outbound[0], http);
        let kept = Kept::open(outbound[1], tcp).await;
        Self {
            mesh,
            directory,
            client,
            server,
            traffic,
            kept,
        }
    }

    /// What the CA gives out: active first.
    pub(super) fn roots(&self) -> Vec<Certificate> {
        let roots = Certificate::all_from_pem(&self.mesh.roots().unwrap(), MAX_BUNDLE);
        roots.unwrap()
    }

    pub(super) fn proxies(&self) -> [&Proxy; 2] {
        [&self.server, &self.client]
    }

    pub(super) fn holdings(&self) -> [Arc<Credentials>; 2] {
        self.proxies().map(|proxy| proxy.latest.get().unwrap())
    }

    /// `bulkhead-ca root …`
    pub(super) async fn order(&self, wish: Wish) {
        let store = StoreLocation::Directory(self.directory.path().join("ca"));
        let said = steer(&store, wish, Clock::system().now()).await;
        said.unwrap();
    }

    pub(super) async fn is_published(&self) {
        until("the new root is given out", || self.roots().len() == 2).await;
    }

    /// Waits until another root signs, and looks whether it may.
    pub(super) async fn is_active(&mut self, root: &Certificate) {
        let signs = || self.roots().first() == Some(root);
        until("the root signs", signs).await;
        for held in self.holdings() {
            let bundle = held.identity().bundle();
            let holds = bundle.roots().certificates().contains(root);
            assert!(holds, "a root signs that a proxy does not hold");
        }
        self.goes_on().await;
    }

    /// Waits until a root is alone, and looks whether it may be.
    pub(super) async fn is_alone(&mut self, root: &Certificate) {
        let is_alone = || self.roots() == std::slice::from_ref(root);
        until("the other root is gone", is_alone).await;
        for proxy in self.proxies() {
            let held = proxy.latest.get().unwrap();
            assert_eq!(held.identity().signing_root(), root, "it was needed");
            let is_so = |held: &Credentials| roots(held) == 1;
            becomes(&mut proxy.latest.clone(), "one root is held", is_so).await;
        }
        self.goes_on().await;
    }

    /// Waits until every caller was answered anew, those on old connections too.
    pub(super) async fn goes_on(&mut self) {
        self.traffic.settles().await;
        self.kept.says("still here").await;
    }

    /// Looks whether anything went wrong since the beginning.
    pub(super) fn had_no_failure(&self) {
        self.traffic.had_no_failure();
        let failures: f64 = self.proxies().map(renewal_failures).iter().sum();
        assert_eq!(failures, 0.0, "certificates or bundles were refused");
    }
}

/// A connection that is made once.
struct Kept {
    stream: TcpStream,
    _app: App,
}

impl Kept {
    async fn open(address: std::net::SocketAddr, app: App) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut kept = Self { stream, _app: app };
        kept.hears(GREETING).await;
        kept
    }

    async fn says(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
        self.hears(text.as_bytes()).await;
    }

    async fn hears(&mut self, expected: &[u8]) {
        let mut heard = vec![0; expected.len()];
        let read = timeout(super::SOON, self.stream.read_exact(&mut heard)).await;
        read.expect("an answer").unwrap();
        assert_eq!(heard, expected);
    }
}
