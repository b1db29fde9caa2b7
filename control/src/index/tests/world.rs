//! A small cluster, written in YAML.

use bulkhead_core::discovery::{Destination, Endpoint, Endpoints, Route};
use bulkhead_core::identity::TrustDomain;
use bulkhead_core::policy::{InboundPolicy, MtlsMode};

use crate::index::{Affected, Index, Settings};
use crate::object::{Change, Key, Kind, Reading, manifest};

pub(super) struct World {
    pub(super) index: Index,
    reading: Reading,
}

impl World {
    /// A cluster with these objects.
    pub(super) fn with(manifests: &[&str]) -> Self {
        let settings = Settings {
            trust_domain: TrustDomain::new("cluster.local").unwrap(),
            root_namespaces: ["bulkhead-system", "istio-system"]
                .map(str::to_owned)
                .into(),
            default_policy: InboundPolicy {
                name: "default".into(),
                mode: MtlsMode::Permissive,
                port_modes: [].into(),
            },
        };
        let mut world = Self {
            reading: Reading {
                system_namespace: "bulkhead-system".into(),
                inject_by_default: false,
                root_namespaces: settings.root_namespaces.clone(),
            },
            index: Index::new(settings),
        };
        for manifest in manifests {
            world.apply(manifest);
        }
        world
    }

    /// `kubectl apply`.
    pub(super) fn apply(&mut self, yaml: &str) -> Affected {
        let manifest = serde_saphyr::from_str(yaml).unwrap();
        let (key, object) = manifest::read(manifest, &self.reading)
            .unwrap()
            .expect("the kind is one that control reads");
        self.index.apply(Change::Applied(key, object))
    }

    /// `kubectl delete`, in namespace shop.
    pub(super) fn delete(&mut self, kind: Kind, name: &str) -> Affected {
        self.index
            .apply(Change::Deleted(kind, Key::new("shop", name)))
    }

    pub(super) fn destination(&self, address: &str) -> Destination {
        self.index.destination(address.parse().unwrap())
    }

    /// The endpoint that is dialled by its own address.
    pub(super) fn dialled(&self, address: &str) -> Endpoint {
        match self.destination(address).route {
            Route::Endpoint(endpoint) => endpoint,
            other => panic!("{address} is no endpoint but {other:?}"),
        }
    }

    pub(super) fn endpoints(&self, name: &str) -> Option<Endpoints> {
        self.index.endpoints(&name.parse().unwrap())
    }

    /// The addresses of a Service's port that take new connections.
    pub(super) fn ready(&self, name: &str) -> Vec<String> {
        let endpoints = self.endpoints(name).unwrap_or_default().endpoints;
        let ready = endpoints.iter().filter(|endpoint| endpoint.ready);
        ready.map(|endpoint| endpoint.address.to_string()).collect()
    }

    /// What the pod cart-0 in shop accepts on a port.
    pub(super) fn mode(&self, port: u16) -> MtlsMode {
        let pod = "shop/cart-0".parse().unwrap();
        self.index
            .inbound(&pod)
            .expect("the pod is there")
            .policy
            .mode(port)
    }
}

/// Identities, as endpoints carry them.
pub(super) fn id(endpoint: &Endpoint) -> Option<&str> {
    endpoint.identity.as_ref().map(|id| id.as_str())
}

pub(super) const CART_ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// A pod in the mesh.
pub(super) const CART_POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: cart-0
  namespace: shop
  labels: {app: cart, security.istio.io/tlsMode: istio}
  ownerReferences:
  - {apiVersion: apps/v1, kind: StatefulSet, name: cart, uid: u, controller: true}
spec:
  serviceAccountName: cart
  initContainers: [{name: bulkhead-proxy}]
  containers: [{name: app, ports: [{name: grpc-api, containerPort: 9000}]}]
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}
";

/// A pod outside the mesh.
pub(super) const PLAIN_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: plain-0, namespace: shop, labels: {app: cart}}
spec: {serviceAccountName: plain, containers: [{name: app}]}
status: {phase: Running, podIP: 10.1.0.2}
";

/// A Service with a cluster IP of each family.
pub(super) const CART: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd96::10']
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: db, port: 3306, targetPort: 3306}
  - {name: api, port: 9000, appProtocol: kubernetes.io/h2c}
  - {name: dns, port: 53, protocol: UDP}
";

/// Its endpoints: one in the mesh and one outside.
pub(super) const CART_SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: cart-abc
  namespace: shop
  labels: {kubernetes.io/service-name: cart}
addressType: IPv4
ports:
- {name: http, port: 8080, protocol: TCP}
- {name: api, port: 9000, protocol: TCP}
endpoints:
- addresses: [10.1.0.1]
  conditions: {ready: true, serving: true, terminating: false}
  zone: zone-a
  targetRef: {kind: Pod, namespace: shop, name: cart-0}
- addresses: [10.1.0.2]
  conditions: {ready: true}
  targetRef: {kind: Pod, namespace: shop, name: plain-0}
";
