//! A pair of nginx, set up as its documentation says for the fastest of both:
//! one worker, connections kept to whoever is behind, no logs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bulkhead_tests::ports::free_address;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::{CLIENT, Ground, Layer, Pair};
use crate::authority::PemFiles;
use crate::process::Process;

pub(super) const L4: &str = "nginx L4";
pub(super) const L7: &str = "nginx L7";

/// nginx verifies a server by its DNS name, which an SVID does not have.
pub(super) const NAME: &str = "server.bench";
/// Debian's modules are loaded by their path.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) async fn start(ground: &Ground<'_>, program: &Path, layer: Layer) -> Result<Pair> {
    let (entry, exit) = (free_address()?, free_address()?);
    let (grpc_entry, grpc_exit) = (free_address()?, free_address()?);
    let roots = ground.ca.roots_path();
    let server = ground.ca.named_files(NAME)?;
    let client = ground.ca.svid_files(CLIENT)?;
    let (verified, presented) = (downstream(&server, &roots), upstream(&client, &roots));
    let (server_side, client_side) = match layer {
        Layer::L7 => (
            http(
                &server_block(
                    &format!("{exit} ssl"),
                    &verified,
                    "proxy_pass http://next",
                    "",
                ),
                &server_block(
                    &format!("{grpc_exit} ssl http2"),
                    &verified,
                    "grpc_pass grpc://grpc",
                    "",
                ),
                [ground.app, ground.app],
            ),
            http(
                &server_block(
                    &entry.to_string(),
                    "",
                    "proxy_pass https://next",
                    &presented,
                ),
                &server_block(
                    &format!("{grpc_entry} http2"),
                    "",
                    "grpc_pass grpcs://grpc",
                    &presented.replace("proxy_ssl", "grpc_ssl"),
                ),
                [exit, grpc_exit],
            ),
        ),
        Layer::L4 => (
            stream(&format!("{exit} ssl"), &verified, ground.app, ""),
            stream(&entry.to_string(), "", exit, &presented),
        ),
    };
    let mut pair = Pair {
        name: if layer == Layer::L4 { L4 } else { L7 },
        server: spawn(ground, program, &format!("server-{layer:?}"), &server_side)?,
        client: spawn(ground, program, &format!("client-{layer:?}"), &client_side)?,
        entry,
        grpc_entry: (layer == Layer::L7).then_some(grpc_entry),
        exit,
        server_name: NAME.try_into()?,
        tls: tls(&client, &roots)?,
    };
    pair.until_answered().await?;
    Ok(pair)
}

fn spawn(ground: &Ground<'_>, program: &Path, name: &str, section: &str) -> Result<Process> {
    let directory = ground.directory.join(format!("nginx-{name}"));
    std::fs::create_dir(&directory)?;
    let configuration = directory.join("nginx.conf");
    let load = if section.starts_with("stream") {
        format!("load_module {STREAM_MODULE};\n")
    } else {
        String::new()
    };
    // One process, which is its own worker: nothing is counted twice.
    let text = format!(
        "{load}daemon off;\nmaster_process off;\nerror_log stderr crit;\n\
         pid {0}/nginx.pid;\nevents {{ worker_connections 8192; }}\n{section}",
        directory.display()
    );
    std::fs::write(&configuration, text)?;
    let arguments = [
        "-c".to_owned(),
        configuration.display().to_string(),
        "-p".to_owned(),
        directory.display().to_string(),
    ];
    Process::start(program, &directory, &arguments, &[])
}

/// A server certificate, and a client that must have one. The cipher is the one
/// that the other proxies agree on by themselves, and faster than OpenSSL's
/// first choice.
fn downstream(files: &PemFiles, roots: &Path) -> String {
    format!(
        "ssl_certificate {};\nssl_certificate_key {};\nssl_client_certificate {};\n\
         ssl_verify_client on;\nssl_verify_depth 3;\nssl_protocols TLSv1.3;\n\
         ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n",
        files.chain.display(),
        files.key.display(),
        roots.display()
    )
}

/// A client certificate, and a server that must have one of this name.
fn upstream(files: &PemFiles, roots: &Path) -> String {
    format!(
        "proxy_ssl_certificate {};\nproxy_ssl_certificate_key {};\n\
         proxy_ssl_trusted_certificate {};\nproxy_ssl_verify on;\nproxy_ssl_verify_depth 3;\n\
         proxy_ssl_name {NAME};\nproxy_ssl_protocols TLSv1.3;\n",
        files.chain.display(),
        files.key.display(),
        roots.display()
    )
}

/// One server for HTTP/1.1 and one for gRPC: before 1.25 a port has one of the two.
fn http(http1: &str, grpc: &str, to: [SocketAddr; 2]) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind};\n"))
        .concat();
    let upstream = |name, to| {
        format!(
            "upstream {name} {{ server {to}; keepalive 256; keepalive_requests 1000000000; }}\n"
        )
    };
    format!(
        "http {{\naccess_log off;\n{temporary}keepalive_requests 1000000000;\n\
         http2_max_concurrent_streams 1024;\n{}{}{http1}{grpc}}}\n",
        upstream("next", to[0]),
        upstream("grpc", to[1]),
    )
}

fn server_block(listen: &str, server: &str, pass: &str, location: &str) -> String {
    format!(
        "server {{\nlisten {listen};\n{server}\
         location / {{\n{pass};\nproxy_http_version 1.1;\n\
         proxy_set_header Connection \"\";\n{location}}}\n}}\n"
    )
}

fn stream(listen: &str, server: &str, to: SocketAddr, also: &str) -> String {
    let ssl = if also.is_empty() {
        ""
    } else {
        "proxy_ssl on;\n"
    };
    format!("stream {{\nserver {{\nlisten {listen};\n{server}proxy_pass {to};\n{ssl}{also}}}\n}}\n")
}

/// For clients that verify the server's name, and resume no session.
pub(super) fn tls(files: &PemFiles, roots: &Path) -> Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots)? {
        store.add(root?)?;
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.chain)?.collect();
    let key = PrivateKeyDer::from_pem_file(&files.key).context("reading a key")?;
    let mut config = ClientConfig::builder()
        .with_root_certificates(store)
        .with_client_auth_cert(chain?, key)?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
