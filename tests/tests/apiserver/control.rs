//! Control behind a real API server: what changes there reaches proxies.

use std::sync::Arc;
use std::time::Duration;

use bulkhead::mesh::Mesh;
use bulkhead_control::app::{App, Dependencies};
use bulkhead_control::config::{Config, Source};
use bulkhead_core::discovery::{BypassPhase, Resource, ResourceKind, Route};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::MtlsMode;
use bulkhead_crds::certificate_authority::CertificateAuthority;
use bulkhead_crds::emergency::{Bypass, Ejection, InjectionStop};
use bulkhead_crds::istio::peer_authentication as istio;
use bulkhead_pki::bundle::TrustBundle;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::metrics::become_sum;
use bulkhead_tests::namespace::{Namespace, may};
use bulkhead_tests::subscriber::{Subscriber, certificate};
use bulkhead_workload::Settings;
use bulkhead_workload::credentials::Credentials;
use futures::FutureExt as _;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, CustomResourceExt as _, ResourceExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::until;

pub(crate) const SYSTEM_NAMESPACE: &str = "bulkhead-system";
const ACCOUNT: &str = "bulkhead-control";
const CART: &str = "shop/cart:80";
const POD: &str = "shop/cart-0";

/// An API server with our kinds, and control beside it, which may do what its
/// documentation asks for and nothing else.
pub(crate) struct World {
    server: ApiServer,
    pub(crate) client: Client,
    mesh: Mesh,
    files: TempDir,
    config: Config,
    control: Option<App>,
    monitoring: Monitoring,
}

impl World {
    pub(crate) async fn start() -> Self {
        let server = ApiServer::start().await.expect("the API server starts");
        let client = server.client().await;
        let kinds = vec![
            Bypass::crd(),
            Ejection::crd(),
            InjectionStop::crd(),
            CertificateAuthority::crd(),
        ];
        define(&client, kinds).await;
        let system = Namespace::create_named(&client, SYSTEM_NAMESPACE, &[], &[]).await;
        let shop = Namespace::create_named(&client, "shop", &[], &[]).await;
        grant(&client, &system).await;
        shop.create_service_account("cart").await;
        let mesh = Mesh::start().await.unwrap();
        let files = TempDir::with_prefix("bulkhead-tokens-").unwrap();
        let mut config = Config::new(Source::Kubernetes);
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.monitoring_listen = config.listen;
        config.owner = Some(ACCOUNT.to_owned());
        config.ca_address = mesh.ca_address().to_string();
        config.ca_roots_path = mesh.roots_path().display().to_string();
        config.token_path = token(&mesh, &files, SYSTEM_NAMESPACE, ACCOUNT);
        let mut world = Self {
            server,
            client,
            mesh,
            files,
            config,
            control: None,
            monitoring: Monitoring::default(),
        };
        world.create_cart().await;
        world.start_control(&system).await;
        world
    }

    /// Ends control.
    pub(crate) async fn end_control(&mut self) {
        let control = self.control.take().expect("control runs");
        control.drain(Duration::from_secs(10)).await;
    }

    async fn start_control(&mut self, system: &Namespace) {
        self.monitoring = Monitoring::default();
        let token = system.token(ACCOUNT, None, None).await;
        let given = Dependencies {
            kube: Some(self.server.client_with_token(token).await),
            monitoring: self.monitoring.clone(),
            ..Dependencies::default()
        };
        let app = App::start(self.config.clone(), given).await.unwrap();
        self.config.listen = app.address();
        self.control = Some(app);
        becomes("control is ready", async || {
            self.monitoring.readiness.missing().is_empty()
        })
        .await;
        let control = self.control.as_ref().unwrap();
        assert_eq!(control.task_ended().now_or_never(), None);
    }

    /// Control itself, as it counts itself among those that hold the bundle.
    pub(crate) fn control_pod(&self) -> String {
        format!("{SYSTEM_NAMESPACE}/{}", self.config.instance)
    }

    /// The id of the trust bundle that control has, and the fingerprint of the
    /// root of its certificate.
    pub(crate) fn control_holds(&self) -> (String, String) {
        let roots = self.mesh.roots().unwrap();
        let domain = self.mesh.trust_domain().clone();
        let bundle = TrustBundle::from_pem(domain, &roots).unwrap();
        let root = bundle.roots().certificates()[0].fingerprint();
        (bundle.id().to_string(), root.to_string())
    }

