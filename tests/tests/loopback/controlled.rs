//! A mesh with control, which knows of it by manifests in a directory: the same
//! that a cluster would tell it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bulkhead::mesh::Mesh;
use bulkhead_control::app::App as Control;
use bulkhead_core::sidecar::{InboundListener, RedirectedListener, SidecarConfig};
use bulkhead_proxy::app::Proxy;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pair::metric_becomes;

/// The address of the Service, which leads nowhere by itself.
pub(crate) const CLUSTER_IP: &str = "203.0.113.10:80";

/// A CA, control, and the manifests that it follows.
pub(crate) struct Controlled {
    pub(crate) mesh: Mesh,
    control: Option<Control>,
    address: SocketAddr,
    manifests: TempDir,
}

impl Controlled {
    pub(crate) async fn start() -> Self {
        let mesh = Mesh::start().await.unwrap();
        let manifests = TempDir::with_prefix("bulkhead-manifests-").unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let control = mesh.start_control(manifests.path(), listen).await.unwrap();
        Self {
            address: control.address(),
            control: Some(control),
            mesh,
            manifests,
        }
    }

    pub(crate) async fn stop_control(&mut self) {
        let control = self.control.take().unwrap();
        control.drain(Duration::from_secs(5)).await;
    }

    /// Starts control again where it was.
    pub(crate) async fn start_control(&mut self) {
        let control = self.mesh.start_control(self.manifests.path(), self.address);
        self.control = Some(control.await.unwrap());
    }

    /// Says something to control, or says it anew.
    pub(crate) fn apply(&self, name: &str, manifest: &Value) {
        let path = self.manifests.path().join(format!("{name}.json"));
        let unfinished = self.manifests.path().join(format!(".{name}"));
        std::fs::write(&unfinished, manifest.to_string()).unwrap();
        std::fs::rename(unfinished, path).unwrap();
    }

    pub(crate) fn delete(&self, name: &str) {
        let path = self.manifests.path().join(format!("{name}.json"));
        std::fs::remove_file(path).unwrap();
    }

    /// The settings of a pod's proxy; control is told of the pod.
    pub(crate) fn pod(&self, namespace: &str, name: &str, ip: &str) -> SidecarConfig {
        let account = name.split('-').next().unwrap();
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": name,
                "labels": {"app": account, "security.istio.io/tlsMode": "istio"},
            },
            "spec": {
                "serviceAccountName": account,
                "containers": [{"name": "app"}, {"name": "bulkhead-proxy"}],
            },
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        });
        self.apply(name, &manifest);
        let mut config = self.mesh.workload(namespace, account).unwrap();
        config.pod_name = name.to_owned();
        config.pod_ips = vec![ip.parse().unwrap()];
        config.control_address = self.address.to_string();
        config
    }

    /// A server's proxy before an application, on the pod's own address.
    pub(crate) async fn server(&self, name: &str, ip: &str, app: SocketAddr) -> Proxy {
        let mut config = self.pod("shop", name, ip);
        config.inbound = vec![on(ip, app)];
        self.connected(config).await
    }

    /// A client's proxy, with a port that stands for each of these addresses.
    pub(crate) async fn client(&self, towards: &[SocketAddr]) -> Proxy {
        let mut config = self.pod("web", "front-0", "127.0.0.3");
        config.redirected_outbound = towards.iter().map(|address| stands_for(*address)).collect();
        self.connected(config).await
    }

    /// Starts a proxy, and waits until control has told it who it is.
    pub(crate) async fn connected(&self, config: SidecarConfig) -> Proxy {
        let proxy = self.mesh.proxy(config).await.unwrap();
        let inbound = ["kind=\"Inbound\""];
        metric_becomes(&proxy, "bulkhead_discovery_pushes_total", &inbound, 1.0).await;
        proxy
    }

    /// Tells control of the Service `shop/cart` at [`CLUSTER_IP`], and of its
    /// endpoints: pod, address, and whether it is ready.
    pub(crate) fn cart(&self, endpoints: &[(&str, SocketAddr, bool)]) {
        self.service(CLUSTER_IP.parse().unwrap(), endpoints);
    }

    /// The same at another address.
    pub(crate) fn service(&self, address: SocketAddr, endpoints: &[(&str, SocketAddr, bool)]) {
        let ip = address.ip().to_string();
        let port = json!({"name": "main", "port": address.port(), "protocol": "TCP"});
        let mut items = vec![json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": [port],
            },
        })];
        for (pod, address, ready) in endpoints {
            items.push(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("cart-{pod}"),
                    "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": "cart"},
                },
                "addressType": "IPv4",
                "endpoints": [{
                    "addresses": [address.ip().to_string()],
                    "conditions": {"ready": ready, "serving": ready},
                    "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"},
                }],
                "ports": [{"name": "main", "port": address.port(), "protocol": "TCP"}],
            }));
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.apply("cart", &list);
    }

    /// A PeerAuthentication for the namespace `shop`.
    pub(crate) fn mode(&self, mode: &str) {
        let policy = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": "shop"},
            "spec": {"mtls": {"mode": mode}},
        });
        self.apply("mode", &policy);
    }
}

/// A listener on an address of its own, for an application.
pub(crate) fn on(ip: &str, app: SocketAddr) -> InboundListener {
    InboundListener {
        listen: SocketAddr::new(ip.parse::<IpAddr>().unwrap(), 0),
        forward: Some(app),
    }
}

pub(crate) fn stands_for(destination: SocketAddr) -> RedirectedListener {
    RedirectedListener {
        listen: "127.0.0.1:0".parse().unwrap(),
        destination: Some(destination),
    }
}
