//! Roots, intermediates and certificates that are replaced while traffic flows.

mod authority;
mod ordered;
mod reporting;
mod soak;
mod traffic;
mod world;

use std::sync::Arc;
use std::time::Duration;

use bulkhead::mesh;
use bulkhead_control::app::{App as Control, Dependencies};
use bulkhead_control::config::{Config, Source};
use bulkhead_core::discovery::ResourceKind;
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::MtlsMode;
use bulkhead_proxy::app::Proxy;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_tests::apps;
use bulkhead_tests::metrics;
use bulkhead_tests::subscriber::{Subscriber, certificate};
use bulkhead_workload::credentials::{Credentials, Latest};
use tempfile::TempDir;
use tokio::time::timeout;

use authority::RotatingAuthority;
use traffic::Traffic;

/// How long anything may take that is to happen soon: a file is looked at every
/// few seconds.
const SOON: Duration = Duration::from_secs(180);

/// `web/front` calls `shop/cart` through both proxies.
struct Pair {
    client: Proxy,
    server: Proxy,
    traffic: Traffic,
}

impl Pair {
    async fn start(authority: &RotatingAuthority) -> Self {
        let app = apps::echo_http().await.unwrap();
        let mut config = authority.workload("shop", "cart");
        config.mode = MtlsMode::Strict;
        config.inbound = vec![mesh::inbound(app.address)];
        let server = proxy(config).await;
        let mut config = authority.workload("web", "front");
        let endpoints = [server.addresses.inbound[0]];
        config.outbound = vec![authority.upstream("shop", "cart", &endpoints)];
        let client = proxy(config).await;
        let traffic = Traffic::start(client.addresses.outbound[0], app);
        Self {
            client,
            server,
            traffic,
        }
    }

    fn proxies(&self) -> [&Proxy; 2] {
        [&self.server, &self.client]
    }

    /// Waits until both proxies hold what `is_so` looks for.
    async fn both(&self, what: &str, is_so: impl Fn(&Credentials) -> bool) {
        for proxy in self.proxies() {
            becomes(&mut proxy.latest.clone(), what, &is_so).await;
        }
    }

    /// Has both proxies renew.
    async fn renew(&self) {
        for proxy in self.proxies() {
            renew(proxy).await;
        }
    }

    /// How many renewals and bundles did not go well.
    fn failures(&self) -> f64 {
        self.proxies().map(renewal_failures).iter().sum()
    }
}

/// How many renewals and bundles of a proxy did not go well.
fn renewal_failures(proxy: &Proxy) -> f64 {
    let count = |name, labels: &[&str]| metrics::sum(&proxy.monitoring, name, labels);
    let renewals = "bulkhead_certificate_renewals_total";
    let bundles = "bulkhead_trust_bundle_changes_total";
    count(renewals, &[]) - count(renewals, &["outcome=\"success\""]) + count(bundles, &[])
        - count(bundles, &["outcome=\"adopted\""])
}

async fn proxy(config: bulkhead_core::sidecar::SidecarConfig) -> Proxy {
    let proxy = Proxy::start(config, Default::default()).unwrap();
    let first = timeout(SOON, proxy.latest.clone().first()).await;
    first.unwrap().unwrap();
    proxy
}

async fn becomes(latest: &mut Latest, what: &str, is_so: impl Fn(&Credentials) -> bool) {
    let wait = async {
        let mut current = latest.get_and_mark().unwrap();
        while !is_so(&current) {
            current = latest.changed().await.unwrap();
        }
    };
    assert!(timeout(SOON, wait).await.is_ok(), "{what}");
}

async fn renew(proxy: &Proxy) {
    let mut latest = proxy.latest.clone();
    let serial = latest.get().unwrap().identity().serial();
    proxy.renewals.renew();
    let is_another = |next: &Credentials| next.identity().serial() != serial;
    becomes(&mut latest, "a proxy renews", is_another).await;
}

fn roots(credentials: &Credentials) -> usize {
    credentials.identity().bundle().roots().certificates().len()
}

