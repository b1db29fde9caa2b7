//! An Envoy with the settings of Istio's sidecar, as far as peers can tell: its
//! protocol names, TLS parameters, filter chains and name matching.
//!
//! Istio's own build of Envoy chooses the protocol names of a request by what
//! the application speaks; here each protocol has a listener of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Envoy;

/// Where a listener listens that gets a free port of loopback.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The listeners towards an upstream, and the names that they offer it.
pub const HTTP1: &str = "http1";
pub const HTTP2: &str = "http2";
pub const TCP: &str = "tcp";

/// The listener in front of an application.
pub const INBOUND: &str = "inbound";

/// The versions that Istio allows unless it is told otherwise.
const DEFAULT_TLS_VERSIONS: [&str; 2] = ["TLSv1_2", "TLSv1_3"];

/// The response headers by which Envoy tells what it knows of the upstream.
pub const UPSTREAM_PEER: &str = "upstream-peer";
pub const UPSTREAM_TLS_VERSION: &str = "upstream-tls-version";

/// A workload's PEM files, where Envoy reads them.
#[derive(Clone, Debug)]
pub struct Files {
    pub key: PathBuf,
    /// The leaf and what is between it and a root.
    pub chain: PathBuf,
    pub roots: PathBuf,
}

/// What Istio's control plane would tell the Envoy of one workload.
pub struct Sidecar {
    files: Files,
    peer: String,
    tls_versions: [&'static str; 2],
}

impl Sidecar {
    /// A sidecar that speaks to this one peer only.
    pub fn new(files: Files, peer: &str) -> Self {
        Self {
            files,
            peer: peer.to_owned(),
            tls_versions: DEFAULT_TLS_VERSIONS,
        }
    }

    /// Believes the roots of another mesh than its own.
    pub fn believing(mut self, roots: PathBuf) -> Self {
        self.files.roots = roots;
        self
    }

    /// Speaks nothing newer than TLS 1.2.
    pub fn of_tls12(mut self) -> Self {
        self.tls_versions = ["TLSv1_2", "TLSv1_2"];
        self
    }

    /// Starts it in front of an application.
    pub async fn in_front_of(&self, app: SocketAddr) -> anyhow::Result<Envoy> {
        let (listeners, clusters) = self.inbound(ANYWHERE, app);
        Envoy::start(listeners, clusters).await
    }

    /// Starts it as the way to an upstream.
    pub async fn towards(&self, upstream: SocketAddr) -> anyhow::Result<Envoy> {
        let (listeners, clusters) = self.outbound([ANYWHERE; 3], upstream);
        Envoy::start(listeners, clusters).await
    }

    /// The listeners [`HTTP1`], [`HTTP2`] and [`TCP`] towards an upstream, and
    /// what is behind them.
    pub fn outbound(&self, listen: [SocketAddr; 3], upstream: SocketAddr) -> (Value, Value) {
        let [http1, http2, tcp] = listen;
        let http = |name| json!([{"filters": [self.http_out(name)]}]);
        let listeners = json!([
            listener(HTTP1, http1, json!([]), http(HTTP1)),
            listener(HTTP2, http2, json!([]), http(HTTP2)),
            listener(TCP, tcp, json!([]), json!([{"filters": [tcp_proxy(TCP)]}])),
        ]);
        let http1 = ["istio-http/1.1", "istio", "http/1.1"];
        let http2 = ["istio-h2", "istio", "h2"];
        let tcp = ["istio-peer-exchange", "istio"];
        let of_http1 = json!({"http_protocol_options": {}});
        let of_http2 = json!({"http2_protocol_options": {}});
        let clusters = json!([
            self.upstream(HTTP1, upstream, &http1, of_http1.clone()),
            self.upstream(HTTP2, upstream, &http2, of_http2),
            self.upstream(TCP, upstream, &tcp, of_http1),
        ]);
        (listeners, clusters)
    }

