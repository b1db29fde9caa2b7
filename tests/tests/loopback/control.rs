//! Control, told by a directory of manifests, and proxies that ask it over mTLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bulkhead::mesh::Mesh;
use bulkhead_control::app::{App, Dependencies, Limits};
use bulkhead_control::config::{Config, Source};
use bulkhead_core::discovery::{BypassPhase, Resource, ResourceKind, Route};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::MtlsMode;
use bulkhead_proto::xds::{MAX_NAMES, Reply, Request};
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_tests::metrics::become_sum;
use bulkhead_tests::subscriber::{Subscriber, certificate};
use bulkhead_workload::Settings;
use bulkhead_workload::credentials::Credentials;
use futures::FutureExt as _;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::Code;

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: cart-0, namespace: shop, labels: {app: cart, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: cart, containers: [{name: bulkhead-proxy}, {name: app}]}
status: {phase: Running, podIP: 127.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: front-0, namespace: shop, labels: {app: front}}
spec: {serviceAccountName: front, containers: [{name: bulkhead-proxy}, {name: app}]}
status: {phase: Running, podIP: 127.1.0.2}
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 127.2.0.1, ports: [{name: http, port: 80}]}
";

const CART: &str = "shop/cart:80";

fn slice(addresses: &[&str]) -> String {
    let endpoints = addresses.iter().map(|address| {
        format!("- {{addresses: ['{address}'], targetRef: {{kind: Pod, name: cart-0}}}}\n")
    });
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: cart-1, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n{}",
        endpoints.collect::<String>()
    )
}

fn bypass(spec: &str) -> String {
    format!(
        "apiVersion: emergency.bulkhead.io/v1alpha1\nkind: Bypass\n\
         metadata: {{name: incident, namespace: bulkhead-system}}\nspec: {{{spec}}}\n"
    )
}

/// A CA, and control beside it.
struct World {
    mesh: Mesh,
    control: Option<App>,
    config: Config,
    monitoring: Monitoring,
    manifests: TempDir,
    limits: Limits,
}

impl World {
    async fn start() -> Self {
        Self::limited(Limits::default()).await
    }

    async fn limited(limits: Limits) -> Self {
        let mesh = Mesh::start().await.unwrap();
        let manifests = TempDir::with_prefix("bulkhead-manifests-").unwrap();
        let mut config = Config::new(Source::Directory(manifests.path().to_owned()));
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.monitoring_listen = config.listen;
        config.ca_address = mesh.ca_address().to_string();
        config.ca_roots_path = mesh.roots_path().display().to_string();
        config.token_path = token(&mesh, &manifests, "bulkhead-system", "bulkhead-control");
        let mut world = Self {
            mesh,
            control: None,
            config,
            monitoring: Monitoring::default(),
            manifests,
            limits,
        };
        world.write("pods.yaml", PODS);
        world.write(
            "services.yaml",
            &format!("{SERVICE}---\n{}", slice(&["127.1.0.1"])),
        );
        world.start_control().await;
        world
    }

    /// Starts control, where it was.
    async fn start_control(&mut self) {
        self.monitoring = Monitoring::default();
        let given = Dependencies {
            monitoring: self.monitoring.clone(),
            limits: self.limits,
            ..Dependencies::default()
        };
        let app = App::start(self.config.clone(), given).await.unwrap();
        self.config.listen = app.address();
        self.control = Some(app);
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        let ready = async {
            while !self.monitoring.readiness.missing().is_empty() {
                looks.tick().await;
            }
        };
        let ready = tokio::time::timeout(Duration::from_secs(60), ready).await;
        assert!(ready.is_ok(), "{:?}", self.monitoring.readiness.missing());
        let control = self.control.as_ref().unwrap();
        assert_eq!(control.task_ended().now_or_never(), None);
    }

    /// Writes a manifest as a careful program does: whole, or not at all.
    fn write(&self, name: &str, text: &str) {
        let temporary = self.manifests.path().join(format!(".{name}"));
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.manifests.path().join(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.manifests.path().join(name)).unwrap();
    }

    async fn credentials(&self, service_account: &str) -> Arc<Credentials> {
        let domain = self.mesh.trust_domain();
        let settings = Settings {
            id: SpiffeId::workload(domain, "shop", service_account).unwrap(),
            trust_domain: domain.clone(),
            ca_address: self.config.ca_address.clone(),
            ca_roots_path: self.config.ca_roots_path.clone(),
            token_path: token(&self.mesh, &self.manifests, "shop", service_account),
            certificate_lifetime: Duration::from_secs(3600),
            reports_to_control: false,
        };
        certificate(settings).await.unwrap()
    }