/// Control, and somebody who is subscribed to it.
struct Watched {
    control: Control,
    config: Config,
    monitoring: Monitoring,
    subscriber: Subscriber,
    _manifests: TempDir,
}

impl Watched {
    async fn start(authority: &RotatingAuthority) -> Self {
        let manifests = TempDir::with_prefix("bulkhead-manifests-").unwrap();
        let mut config = Config::new(Source::Directory(manifests.path().to_owned()));
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.monitoring_listen = config.listen;
        config.ca_address = authority.address().to_string();
        config.ca_roots_path = authority.roots_path();
        config.token_path = authority.token_path();
        let monitoring = Monitoring::default();
        let given = Dependencies {
            monitoring: monitoring.clone(),
            ..Dependencies::default()
        };
        let control = Control::start(config.clone(), given).await.unwrap();
        config.listen = control.address();
        let is_ready = || monitoring.readiness.missing().is_empty();
        until("control is ready", is_ready).await;
        let subscriber = subscribe(authority, &config).await;
        Self {
            control,
            config,
            monitoring,
            subscriber,
            _manifests: manifests,
        }
    }

    /// Whether the stream of the beginning still answers.
    async fn answers(&mut self, address: &str) {
        let asked = self.subscriber.ask(ResourceKind::Destination, address);
        asked.await.unwrap();
        let heard = timeout(SOON, self.subscriber.hear()).await.unwrap();
        assert_eq!(heard.unwrap().kind, ResourceKind::Destination);
    }

    /// Waits until control holds the bundle that the authority gives out.
    async fn is_up_to_date(&self, authority: &RotatingAuthority) {
        let name = "bulkhead_trust_bundle_sequence";
        let expected = authority.sequence() as f64;
        let is_so = || metrics::sum(&self.monitoring, name, &[]) == expected;
        until("control holds the bundle", is_so).await;
    }
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let wait = async {
        while !is_so() {
            looks.tick().await;
        }
    };
    assert!(timeout(SOON, wait).await.is_ok(), "{what}");
}

/// A proxy of `shop/cart-0`, with a certificate of now.
async fn subscribe(authority: &RotatingAuthority, config: &Config) -> Subscriber {
    let credentials: Arc<Credentials> = certificate(authority.settings("shop", "cart"))
        .await
        .unwrap();
    let control: SpiffeId = config.spiffe_id().unwrap();
    Subscriber::connect(config.listen, &control, &credentials, "shop/cart-0")
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_replaced_by_files_alone_with_no_request_and_no_stream_lost() {
    let authority = RotatingAuthority::start().await;
    let pair = Pair::start(&authority).await;
    let mut watched = Watched::start(&authority).await;
    watched.answers("127.9.9.1:1").await;

    let old = authority.signing_root();
    let new = authority.publish();
    pair.both("the new root is held", |held| roots(held) == 2)
        .await;
    pair.both("nothing else changed", |held| {
        *held.identity().signing_root() == old
    })
    .await;
    watched.is_up_to_date(&authority).await;
    watched.answers("127.9.9.2:1").await;
    pair.traffic.settles().await;

    // The CA's own certificate is of the new root from now on, too.
    authority.activate();
    pair.renew().await;
    pair.both("the new root signs", |held| {
        *held.identity().signing_root() == new
    })
    .await;
    watched.is_up_to_date(&authority).await;
    let mut newcomer = subscribe(&authority, &watched.config).await;
    let address = "127.9.9.3:1";
    newcomer
        .ask(ResourceKind::Destination, address)
        .await
        .unwrap();
    assert!(newcomer.hear().await.is_ok(), "control knows both roots");
    watched.answers("127.9.9.4:1").await;

    let before = authority.issued();
    watched.control.renewals().renew();
    until("control renews", || authority.issued() > before).await;
    pair.traffic.settles().await;
    authority.retire();
    pair.both("the old root is gone", |held| roots(held) == 1)
        .await;
    watched.is_up_to_date(&authority).await;
    watched.answers("127.9.9.5:1").await;
    subscribe(&authority, &watched.config).await;
    pair.traffic.settles().await;
    assert_eq!(pair.failures(), 0.0);
    pair.traffic.had_no_failure();
}
