//! What control is told: pods, a Service and its endpoints, as manifests in a
//! directory that it follows. In a cluster the API server tells it the same.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

/// The address of the Service `shop/cart`, which leads nowhere by itself.
pub(super) const CART: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10)),
    80,
);

/// Writes that `shop/cart` has these pods at these addresses, and that there is
/// `web/front-0`; gives the directory.
pub(super) fn write(directory: &Path, cart: &[(&str, SocketAddr)]) -> anyhow::Result<PathBuf> {
    let mut items = vec![pod("web", "front-0", "127.0.0.1".to_owned()), service()];
    for (name, address) in cart {
        items.push(pod("shop", name, address.ip().to_string()));
        items.push(slice(name, *address));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let manifests = directory.join("manifests");
    std::fs::create_dir_all(&manifests)
        .and_then(|()| std::fs::write(manifests.join("mesh.json"), list.to_string()))
        .context("writing the manifests failed; is the disk full?")?;
    Ok(manifests)
}

fn pod(namespace: &str, name: &str, ip: String) -> Value {
    let (account, _) = name.split_once('-').unwrap_or((name, ""));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": name,
            "labels": {"app": account, "security.istio.io/tlsMode": "istio"},
        },
        "spec": {
            "serviceAccountName": account,
            "containers": [{"name": account}, {"name": "bulkhead-proxy"}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn service() -> Value {
    let ip = CART.ip().to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": "cart"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": [{"name": "http", "port": CART.port(), "protocol": "TCP"}],
        },
    })
}

fn slice(pod: &str, address: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop",
            "name": pod,
            "labels": {"kubernetes.io/service-name": "cart"},
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [address.ip().to_string()],
            "conditions": {"ready": true, "serving": true},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod},
        }],
        "ports": [{"name": "http", "port": address.port(), "protocol": "TCP"}],
    })
}
