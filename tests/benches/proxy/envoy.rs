//! A pair of Envoy, with what a sidecar has at least and nothing else.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use bulkhead_tests::ports::free_address;
use serde_json::{Value, json};

use super::{CLIENT, Ground, Layer, Pair, SERVER};
use crate::authority::{PemFiles, id};
use crate::process::Process;

pub(super) const L4: &str = "Envoy L4";
pub(super) const L7: &str = "Envoy L7";

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";

pub(super) async fn start(ground: &Ground<'_>, program: &Path, layer: Layer) -> Result<Pair> {
    let (entry, exit) = (free_address()?, free_address()?);
    let presented = |account, peer| {
        let files = ground.ca.svid_files(account)?;
        anyhow::Ok(common_tls(&files, &ground.ca.roots_path(), peer))
    };
    let verified = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TLS}.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": presented(SERVER, CLIENT)?,
        },
    });
    let presented = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TLS}.UpstreamTlsContext"),
            "common_tls_context": presented(CLIENT, SERVER)?,
        },
    });
    let server = configuration(exit, Some(verified), ground.app, None, layer);
    let client = configuration(entry, None, exit, Some(presented), layer);
    let mut pair = Pair {
        name: if layer == Layer::L4 { L4 } else { L7 },
        server: spawn(ground, program, &format!("server-{layer:?}"), &server)?,
        client: spawn(ground, program, &format!("client-{layer:?}"), &client)?,
        entry,
        grpc_entry: (layer == Layer::L7).then_some(entry),
        exit,
        server_name: exit.ip().into(),
        tls: ground.workload_tls()?,
    };
    pair.until_answered().await?;
    Ok(pair)
}

fn spawn(
    ground: &Ground<'_>,
    program: &Path,
    name: &str,
    configuration: &Value,
) -> Result<Process> {
    let path = ground.directory.join(format!("envoy-{name}.json"));
    std::fs::write(&path, configuration.to_string())?;
    let path = path.display().to_string();
    let arguments = [
        "--config-path",
        &path,
        "--concurrency",
        "1",
        "--log-level",
        "error",
    ];
    let mut arguments = arguments.map(str::to_owned).to_vec();
    arguments.push("--disable-hot-restart".to_owned());
    Process::start(program, ground.directory, &arguments, &[])
}

fn common_tls(files: &PemFiles, roots: &Path, peer: &str) -> Value {
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": {"filename": files.chain},
            "private_key": {"filename": files.key},
        }],
        "validation_context": {
            "trusted_ca": {"filename": roots},
            "match_typed_subject_alt_names": [{
                "san_type": "URI",
                "matcher": {"exact": id(peer).as_str()},
            }],
        },
    })
}

fn configuration(
    listen: SocketAddr,
    downstream: Option<Value>,
    to: SocketAddr,
    upstream: Option<Value>,
    layer: Layer,
) -> Value {
    let filter = match layer {
        Layer::L4 => json!({
            "name": "tcp",
            "typed_config": {
                "@type": format!("{NETWORK}.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": "tcp",
                "cluster": "next",
            },
        }),
        Layer::L7 => http_filter(),
    };
    let mut chain = json!({"filters": [filter]});
    let mut cluster = json!({
        "name": "next",
        "connect_timeout": "5s",
        // As many as there are: by default it refuses the 1,025th.
        "circuit_breakers": {"thresholds": [{"max_connections": 100_000, "max_requests": 100_000}]},
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(to)}}]}],
        },
    });
    if layer == Layer::L7 {
        cluster["typed_extension_protocol_options"] = downstream_protocol();
    }
    if let Some(tls) = downstream {
        chain["transport_socket"] = tls;
    }
    if let Some(tls) = upstream {
        cluster["transport_socket"] = tls;
    }
    json!({
        "static_resources": {
            "listeners": [{
                "name": "in",
                "address": address(listen),
                "filter_chains": [chain],
            }],
            "clusters": [cluster],
        },
    })
}

/// What came by HTTP/2 goes on by it.
fn downstream_protocol() -> Value {
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        name: {
            "@type": format!("type.googleapis.com/{name}"),
            "use_downstream_protocol_config": {"http2_protocol_options": {}},
        },
    })
}

fn http_filter() -> Value {
    json!({
        "name": "http",
        "typed_config": {
            "@type": format!("{NETWORK}.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "http",
            "route_config": {
                "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "next"}}],
                }],
            },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                },
            }],
        },
    })
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }})
}
