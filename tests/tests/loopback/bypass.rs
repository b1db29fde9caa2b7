//! Standing aside, and coming back, with nothing lost on the way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bulkhead::mesh::Mesh;
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::sidecar::{SidecarConfig, default_trust_domain};
use bulkhead_proxy::app::{Dependencies, Proxy};
use bulkhead_tests::apps::{self, Client};
use bulkhead_tests::balancer::Balancer;
use bulkhead_tests::metrics;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::controlled::{Controlled, on, stands_for};
use crate::pair::{Pair, metric_becomes};

/// Asks a proxy on its admin port; gives what is in force then.
async fn order(proxy: &Proxy, order: &'static str) -> Value {
    let mut client = Client::connect(proxy.addresses.admin).await.unwrap();
    let answer = client.send("POST", "/bypass", Bytes::from(order)).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

/// Requests that must all be answered, over one connection and over new ones.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let tasks = [true, true, false, false].map(|keeps_connection| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let mut client = Client::connect(address).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                    done.fetch_add(1, Ordering::Relaxed);
                    if !keeps_connection {
                        client = Client::connect(address).await.unwrap();
                    }
                }
            })
        });
        Self {
            stop,
            done,
            tasks: tasks.into(),
        }
    }

    /// Waits until as many more have been answered.
    async fn more(&self, count: u64) {
        let enough = self.done.load(Ordering::Relaxed) + count;
        while self.done.load(Ordering::Relaxed) < enough {
            let failed = self.tasks.iter().any(|task| task.is_finished());
            assert!(!failed, "a request failed");
            tokio::task::yield_now().await;
        }
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// `web/front` calls `shop/cart`, both STRICT, at an address where the cluster
/// itself sends connections to the server too.
struct Strict {
    controlled: Controlled,
    server: Proxy,
    client: Proxy,
    _app: apps::App,
    _kube_proxy: Balancer,
}

impl Strict {
    async fn start() -> Self {
        let app = apps::echo_http().await.unwrap();
        let controlled = Controlled::start().await;
        controlled.mode("STRICT");
        let server = controlled.server("cart-0", "127.0.0.2", app.address).await;
        let kube_proxy = Balancer::start().await;
        kube_proxy.set([server.addresses.inbound[0]]);
        let endpoint = ("cart-0", server.addresses.inbound[0], true);
        controlled.service(kube_proxy.address(), &[endpoint]);
        let client = controlled.client(&[kube_proxy.address()]).await;
        Self {
            controlled,
            server,
            client,
            _app: app,
            _kube_proxy: kube_proxy,
        }
    }

    fn dial(&self) -> SocketAddr {
        self.client.addresses.redirected[0]
    }

    /// Bytes of new connections pass as they are.
    async fn passes_through(&self) {
        let through = "bulkhead_passthrough_connections_total";
        let before = metrics::sum(&self.client.monitoring, through, &[]);
        assert_eq!(apps::get(self.dial(), "/").await.unwrap().status, 200);
        let after = metrics::sum(&self.client.monitoring, through, &[]);
        assert!(after > before, "it was not looked at");
    }

    /// Policy is what it was, and nothing was refused until it was asked.
    async fn is_strict_again(&self) {
        for proxy in [&self.client, &self.server] {
            metric_becomes(proxy, "bulkhead_bypass", &["off"], 1.0).await;
            metric_becomes(proxy, "bulkhead_refusals_total", &[], 0.0).await;
        }
        let port = self.server.addresses.inbound[0];
        let refused = apps::get(port, "/").await.unwrap();
        assert_eq!(refused.reason(), Some("plaintext_refused"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_strict_on_both_sides_no_request_is_refused_on_the_way_there_and_back() {
    let mesh = Strict::start().await;
    let load = Load::start(mesh.dial());
    load.more(100).await;
    let plain = "bulkhead_plaintext_connections_total";
    metric_becomes(&mesh.server, plain, &[], 0.0).await;

    let accept = r#"{"phase": "accept", "by": "ada", "reason": "the CA is gone"}"#;
    let forward = r#"{"phase": "forward", "by": "ada", "reason": "the CA is gone"}"#;
    for phase in [accept, forward] {
        for proxy in [&mesh.server, &mesh.client] {
            assert_eq!(order(proxy, phase).await["by"], "ada");
        }
        load.more(100).await;
    }
    mesh.passes_through().await;
    for phase in [accept, r#"{"phase": "off"}"#] {
        for proxy in [&mesh.client, &mesh.server] {
            order(proxy, phase).await;
        }
        load.more(100).await;
    }
    load.finish().await;
    mesh.is_strict_again().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bypass_that_is_written_down_reaches_every_proxy_and_ends_with_its_deletion() {
    let mesh = Strict::start().await;
    let load = Load::start(mesh.dial());
    load.more(50).await;
    let bypass = json!({
        "apiVersion": "emergency.bulkhead.io/v1alpha1",
        "kind": "Bypass",
        "metadata": {"name": "everything", "namespace": "bulkhead-system"},
        "spec": {"reason": "the CA is gone", "by": "ada"},
    });
    mesh.controlled.apply("bypass", &bypass);
    for proxy in [&mesh.server, &mesh.client] {
        metric_becomes(proxy, "bulkhead_bypass", &["forward"], 1.0).await;
    }
    load.more(50).await;
    mesh.passes_through().await;
    mesh.controlled.delete("bypass");
    for proxy in [&mesh.server, &mesh.client] {
        metric_becomes(proxy, "bulkhead_bypass", &["off"], 1.0).await;
    }
    load.more(50).await;
    load.finish().await;
    mesh.is_strict_again().await;
}

/// A proxy in a place where there is no CA and no control, and never was.
fn alone(config: SidecarConfig) -> Proxy {
    Proxy::start(config, Dependencies::default()).unwrap()
}

fn nobody_there(directory: &TempDir) -> SidecarConfig {
    let mut config = SidecarConfig::new(default_trust_domain(), "shop".into(), "cart".into());
    let nowhere = "127.0.0.1:1";
    config.ca_address = nowhere.to_owned();
    config.control_address = nowhere.to_owned();
    config.pod_name = "cart-0".to_owned();
    config.mode = MtlsMode::Strict;
    config.status_address = "127.0.0.1:0".parse().unwrap();
    config.admin_address = "127.0.0.1:0".parse().unwrap();
    let order = directory.path().join("bypass.json");
    config.bypass_path = order.display().to_string();
    config
}

#[tokio::test]
async fn a_file_takes_a_proxy_out_of_the_path_that_never_had_a_certificate() {
    let app = apps::echo_http().await.unwrap();
    let directory = TempDir::with_prefix("bulkhead-bypass-").unwrap();
    let mut config = nobody_there(&directory);
    let order = config.bypass_path.clone();
    config.inbound = vec![on("127.0.0.2", app.address)];
    config.redirected_outbound = vec![stands_for(app.address)];
    let proxy = alone(config);
    let status = proxy.addresses.status;
    let inbound = proxy.addresses.inbound[0];
    assert_eq!(apps::get(status, "/ready").await.unwrap().status, 503);
    assert_eq!(apps::get(inbound, "/").await.unwrap().status, 403);

    let forward = r#"{"phase": "forward", "by": "ada", "reason": "no CA", "pods": ["cart-0"]}"#;
    std::fs::write(&order, forward).unwrap();
    metric_becomes(&proxy, "bulkhead_bypass", &["forward"], 1.0).await;
    assert_eq!(apps::get(status, "/ready").await.unwrap().status, 200);
    assert_eq!(apps::get(inbound, "/").await.unwrap().status, 200);
    let outbound = proxy.addresses.redirected[0];
    assert_eq!(apps::get(outbound, "/").await.unwrap().status, 200);
    let shown = apps::get(proxy.addresses.admin, "/bypass").await.unwrap();
    for text in ["\"forward\"", "\"ada\"", "\"no CA\"", "\"file\""] {
        assert!(shown.body.contains(text), "{text} is not in {}", shown.body);
    }
    // Bytes are not looked at, so what no proxy would take for HTTP passes.
    let odd = apps::talk(inbound, b"GET / HTTP/1.1\nhost: x\nconnection: close\n\n");
    let odd = String::from_utf8(odd.await.unwrap().unwrap()).unwrap();
    assert!(!odd.contains("bulkhead-reason"), "{odd}");

    std::fs::remove_file(&order).unwrap();
    metric_becomes(&proxy, "bulkhead_bypass", &["off"], 1.0).await;
    assert_eq!(apps::get(inbound, "/").await.unwrap().status, 403);
    assert_eq!(apps::get(status, "/ready").await.unwrap().status, 503);
}

#[tokio::test]
async fn an_upstream_of_the_settings_is_spoken_to_in_plaintext() {
    let app = apps::echo_http().await.unwrap();
    let directory = TempDir::with_prefix("bulkhead-bypass-").unwrap();
    let mesh = Mesh::start().await.unwrap();
    let mut config = nobody_there(&directory);
    let endpoints = [app.address];
    let upstream = bulkhead::mesh::upstream(&mesh, "shop", "cart", &endpoints).unwrap();
    config.inbound = Vec::new();
    config.outbound = vec![upstream];
    let proxy = alone(config);
    let dial = proxy.addresses.outbound[0];
    let refused = apps::get(dial, "/").await.unwrap();
    assert_eq!(refused.reason(), Some("no_certificate"));
    order(&proxy, r#"{"phase": "forward"}"#).await;
    assert_eq!(apps::get(dial, "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn who_is_in_the_mesh_still_is_while_a_server_stands_aside() {
    let app = apps::echo_http().await.unwrap();
    for mode in [MtlsMode::Strict, MtlsMode::Disable] {
        let pair = Pair::start(app.address, mode).await;
        for phase in [r#"{"phase": "accept"}"#, r#"{"phase": "forward"}"#] {
            order(&pair.server, phase).await;
            for address in [pair.dial(), pair.server_port()] {
                let answer = apps::get(address, "/").await.unwrap();
                assert_eq!(answer.status, 200, "{mode} {phase} {answer:?}");
            }
        }
        let mutual = ["connection_security_policy=\"mutual_tls\""];
        metric_becomes(&pair.server, "istio_requests_total", &mutual, 2.0).await;
    }
}

#[tokio::test]
async fn an_order_that_cannot_be_followed_changes_nothing() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    for body in [
        "forward",
        r#"{"phase": "on"}"#,
        r#"{"phase": "off", "until": "soon"}"#,
    ] {
        let mut client = Client::connect(pair.server.addresses.admin).await.unwrap();
        let answer = client
            .send("POST", "/bypass", Bytes::from(body))
            .await
            .unwrap();
        assert_eq!(answer.status, 400, "{body}");
    }
    metric_becomes(&pair.server, "bulkhead_bypass", &["off"], 1.0).await;
}
