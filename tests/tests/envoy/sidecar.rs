//! An Envoy with the settings of Istio's sidecar, as far as peers can tell: its
//! protocol names, TLS parameters, filter chains and name matching.
//!
//! Istio's own build of Envoy chooses the protocol names of a request by what
//! the application speaks; here each protocol has a listener of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use bulkhead_tests::envoy::Envoy;
use serde_json::{Value, json};

use crate::certificate::CertificateFiles;

/// The listeners towards an upstream, and the names that they offer it.
pub(crate) const HTTP1: &str = "http1";
pub(crate) const HTTP2: &str = "http2";
pub(crate) const TCP: &str = "tcp";

/// The listener in front of an application.
pub(crate) const INBOUND: &str = "inbound";

/// The versions that Istio allows unless it is told otherwise.
const DEFAULT_TLS_VERSIONS: [&str; 2] = ["TLSv1_2", "TLSv1_3"];

/// The response headers by which Envoy tells what it knows of the upstream.
pub(crate) const UPSTREAM_PEER: &str = "upstream-peer";
pub(crate) const UPSTREAM_TLS_VERSION: &str = "upstream-tls-version";

/// What Istio's control plane would tell the Envoy of one workload.
pub(crate) struct Sidecar<'a> {
    certificate: &'a CertificateFiles,
    peer: String,
    roots: PathBuf,
    tls_versions: [&'static str; 2],
}

impl<'a> Sidecar<'a> {
    /// A sidecar that speaks to this one peer only.
    pub(crate) fn new(certificate: &'a CertificateFiles, peer: &str) -> Self {
        Self {
            certificate,
            peer: peer.to_owned(),
            roots: certificate.roots(),
            tls_versions: DEFAULT_TLS_VERSIONS,
        }
    }

    /// Believes the roots of another mesh than its own.
    pub(crate) fn believing(mut self, other: &CertificateFiles) -> Self {
        self.roots = other.roots();
        self
    }

    /// Speaks nothing newer than TLS 1.2.
    pub(crate) fn of_tls12(mut self) -> Self {
        self.tls_versions = ["TLSv1_2", "TLSv1_2"];
        self
    }

    /// Starts it in front of an application.
    pub(crate) async fn in_front_of(&self, app: SocketAddr) -> anyhow::Result<Envoy> {
        Envoy::start(json!([self.inbound()]), json!([application(app)])).await
    }

    /// Starts it as the way to an upstream.
    pub(crate) async fn towards(&self, upstream: SocketAddr) -> anyhow::Result<Envoy> {
        let listeners = json!([
            listener(
                HTTP1,
                json!([]),
                json!([{"filters": [self.http_out(HTTP1)]}])
            ),
            listener(
                HTTP2,
                json!([]),
                json!([{"filters": [self.http_out(HTTP2)]}])
            ),
            listener(TCP, json!([]), json!([{"filters": [tcp_proxy(TCP)]}])),
        ]);
        let http1 = ["istio-http/1.1", "istio", "http/1.1"];
        let http2 = ["istio-h2", "istio", "h2"];
        let tcp = ["istio-peer-exchange", "istio"];
        let clusters = json!([
            self.upstream(
                HTTP1,
                upstream,
                &http1,
                json!({"http_protocol_options": {}})
            ),
            self.upstream(
                HTTP2,
                upstream,
                &http2,
                json!({"http2_protocol_options": {}})
            ),
            self.upstream(TCP, upstream, &tcp, json!({"http_protocol_options": {}})),
        ]);
        Envoy::start(listeners, clusters).await
    }

    /// The filter chains of a STRICT port: told apart by the names that clients
    /// offer, none of which Envoy itself chooses.
    fn inbound(&self) -> Value {
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
        listener(INBOUND, inspector, chains)
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
                "certificate_chain": {"filename": self.certificate.chain()},
                "private_key": {"filename": self.certificate.key()},
            }],
            "validation_context": {
                "trusted_ca": {"filename": self.roots},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": self.peer}},
                ],
            },
        })
    }
}

fn listener(name: &str, listener_filters: Value, filter_chains: Value) -> Value {
    json!({
        "name": name,
        "stat_prefix": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
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
    let endpoint = json!({"socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }});
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

/// Both objects' fields.
fn merged(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}