    pub(crate) fn metrics(&self) -> String {
        self.monitoring.metrics()
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "shop")
    }

    /// A pod in the mesh behind a Service. There is no node, so the test says
    /// what kubelet and the endpoints' controller would.
    async fn create_cart(&self) {
        let pod = json!({
            "metadata": {
                "name": "cart-0",
                "labels": {"app": "cart", "security.istio.io/tlsMode": "istio"},
            },
            "spec": {
                "serviceAccountName": "cart",
                "containers": [
                    {"name": "app", "image": "app"},
                    {"name": "bulkhead-proxy", "image": "proxy"},
                ],
            },
        });
        create::<Pod>(&self.api(), pod).await;
        let status = json!({"status": {
            "phase": "Running", "podIP": "198.51.100.7", "podIPs": [{"ip": "198.51.100.7"}],
        }});
        let pods = self.api::<Pod>();
        let parameters = PatchParams::default();
        pods.patch_status("cart-0", &parameters, &Patch::Merge(status))
            .await
            .unwrap();
        let service = json!({
            "metadata": {"name": "cart"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        });
        create::<Service>(&self.api(), service).await;
        let slice = json!({
            "metadata": {"name": "cart-1", "labels": {"kubernetes.io/service-name": "cart"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [endpoint("198.51.100.7")],
        });
        create::<EndpointSlice>(&self.api(), slice).await;
    }

    async fn set_endpoints(&self, addresses: &[&str]) {
        let endpoints: Vec<_> = addresses.iter().map(|address| endpoint(address)).collect();
        let patch = Patch::Merge(json!({ "endpoints": endpoints }));
        let slices = self.api::<EndpointSlice>();
        slices
            .patch("cart-1", &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    async fn credentials(&self) -> Arc<Credentials> {
        let domain = self.mesh.trust_domain();
        let settings = Settings {
            id: SpiffeId::workload(domain, "shop", "cart").unwrap(),
            trust_domain: domain.clone(),
            ca_address: self.config.ca_address.clone(),
            ca_roots_path: self.config.ca_roots_path.clone(),
            token_path: token(&self.mesh, &self.files, "shop", "cart"),
            certificate_lifetime: Duration::from_secs(3600),
            reports_to_control: false,
        };
        certificate(settings).await.unwrap()
    }

    pub(crate) async fn proxy(&self) -> Subscriber {
        let credentials = self.credentials().await;
        let (address, id) = (self.config.listen, self.config.spiffe_id().unwrap());
        Subscriber::connect(address, &id, &credentials, POD)
            .await
            .unwrap()
    }
}

fn token(mesh: &Mesh, files: &TempDir, namespace: &str, account: &str) -> String {
    let path = files.path().join(format!("{namespace}-{account}"));
    std::fs::write(&path, mesh.token(namespace, account).unwrap()).unwrap();
    path.display().to_string()
}

fn endpoint(address: &str) -> Value {
    json!({
        "addresses": [address],
        "conditions": {"ready": true},
        "targetRef": {"kind": "Pod", "namespace": "shop", "name": "cart-0"},
    })
}

/// Waits until it is so.
pub(crate) async fn becomes(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let found = until(async || is_so().await.then_some(())).await;
    assert!(found.is_some(), "not in time: {what}");
}

pub(crate) async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: serde::de::DeserializeOwned + serde::Serialize + Clone + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

pub(crate) async fn define(client: &Client, definitions: Vec<CustomResourceDefinition>) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in definitions {
        let name = definition.name_any();
        api.create(&PostParams::default(), &definition)
            .await
            .unwrap();
        await_condition(api.clone(), &name, is_crd_established())
            .await
            .unwrap();
    }
}

/// The table of control's lib.rs.
async fn grant(client: &Client, system: &Namespace) {
    let emergency = "emergency.bulkhead.io";
    let switches = ["bypasses", "ejections", "injectionstops"];
    let watch = ["get", "list", "watch"];
    let change = ["get", "list", "watch", "patch", "delete"];
    let mut rules: Vec<_> = ["namespaces", "pods", "services"]
        .map(|resource| may(&watch, "", resource, &[]))
        .into();
    rules.extend(switches.map(|resource| may(&change, emergency, resource, &[])));
    rules.extend([
        may(&watch, "discovery.k8s.io", "endpointslices", &[]),
        may(&watch, istio::GROUP, "peerauthentications", &[]),
        may(&["patch"], emergency, "bypasses/status", &[]),
        may(&["get", "create"], "batch", "jobs", &[]),
        may(&["create", "patch"], "events.k8s.io", "events", &[]),
        may(
            &["get"],
            "rbac.authorization.k8s.io",
            "clusterroles",
            &[ACCOUNT],
        ),
    ]);
    let leases = "coordination.k8s.io";
    let own = vec![
        may(&["get", "update"], leases, "leases", &[ACCOUNT]),
        may(&["create"], leases, "leases", &[]),
        may(&["list", "create", "patch"], "", "configmaps", &[]),
        may(
            &["get"],
            "ca.bulkhead.io",
            "certificateauthorities",
            &["bulkhead"],
        ),
        may(
            &["patch"],
            "ca.bulkhead.io",
            "certificateauthorities/status",
            &["bulkhead"],
        ),
    ];
    let roles: Api<ClusterRole> = Api::all(client.clone());
    create(&roles, json!({"metadata": {"name": ACCOUNT}, "rules": []})).await;
    system.create_service_account(ACCOUNT).await;
    system.grant_everywhere(ACCOUNT, rules).await;
    system.grant_here(ACCOUNT, own).await;
}

/// PeerAuthentication as Istio defines it, as far as it matters here.
fn peer_authentication() -> CustomResourceDefinition {
    let schema = json!({"openAPIV3Schema": {
        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
    }});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema});
    serde_json::from_value(json!({
        "metadata": {"name": format!("peerauthentications.{}", istio::GROUP)},
        "spec": {
            "group": istio::GROUP,
            "names": {"kind": istio::KIND, "plural": "peerauthentications", "singular": "peerauthentication"},
            "scope": "Namespaced",
            "versions": [version("v1", true), version("v1beta1", false)],
        },
    }))
    .unwrap()
}

fn addresses(resource: &Resource) -> Vec<String> {
    match resource {
        Resource::Endpoints(found) => {
            let all = found.endpoints.iter();
            all.map(|endpoint| endpoint.address.to_string()).collect()
        }
        other => panic!("{other:?} are no endpoints"),
    }
}

#[tokio::test]
async fn a_change_of_endpoints_reaches_a_proxy_that_asked() {
    let world = World::start().await;
    let mut proxy = world.proxy().await;
    let service = world.api::<Service>().get("cart").await.unwrap();
    let cluster_ip = service.spec.unwrap().cluster_ip.unwrap();
    let address = format!("{cluster_ip}:80");
    proxy
        .ask(ResourceKind::Destination, &address)
        .await
        .unwrap();
    let known = |found: &Resource| {
        matches!(found, Resource::Destination(found)
            if found.route == Route::Endpoints(CART.parse().unwrap()))
    };
    proxy
        .until(ResourceKind::Destination, &address, known)
        .await
        .unwrap();
    proxy.ask(ResourceKind::Endpoints, CART).await.unwrap();
    let meshed = |found: &Resource| match found {
        Resource::Endpoints(found) => found.endpoints.iter().any(|endpoint| {
            endpoint.identity.as_ref().map(|id| id.as_str())
                == Some("spiffe://cluster.local/ns/shop/sa/cart")
        }),
        _ => false,
    };
    proxy
        .until(ResourceKind::Endpoints, CART, meshed)
        .await
        .unwrap();
    world.set_endpoints(&["198.51.100.7", "198.51.100.8"]).await;
    let two = |found: &Resource| addresses(found).len() == 2;
    proxy
        .until(ResourceKind::Endpoints, CART, two)
        .await
        .unwrap();
    world.set_endpoints(&["198.51.100.8"]).await;
    let one = |found: &Resource| addresses(found) == ["198.51.100.8:8080"];
    proxy
        .until(ResourceKind::Endpoints, CART, one)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_policy_of_istio_counts_though_its_kind_is_defined_later() {
    let world = World::start().await;
    let mut proxy = world.proxy().await;
    proxy.ask(ResourceKind::Inbound, POD).await.unwrap();
    let accepts = |mode| move |found: &Resource| matches!(found, Resource::Inbound(inbound) if inbound.policy.mode(8080) == mode);
    proxy
        .until(ResourceKind::Inbound, POD, accepts(MtlsMode::Permissive))
        .await
        .unwrap();
    define(&world.client, vec![peer_authentication()]).await;
    let resource = istio::api_resource("v1beta1");
    let policies: Api<DynamicObject> =
        Api::namespaced_with(world.client.clone(), "shop", &resource);
    let policy = json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": istio::KIND,
        "metadata": {"name": "default"}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    create(&policies, policy).await;
    proxy
        .until(ResourceKind::Inbound, POD, accepts(MtlsMode::Strict))
        .await
        .unwrap();
    policies
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();
    proxy
        .until(ResourceKind::Inbound, POD, accepts(MtlsMode::Permissive))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_proxy_reads_only_its_own_policy() {
    let world = World::start().await;
    let mut proxy = world.proxy().await;
    proxy
        .ask(ResourceKind::Inbound, "shop/front-0")
        .await
        .unwrap();
    let foreign = proxy.told(ResourceKind::Inbound, "shop/front-0").await;
    assert_eq!(foreign.unwrap(), None);
    let labels = ["reason=\"not_its_own\""];
    become_sum(
        &world.monitoring,
        "bulkhead_control_refusals_total",
        &labels,
        1.0,
    )
    .await;
}

#[tokio::test]
async fn control_that_was_away_tells_what_changed_meanwhile() {
    let mut world = World::start().await;
    let mut proxy = world.proxy().await;
    proxy.ask(ResourceKind::Endpoints, CART).await.unwrap();
    let one = |found: &Resource| addresses(found).len() == 1;
    proxy
        .until(ResourceKind::Endpoints, CART, one)
        .await
        .unwrap();
    let control = world.control.take().unwrap();
    control.drain(Duration::from_secs(10)).await;
    world.set_endpoints(&["198.51.100.7", "198.51.100.8"]).await;
    let system = Namespace::existing(&world.client, SYSTEM_NAMESPACE);
    world.start_control(&system).await;
    let mut proxy = world.proxy().await;
    proxy.ask(ResourceKind::Endpoints, CART).await.unwrap();
    let told = proxy.told(ResourceKind::Endpoints, CART).await.unwrap();
    assert_eq!(addresses(&told.unwrap()).len(), 2);
}

#[tokio::test]
async fn a_bypass_that_was_applied_as_yaml_forwards_says_so_and_ends_at_its_time() {
    let world = World::start().await;
    let mut proxy = world.proxy().await;
    proxy.ask(ResourceKind::Bypass, POD).await.unwrap();
    let is = |phase| move |found: &Resource| matches!(found, Resource::Bypass(found) if found.phase == phase);
    proxy
        .until(ResourceKind::Bypass, POD, is(BypassPhase::Off))
        .await
        .unwrap();
    let bypasses = world.api::<Bypass>();
    let until_then = world.server_time_in(Duration::from_secs(8));
    let object = json!({
        "apiVersion": "emergency.bulkhead.io/v1alpha1", "kind": "Bypass",
        "metadata": {"name": "incident"},
        "spec": {"reason": "handshakes fail", "until": until_then},
    });
    create(&bypasses, object).await;
    proxy
        .until(ResourceKind::Bypass, POD, is(BypassPhase::Accept))
        .await
        .unwrap();
    proxy
        .until(ResourceKind::Bypass, POD, is(BypassPhase::Forward))
        .await
        .unwrap();
    becomes("the status counts the proxy", async || {
        let found = bypasses.get_opt("incident").await.unwrap();
        let status = found.and_then(|found| found.status).unwrap_or_default();
        (status.proxies, status.forwarding) == (1, 1)
    })
    .await;
    becomes("the bypass has its Job", async || {
        let found = bypasses.get_opt("incident").await.unwrap();
        found.is_some_and(|found| {
            found
                .owner_references()
                .iter()
                .any(|owner| owner.kind == "Job")
        })
    })
    .await;
    let jobs = world
        .api::<Job>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(jobs.items.len(), 1);
    proxy
        .until(ResourceKind::Bypass, POD, is(BypassPhase::Off))
        .await
        .unwrap();
    becomes("the object is gone", async || {
        bypasses.get_opt("incident").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_stop_of_injection_that_nobody_times_is_given_its_job() {
    let world = World::start().await;
    let stops = world.api::<InjectionStop>();
    let object = json!({
        "apiVersion": "emergency.bulkhead.io/v1alpha1", "kind": "InjectionStop",
        "metadata": {"name": "drill"},
        "spec": {"reason": "drill", "until": world.server_time_in(Duration::from_secs(3600))},
    });
    create(&stops, object).await;
    becomes("the stop has its Job", async || {
        let found = stops.get("drill").await.unwrap();
        found
            .owner_references()
            .iter()
            .any(|owner| owner.kind == "Job")
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_misses_its_sidecar_is_counted_and_named_in_an_event() {
    let world = World::start().await;
    let pod = json!({
        "metadata": {"name": "plain-0", "labels": {"bulkhead.io/inject": "enabled"}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    create::<Pod>(&world.api(), pod).await;
    let metric = "bulkhead_pods_missing_sidecar";
    become_sum(&world.monitoring, metric, &["namespace=\"shop\""], 1.0).await;
    let events = world.api::<Event>();
    becomes("an Event names the pod", async || {
        let found = events.list(&ListParams::default()).await.unwrap();
        found.items.iter().any(|event| {
            let regarding = event.regarding.clone().unwrap_or_default();
            event.reason.as_deref() == Some("SidecarMissing")
                && regarding.name.as_deref() == Some("plain-0")
        })
    })
    .await;
}

impl World {
    /// A time from now, as manifests have it.
    fn server_time_in(&self, from_now: Duration) -> Value {
        let time = bulkhead_runtime::clock::Clock::system().now() + from_now;
        let time = k8s_openapi::jiff::Timestamp::try_from(time).unwrap();
        json!(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time))
    }
}