    /// The listener [`INBOUND`] and the application behind it. Its filter chains
    /// are those of a STRICT port: told apart by the names that clients offer,
    /// none of which Envoy itself chooses.
    pub fn inbound(&self, listen: SocketAddr, app: SocketAddr) -> (Value, Value) {
        let inspector = json!([{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"},
        }]);
        let chains = json!([
            {
                "filter_chain_match": {
                    "transport_protocol": "tls",
                    "application_protocols": ["istio-http/1.0", "istio-http/1.1", "istio-h2"],
                },
                "transport_socket": self.server_tls(&["h2", "http/1.1"]),
                "filters": [http_in()],
            },
            {
                "filter_chain_match": {"transport_protocol": "tls"},
                "transport_socket": self.server_tls(&["istio-peer-exchange", "h2", "http/1.1"]),
                "filters": [tcp_proxy("app")],
            },
        ]);
        let listener = listener(INBOUND, listen, inspector, chains);
        (json!([listener]), json!([application(app)]))
    }

    fn http_out(&self, cluster: &str) -> Value {
        http_connection_manager(json!({
            "stat_prefix": cluster,
            "route_config": {
                "virtual_hosts": [virtual_host(cluster)],
                "response_headers_to_add": [
                    {"header": {"key": UPSTREAM_PEER, "value": "%UPSTREAM_PEER_URI_SAN%"}},
                    {"header": {"key": UPSTREAM_TLS_VERSION, "value": "%UPSTREAM_TLS_VERSION%"}},
                ],
            },
        }))
    }

    fn upstream(&self, name: &str, address: SocketAddr, alpn: &[&str], protocol: Value) -> Value {
        let tls = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "outbound_.80_._.cart.shop.svc.cluster.local",
                "common_tls_context": self.common_tls(alpn, json!({})),
            },
        });
        cluster(
            name,
            address,
            json!({"explicit_http_config": protocol}),
            json!({"transport_socket": tls}),
        )
    }

    fn server_tls(&self, alpn: &[&str]) -> Value {
        let ciphers = json!({"cipher_suites": [
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "AES256-GCM-SHA384",
            "AES128-GCM-SHA256",
        ]});
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": self.common_tls(alpn, ciphers),
            },
        })
    }

    fn common_tls(&self, alpn: &[&str], parameters: Value) -> Value {
        let [oldest, newest] = self.tls_versions;
        let versions = json!({
            "tls_minimum_protocol_version": oldest,
            "tls_maximum_protocol_version": newest,
        });
        json!({
            "alpn_protocols": alpn,
            "tls_params": merged(versions, parameters),
            "tls_certificates": [{
                "certificate_chain": {"filename": self.files.chain},
                "private_key": {"filename": self.files.key},
            }],
            "validation_context": {
                "trusted_ca": {"filename": self.files.roots},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": self.peer}},
                ],
            },
        })
    }
}

fn listener(
    name: &str,
    listen: SocketAddr,
    listener_filters: Value,
    filter_chains: Value,
) -> Value {
    json!({
        "name": name,
        "stat_prefix": name,
        "address": socket_address(listen),
        "listener_filters": listener_filters,
        "filter_chains": filter_chains,
    })
}

/// As Istio sets it up before an application: it says in a header who called.
fn http_in() -> Value {
    http_connection_manager(json!({
        "stat_prefix": INBOUND,
        "route_config": {"virtual_hosts": [virtual_host("app")]},
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"subject": true, "dns": true, "uri": true},
    }))
}

fn http_connection_manager(settings: Value) -> Value {
    let fixed = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": merged(fixed, settings),
    })
}

fn virtual_host(cluster: &str) -> Value {
    json!({
        "name": cluster,
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}],
    })
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster,
            "cluster": cluster,
        },
    })
}

fn application(address: SocketAddr) -> Value {
    let as_it_came = json!({"use_downstream_protocol_config": {"http2_protocol_options": {}}});
    cluster("app", address, as_it_came, json!({}))
}

fn cluster(name: &str, address: SocketAddr, protocol: Value, settings: Value) -> Value {
    let endpoint = socket_address(address);
    let protocol = merged(
        json!({"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"}),
        protocol,
    );
    let fixed = json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol,
        },
    });
    merged(fixed, settings)
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }})
}

/// Both objects' fields.
fn merged(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}
