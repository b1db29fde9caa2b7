//! Two workloads and a proxy each, which most tests begin with.

use std::net::SocketAddr;
use std::time::Duration;

use bulkhead::mesh::{self, Mesh};
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_proxy::app::Proxy;
use tokio::time::timeout;

/// `web/front` calls `shop/cart` through both proxies.
pub(crate) struct Pair {
    pub(crate) mesh: Mesh,
    pub(crate) client: Proxy,
    pub(crate) server: Proxy,
}

impl Pair {
    /// The application at `app` behind a server's proxy of this mode.
    pub(crate) async fn start(app: SocketAddr, mode: MtlsMode) -> Self {
        Self::start_with(app, |server| server.mode = mode).await
    }

    /// The same, with the server's proxy set up by the test.
    pub(crate) async fn start_with(
        app: SocketAddr,
        set_up: impl FnOnce(&mut SidecarConfig),
    ) -> Self {
        let mesh = Mesh::start().await.unwrap();
        let mut config = mesh.workload("shop", "cart").unwrap();
        config.inbound = vec![mesh::inbound(app)];
        set_up(&mut config);
        let server = mesh.proxy(config).await.unwrap();
        let mut config = mesh.workload("web", "front").unwrap();
        let endpoints = [server.addresses.inbound[0]];
        config.outbound = vec![mesh::upstream(&mesh, "shop", "cart", &endpoints).unwrap()];
        let client = mesh.proxy(config).await.unwrap();
        Self {
            mesh,
            client,
            server,
        }
    }

    /// Where the client's application dials.
    pub(crate) fn dial(&self) -> SocketAddr {
        self.client.addresses.outbound[0]
    }

    /// Where the server's proxy listens for the world.
    pub(crate) fn server_port(&self) -> SocketAddr {
        self.server.addresses.inbound[0]
    }
}

/// The sum of the metrics that have this name and these labels.
pub(crate) fn metric(proxy: &Proxy, name: &str, labels: &[&str]) -> f64 {
    let text = proxy.monitoring.metrics();
    text.lines()
        .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Waits until that sum is `expected`: a client has its answer a moment before
/// the proxy has counted it. Fails, with all metrics, where it does not come.
pub(crate) async fn metric_becomes(proxy: &Proxy, name: &str, labels: &[&str], expected: f64) {
    let becomes = async {
        while metric(proxy, name, labels) != expected {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if timeout(Duration::from_secs(10), becomes).await.is_err() {
        panic!(
            "{name} {labels:?} did not become {expected}:\n{}",
            proxy.monitoring.metrics()
        );
    }
}