    /// The proxy of a pod, with the certificate of a ServiceAccount.
    async fn proxy(&self, service_account: &str, pod: &str) -> Subscriber {
        let credentials = self.credentials(service_account).await;
        let (address, id) = (self.config.listen, self.config.spiffe_id().unwrap());
        let connected = Subscriber::connect(address, &id, &credentials, pod).await;
        connected.unwrap()
    }
}

/// Writes a token into a file that control takes for no manifest.
fn token(mesh: &Mesh, directory: &TempDir, namespace: &str, account: &str) -> String {
    let path: PathBuf = directory
        .path()
        .join(format!(".{namespace}-{account}.token"));
    std::fs::write(&path, mesh.token(namespace, account).unwrap()).unwrap();
    path.display().to_string()
}

fn addresses(resource: &Resource) -> Vec<String> {
    let Resource::Endpoints(endpoints) = resource else {
        panic!("{resource:?} are no endpoints");
    };
    let all = endpoints.endpoints.iter();
    all.map(|endpoint| endpoint.address.to_string()).collect()
}

fn phase(resource: &Resource) -> BypassPhase {
    match resource {
        Resource::Bypass(bypass) => bypass.phase,
        other => panic!("{other:?} is no bypass"),
    }
}

#[tokio::test]
async fn a_proxy_is_told_what_an_address_is_and_where_its_connections_go() {
    let world = World::start().await;
    let mut front = world.proxy("front", "shop/front-0").await;
    let destination = "127.2.0.1:80";
    front
        .ask(ResourceKind::Destination, destination)
        .await
        .unwrap();
    let told = front
        .told(ResourceKind::Destination, destination)
        .await
        .unwrap();
    let Some(Resource::Destination(destination)) = told else {
        panic!("{told:?} is no destination");
    };
    assert_eq!(destination.route, Route::Endpoints(CART.parse().unwrap()));

    front.ask(ResourceKind::Endpoints, CART).await.unwrap();
    let told = front.told(ResourceKind::Endpoints, CART).await.unwrap();
    let Some(Resource::Endpoints(endpoints)) = told else {
        panic!("{told:?} are no endpoints");
    };
    let endpoint = &endpoints.endpoints[0];
    assert_eq!(endpoint.address.to_string(), "127.1.0.1:8080");
    let id = endpoint.identity.as_ref().unwrap();
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
}

#[tokio::test]
async fn an_address_that_nobody_knows_is_told_to_be_unknown_until_somebody_does() {
    let world = World::start().await;
    let mut front = world.proxy("front", "shop/front-0").await;
    let later = "127.2.0.9:80";
    front.ask(ResourceKind::Destination, later).await.unwrap();
    let is_unknown = |resource: &Resource| matches!(resource, Resource::Destination(found) if found.route == Route::Unknown);
    let told = front.told(ResourceKind::Destination, later).await.unwrap();
    assert!(is_unknown(&told.unwrap()));
    world.write(
        "later.yaml",
        &SERVICE
            .replace("127.2.0.1", "127.2.0.9")
            .replace("cart", "late"),
    );
    let told = front.told(ResourceKind::Destination, later).await.unwrap();
    assert!(!is_unknown(&told.unwrap()));
}

#[tokio::test]
async fn a_change_of_endpoints_reaches_whoever_asked_and_nobody_else() {
    let world = World::start().await;
    let mut front = world.proxy("front", "shop/front-0").await;
    let mut other = world.proxy("cart", "shop/cart-0").await;
    front.ask(ResourceKind::Endpoints, CART).await.unwrap();
    front.told(ResourceKind::Endpoints, CART).await.unwrap();
    other
        .ask(ResourceKind::Endpoints, "shop/none:80")
        .await
        .unwrap();
    let none = other.told(ResourceKind::Endpoints, "shop/none:80").await;
    assert_eq!(none.unwrap(), None, "there is no such Service");

    let both = format!("{SERVICE}---\n{}", slice(&["127.1.0.1", "127.1.0.7"]));
    world.write("services.yaml", &both);
    let told = front.told(ResourceKind::Endpoints, CART).await.unwrap();
    assert_eq!(
        addresses(&told.unwrap()),
        ["127.1.0.1:8080", "127.1.0.7:8080"]
    );
    world.write("services.yaml", &format!("{SERVICE}---\n{}", slice(&[])));
    let told = front.told(ResourceKind::Endpoints, CART).await.unwrap();
    assert!(addresses(&told.unwrap()).is_empty());
    world.remove("services.yaml");
    let gone = front.told(ResourceKind::Endpoints, CART).await;
    assert_eq!(gone.unwrap(), None);
    // What the other is told next is what it asks for next.
    other
        .ask(ResourceKind::Destination, "127.9.9.9:1")
        .await
        .unwrap();
    let next = other.hear().await.unwrap();
    assert_eq!(next.kind, ResourceKind::Destination);
}

