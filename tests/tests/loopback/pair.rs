//! Two workloads and a proxy each, which most tests begin with.

use std::net::SocketAddr;

use bulkhead::mesh::{self, Mesh};
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_proxy::app::Proxy;
use bulkhead_tests::metrics;
use futures::FutureExt as _;

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
        for proxy in [&server, &client] {
            assert_eq!(proxy.task_ended().now_or_never(), None);
        }
        Self {
            mesh,
            client,
            server,
        }
    }

    /// Another client, whose proxy was told what the server's port speaks.
    pub(crate) async fn client_of(&self, protocol: Protocol) -> Proxy {
        let mut config = self.mesh.workload("web", "told").unwrap();
        let endpoints = [self.server_port()];
        let mut upstream = mesh::upstream(&self.mesh, "shop", "cart", &endpoints).unwrap();
        upstream.protocol = protocol;
        config.outbound = vec![upstream];
        self.mesh.proxy(config).await.unwrap()
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

/// Waits until the metrics that have this name and these labels sum up to
/// `expected`.
pub(crate) async fn metric_becomes(proxy: &Proxy, name: &str, labels: &[&str], expected: f64) {
    metrics::become_sum(&proxy.monitoring, name, labels, expected).await;
}
