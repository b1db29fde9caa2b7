//! A whole root rotation, as applications with go-spiffe live through it: whatever
//! they were told last, somebody accepts it at every instant.

use std::net::SocketAddr;
use std::time::Duration;

use bulkhead::mesh::{self, Mesh};
use bulkhead_ca::config::StoreLocation;
use bulkhead_ca::steer::{Wish, steer};
use bulkhead_core::policy::MtlsMode;
use bulkhead_pki::certificate::Certificate;
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::apps;
use tempfile::TempDir;

use crate::application::{Application, PATIENCE, Sidecar, id};
use crate::mutual_tls::{client, server};

/// Of certificates: sidecars say what they hold when they renew.
const LIFETIME: Duration = Duration::from_secs(60);
/// Programs on one machine hear of each other at once.
const PAUSE: Duration = Duration::from_secs(1);
/// Between the rounds of calls.
const ROUND: Duration = Duration::from_millis(100);
/// How long a step may take.
const STEP: Duration = Duration::from_secs(300);
/// More than the PEM of any bundle here, in bytes.
const MAX_BUNDLE: usize = 64 * 1024;

/// `front` and `cart`, each an application with go-spiffe beside a sidecar.
struct World {
    mesh: Mesh,
    directory: TempDir,
    client: Application,
    _server: Application,
    _sidecars: [Sidecar; 2],
    _app: apps::App,
    /// Where the application of `cart` listens, and where its sidecar does.
    servers: [SocketAddr; 2],
    /// Where the sidecar of `front` calls the application of `cart`.
    dial: SocketAddr,
}

impl World {
    async fn start() -> Self {
        let directory = TempDir::with_prefix("bulkhead-spiffe-").unwrap();
        let mesh = Mesh::start_with(directory.path(), |config| {
            config.lifetimes.default = LIFETIME;
            config.lifetimes.max = LIFETIME;
            config.rotation_pause = PAUSE;
        });
        let mesh = mesh.await.unwrap();
        let app = apps::echo_http().await.unwrap();
        let cart = Sidecar::start(&mesh, "cart", |config| {
            config.inbound = vec![mesh::inbound(app.address)];
            config.mode = MtlsMode::Strict;
        })
        .await;
        let (server, address) = server(&cart, &id("front")).await;
        let front = Sidecar::start(&mesh, "front", |config| {
            let upstream = mesh::upstream(&mesh, "shop", "cart", &[address]);
            config.outbound = vec![upstream.unwrap()];
        })
        .await;
        Self {
            client: client(&front, &id("cart")),
            servers: [address, cart.proxy.addresses.inbound[0]],
            dial: front.proxy.addresses.outbound[0],
            mesh,
            directory,
            _server: server,
            _sidecars: [cart, front],
            _app: app,
        }
    }

    /// What the CA gives out: the root that signs first.
    fn roots(&self) -> Vec<Certificate> {
        let roots = Certificate::all_from_pem(&self.mesh.roots().unwrap(), MAX_BUNDLE);
        roots.unwrap()
    }

    async fn order(&self, wish: Wish) {
        let store = StoreLocation::Directory(self.directory.path().join("ca"));
        let said = steer(&store, wish, Clock::system().now()).await;
        said.unwrap();
    }

    /// Everybody who may calls everybody else, over new connections and old ones.
    async fn all_calls_succeed(&mut self) {
        for address in self.servers {
            for call in ["new -", "kept"] {
                let call = format!("{call} https://{address}/");
                let answer = self.client.answers(&call).await;
                assert!(answer.starts_with("200 "), "{call}: {answer}");
            }
        }
        let answer = apps::get(self.dial, "/").await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body, id("front"));
    }

    /// Waits until the CA's roots are so, while everybody calls.
    async fn becomes(&mut self, what: &str, is_so: impl Fn(&[Certificate]) -> bool) {
        let calls = async {
            while !is_so(&self.roots()) {
                self.all_calls_succeed().await;
                tokio::time::sleep(ROUND).await;
            }
        };
        let waited = tokio::time::timeout(STEP, calls).await;
        waited.unwrap_or_else(|_| panic!("{what}"));
        self.all_calls_succeed().await;
    }

    /// Waits until the application trusts these roots and no others.
    async fn application_trusts(&mut self, roots: &[Certificate]) {
        let mut wanted: Vec<_> = roots
            .iter()
            .map(|root| root.fingerprint().to_string())
            .collect();
        wanted.sort();
        let asks = async {
            loop {
                let said = self.client.answers("roots").await;
                let mut said: Vec<_> = said.split(' ').map(ToOwned::to_owned).collect();
                said.sort();
                if said == wanted {
                    return;
                }
                tokio::time::sleep(ROUND).await;
            }
        };
        tokio::time::timeout(PATIENCE, asks).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_with_go_spiffe_stay_connected_through_a_whole_root_rotation() {
    let mut world = World::start().await;
    let first = world.roots().remove(0);
    world.application_trusts(std::slice::from_ref(&first)).await;
    world.all_calls_succeed().await;

    world.order(Wish::Rotate).await;
    world
        .becomes("a new root is given out", |roots| roots.len() == 2)
        .await;
    let both = world.roots();
    world.application_trusts(&both).await;
    let second = both.iter().find(|root| **root != first).unwrap();

    let signs = |roots: &[Certificate]| roots.first() == Some(second);
    world.becomes("the new root signs", signs).await;
    let is_alone = |roots: &[Certificate]| roots == [second.clone()];
    world.becomes("the old root is gone", is_alone).await;
    world.application_trusts(std::slice::from_ref(second)).await;
    world.all_calls_succeed().await;
}