#[tokio::test]
async fn a_file_that_is_broken_for_a_while_takes_nothing_away() {
    let world = World::start().await;
    let mut front = world.proxy("front", "shop/front-0").await;
    front.ask(ResourceKind::Endpoints, CART).await.unwrap();
    front.told(ResourceKind::Endpoints, CART).await.unwrap();
    world.write("services.yaml", &format!("{SERVICE}---\nkind: [unfinished"));
    become_sum(
        &world.monitoring,
        "bulkhead_control_source_errors_total",
        &[],
        1.0,
    )
    .await;
    let both = format!("{SERVICE}---\n{}", slice(&["127.1.0.1", "127.1.0.7"]));
    world.write("services.yaml", &both);
    let told = front.told(ResourceKind::Endpoints, CART).await.unwrap();
    assert_eq!(
        addresses(&told.unwrap()).len(),
        2,
        "nothing was told in between"
    );
}

#[tokio::test]
async fn a_proxy_reads_its_own_inbound_policy_and_nobody_elses() {
    let world = World::start().await;
    let mut cart = world.proxy("cart", "shop/cart-0").await;
    cart.ask(ResourceKind::Inbound, "shop/front-0")
        .await
        .unwrap();
    let foreign = cart.told(ResourceKind::Inbound, "shop/front-0").await;
    assert_eq!(foreign.unwrap(), None);
    cart.ask(ResourceKind::Inbound, "shop/cart-0")
        .await
        .unwrap();
    let mode = |resource: Option<Resource>| match resource {
        Some(Resource::Inbound(inbound)) => inbound.policy.mode(8080),
        other => panic!("{other:?} is no policy"),
    };
    let own = cart
        .told(ResourceKind::Inbound, "shop/cart-0")
        .await
        .unwrap();
    assert_eq!(mode(own), MtlsMode::Permissive);
    world.write(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}",
    );
    let own = cart
        .told(ResourceKind::Inbound, "shop/cart-0")
        .await
        .unwrap();
    assert_eq!(mode(own), MtlsMode::Strict);
    let refusals = "bulkhead_control_refusals_total";
    become_sum(
        &world.monitoring,
        refusals,
        &["reason=\"not_its_own\""],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn a_proxy_cannot_pass_for_a_pod_of_another_service_account_or_namespace() {
    let world = World::start().await;
    let mut liar = world.proxy("cart", "shop/front-0").await;
    for kind in [ResourceKind::Inbound, ResourceKind::Bypass] {
        liar.ask(kind, "shop/front-0").await.unwrap();
        assert_eq!(liar.told(kind, "shop/front-0").await.unwrap(), None);
    }
    let mut liar = world.proxy("cart", "bank/vault-0").await;
    liar.ask(ResourceKind::Inbound, "bank/vault-0")
        .await
        .unwrap();
    assert_eq!(liar.refusal().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_stream_without_a_pod_and_one_that_asks_for_too_much_are_ended() {
    let world = World::start().await;
    let mut nobody = world.proxy("cart", "").await;
    nobody
        .ask(ResourceKind::Destination, "127.1.1.1:1")
        .await
        .unwrap();
    assert_eq!(nobody.refusal().await.code(), Code::InvalidArgument);

    let mut greedy = world.proxy("cart", "shop/cart-0").await;
    for network in 0..2_u32 {
        let names = (0..MAX_NAMES as u32 - 1).map(|host| {
            let ip = std::net::Ipv4Addr::from_bits(0x7f10_0000 + network * 0x10_0000 + host);
            format!("{ip}:80")
        });
        let request = Request {
            subscribe: names.collect(),
            ..Request::new(ResourceKind::Destination)
        };
        greedy.say(request).await.unwrap();
    }
    assert_eq!(greedy.refusal().await.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_proxy_that_comes_back_is_told_only_what_is_new() {
    let mut world = World::start().await;
    let mut front = world.proxy("front", "shop/front-0").await;
    front.ask(ResourceKind::Endpoints, CART).await.unwrap();
    front.told(ResourceKind::Endpoints, CART).await.unwrap();
    let version = front.versions[&(ResourceKind::Endpoints, CART.to_owned())].clone();

    let control = world.control.take().unwrap();
    control.drain(Duration::from_secs(10)).await;
    drop(front);
    world.start_control().await;
    let mut front = world.proxy("front", "shop/front-0").await;
    let request = Request {
        subscribe: vec![CART.to_owned()],
        known: [(CART.to_owned(), version)].into(),
        ..Request::new(ResourceKind::Endpoints)
    };
    front.say(request).await.unwrap();
    front
        .ask(ResourceKind::Destination, "127.9.9.9:1")
        .await
        .unwrap();
    let first = front.hear().await.unwrap();
    assert_eq!(
        first.kind,
        ResourceKind::Destination,
        "it knew the endpoints"
    );
    let both = format!("{SERVICE}---\n{}", slice(&["127.1.0.1", "127.1.0.7"]));
    world.write("services.yaml", &both);
    let told = front.told(ResourceKind::Endpoints, CART).await.unwrap();
    assert_eq!(addresses(&told.unwrap()).len(), 2);
}

#[tokio::test]
async fn a_proxy_that_reads_nothing_is_told_the_latest_when_it_does() {
    let world = World::start().await;
    let mut front = world.proxy("front", "shop/front-0").await;
    front.ask(ResourceKind::Endpoints, CART).await.unwrap();
    front.told(ResourceKind::Endpoints, CART).await.unwrap();
    let mut fresh = world.proxy("cart", "shop/cart-0").await;
    fresh.ask(ResourceKind::Endpoints, CART).await.unwrap();
    fresh.told(ResourceKind::Endpoints, CART).await.unwrap();
    // The lazy one does not read while the other sees every change.
    for host in 2..30 {
        let address = format!("127.1.1.{host}");
        world.write(
            "services.yaml",
            &format!("{SERVICE}---\n{}", slice(&[&address])),
        );
        let expected = format!("{address}:8080");
        fresh
            .until(ResourceKind::Endpoints, CART, |found| {
                addresses(found) == [expected.as_str()]
            })
            .await
            .unwrap();
    }
    let last = |found: &Resource| addresses(found) == ["127.1.1.29:8080"];
    front
        .until(ResourceKind::Endpoints, CART, last)
        .await
        .unwrap();
}

#[tokio::test]
async fn servers_accept_plaintext_before_clients_send_it_and_until_none_does() {
    let world = World::start().await;
    let mut cart = world.proxy("cart", "shop/cart-0").await;
    cart.ask(ResourceKind::Bypass, "shop/cart-0").await.unwrap();
    let own = (ResourceKind::Bypass, "shop/cart-0");
    let next = async |cart: &mut Subscriber| cart.told(own.0, own.1).await.unwrap().unwrap();
    assert_eq!(phase(&next(&mut cart).await), BypassPhase::Off);

    let began = Instant::now();
    world.write("bypass.yaml", &bypass("reason: handshakes fail, by: alice"));
    let first = next(&mut cart).await;
    let Resource::Bypass(told) = &first else {
        panic!("{first:?} is no bypass");
    };
    assert_eq!(
        (told.reason.as_str(), told.by.as_str()),
        ("handshakes fail", "alice")
    );
    assert_eq!(told.phase, BypassPhase::Accept);
    assert_eq!(phase(&next(&mut cart).await), BypassPhase::Forward);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(500),
        "other replicas had no time: {took:?}"
    );

    world.remove("bypass.yaml");
    assert_eq!(phase(&next(&mut cart).await), BypassPhase::Accept);
    assert_eq!(phase(&next(&mut cart).await), BypassPhase::Off);
}

#[tokio::test]
async fn an_identity_that_holds_all_its_connections_takes_none_from_others() {
    let limits = Limits {
        of_identity: 1,
        ..Limits::default()
    };
    let world = World::limited(limits).await;
    let mut cart = world.proxy("cart", "shop/cart-0").await;
    cart.ask(ResourceKind::Endpoints, CART).await.unwrap();
    let credentials = world.credentials("cart").await;
    let (address, id) = (world.config.listen, world.config.spiffe_id().unwrap());
    let second = Subscriber::connect(address, &id, &credentials, "shop/cart-0").await;
    assert!(second.is_err(), "one is all that it may hold");
    let refusals = "bulkhead_control_refusals_total";
    let reason = ["reason=\"too_many_connections\""];
    become_sum(&world.monitoring, refusals, &reason, 1.0).await;
    let mut front = world.proxy("front", "shop/front-0").await;
    front.ask(ResourceKind::Endpoints, CART).await.unwrap();
    assert!(
        front
            .told(ResourceKind::Endpoints, CART)
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn an_address_that_proves_no_identity_holds_few_connections() {
    let limits = Limits {
        unproven: 2,
        ..Limits::default()
    };
    let world = World::limited(limits).await;
    let silent = [connect(&world).await, connect(&world).await];
    let mut one_more = connect(&world).await;
    let read = one_more.read(&mut [0; 1]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "it is closed: {read:?}");
    drop(silent);
    // Control hears of the end of the others a moment later.
    let connections = "bulkhead_control_connections";
    become_sum(&world.monitoring, connections, &[], 0.0).await;
    let mut front = world.proxy("front", "shop/front-0").await;
    front.ask(ResourceKind::Endpoints, CART).await.unwrap();
    assert!(
        front
            .told(ResourceKind::Endpoints, CART)
            .await
            .unwrap()
            .is_some()
    );
}

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.config.listen).await.unwrap()
}

#[tokio::test]
async fn a_bypass_means_only_the_pods_it_selects_and_ends_at_its_time() {
    let world = World::start().await;
    let mut cart = world.proxy("cart", "shop/cart-0").await;
    let mut front = world.proxy("front", "shop/front-0").await;
    cart.ask(ResourceKind::Bypass, "shop/cart-0").await.unwrap();
    front
        .ask(ResourceKind::Bypass, "shop/front-0")
        .await
        .unwrap();
    front
        .told(ResourceKind::Bypass, "shop/front-0")
        .await
        .unwrap();
    let over = "reason: drill, selector: {matchLabels: {app: cart}}, until: '2020-01-01T00:00:00Z'";
    world.write("bypass.yaml", &bypass(over));
    let on = "reason: drill, selector: {matchLabels: {app: cart}}, until: '2100-01-01T00:00:00Z'";
    world.write("bypass.yaml", &bypass(on));
    let forwards = |found: &Resource| phase(found) == BypassPhase::Forward;
    cart.until(ResourceKind::Bypass, "shop/cart-0", forwards)
        .await
        .unwrap();
    world.write("bypass.yaml", &bypass(over));
    let off = |found: &Resource| phase(found) == BypassPhase::Off;
    cart.until(ResourceKind::Bypass, "shop/cart-0", off)
        .await
        .unwrap();
    front
        .ask(ResourceKind::Destination, "127.9.9.9:1")
        .await
        .unwrap();
    let next = front.hear().await.unwrap();
    assert_eq!(
        next.kind,
        ResourceKind::Destination,
        "front was told nothing"
    );
}

#[tokio::test]
async fn what_a_proxy_refuses_is_counted_and_not_told_again() {
    let world = World::start().await;
    let mut front = world.proxy("front", "shop/front-0").await;
    front.ask(ResourceKind::Endpoints, CART).await.unwrap();
    let response = front.hear().await.unwrap();
    let refusal = Request {
        reply: Some(Reply {
            nonce: response.nonce,
            refused: Some("what is a zone?".to_owned()),
        }),
        ..Request::new(ResourceKind::Endpoints)
    };
    front.say(refusal).await.unwrap();
    let name = "bulkhead_control_replies_total";
    become_sum(&world.monitoring, name, &["reply=\"nack\""], 1.0).await;
    front
        .ask(ResourceKind::Destination, "127.9.9.9:1")
        .await
        .unwrap();
    assert_eq!(front.hear().await.unwrap().kind, ResourceKind::Destination);
}

#[tokio::test]
async fn whoever_has_no_certificate_of_the_mesh_is_told_nothing() {
    let world = World::start().await;
    let stranger = Mesh::start().await.unwrap();
    let directory = TempDir::new().unwrap();
    let settings = Settings {
        id: SpiffeId::workload(stranger.trust_domain(), "shop", "cart").unwrap(),
        trust_domain: stranger.trust_domain().clone(),
        ca_address: stranger.ca_address().to_string(),
        ca_roots_path: stranger.roots_path().display().to_string(),
        token_path: token(&stranger, &directory, "shop", "cart"),
        certificate_lifetime: Duration::from_secs(3600),
        reports_to_control: false,
    };
    let credentials = certificate(settings).await.unwrap();
    let (address, id) = (world.config.listen, world.config.spiffe_id().unwrap());
    let connected = Subscriber::connect(address, &id, &credentials, "shop/cart-0").await;
    assert!(connected.is_err());
}
