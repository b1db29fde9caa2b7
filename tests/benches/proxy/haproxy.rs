//! A pair of haproxy, with one thread, connections kept to whoever is behind it
//! and shared among clients, and no logs.

use std::fs::read_to_string;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bulkhead_tests::ports::free_address;

use super::{CLIENT, Ground, Layer, Pair, nginx};
use crate::authority::PemFiles;
use crate::process::Process;

pub(super) const L4: &str = "haproxy L4";
pub(super) const L7: &str = "haproxy L7";

/// It verifies a server by a DNS name, as nginx does.
const NAME: &str = nginx::NAME;

pub(super) async fn start(ground: &Ground<'_>, program: &Path, layer: Layer) -> Result<Pair> {
    let (entry, exit) = (free_address()?, free_address()?);
    let roots = ground.ca.roots_path();
    let client = ground.ca.svid_files(CLIENT)?;
    let verified = format!(
        "ssl crt {} ca-file {} verify required ssl-min-ver TLSv1.3 \
         ciphersuites TLS_AES_128_GCM_SHA256 alpn h2,http/1.1",
        bundle(&ground.ca.named_files(NAME)?)?.display(),
        roots.display()
    );
    let presented = format!(
        "ssl crt {} ca-file {} verify required verifyhost {NAME} sni str({NAME}) ssl-min-ver TLSv1.3",
        bundle(&client)?.display(),
        roots.display()
    );
    let server = configuration(layer, exit, &verified, ground.app, "");
    let client_side = configuration(layer, entry, "", exit, &presented);
    let mut pair = Pair {
        name: if layer == Layer::L4 { L4 } else { L7 },
        server: spawn(ground, program, &format!("server-{layer:?}"), &server)?,
        client: spawn(ground, program, &format!("client-{layer:?}"), &client_side)?,
        entry,
        grpc_entry: (layer == Layer::L7).then_some(entry),
        exit,
        server_name: NAME.try_into()?,
        tls: nginx::tls(&client, &roots)?,
    };
    pair.until_answered().await?;
    Ok(pair)
}

fn spawn(ground: &Ground<'_>, program: &Path, name: &str, text: &str) -> Result<Process> {
    let path = ground.directory.join(format!("haproxy-{name}.cfg"));
    std::fs::write(&path, text)?;
    let arguments = [
        "-db".to_owned(),
        "-f".to_owned(),
        path.display().to_string(),
    ];
    Process::start(program, ground.directory, &arguments, &[])
}

/// A certificate and its key in one file.
fn bundle(files: &PemFiles) -> Result<PathBuf> {
    let path = files.chain.with_extension("pem");
    let text = read_to_string(&files.chain)? + &read_to_string(&files.key)?;
    std::fs::write(&path, text)?;
    Ok(path)
}

fn configuration(
    layer: Layer,
    listen: SocketAddr,
    downstream: &str,
    to: SocketAddr,
    upstream: &str,
) -> String {
    // What came by HTTP/2 goes on by it.
    let (mode, choice, by_http2) = match layer {
        Layer::L4 => ("tcp", "", String::new()),
        Layer::L7 => {
            let negotiated = if upstream.is_empty() { "" } else { "alpn h2" };
            (
                "http",
                "use_backend http2 if { fc_http_major 2 }\n",
                format!("backend http2\nserver next {to} proto h2 {upstream} {negotiated}\n"),
            )
        }
    };
    format!(
        "global\nnbthread 1\nmaxconn 8192\n\
         defaults\nmode {mode}\ntimeout connect 5s\ntimeout client 10m\ntimeout server 10m\n\
         frontend in\nbind {listen} {downstream}\n{choice}default_backend next\n\
         backend next\n{reuse}server next {to} {upstream}\n{by_http2}",
        reuse = if layer == Layer::L7 {
            "http-reuse always\n"
        } else {
            ""
        },
    )
}
