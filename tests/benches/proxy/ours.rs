//! A pair of `bulkhead-proxy`, each with a certificate that it fetched itself.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_core::sidecar::{
    InboundListener, OutboundListener, SidecarConfig, default_trust_domain,
};
use bulkhead_tests::ports::free_address;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::instructions::callgrind;
use super::{CLIENT, Ground, Layer, Pair, SERVER};
use crate::authority::id;
use crate::http1::Kept;
use crate::load::Caller as _;
use crate::process::Process;

pub(super) const L4: &str = "ours L4";
pub(super) const L7: &str = "ours L7";

const READY_WITHIN: Duration = Duration::from_secs(10);

pub(super) async fn start(ground: &Ground<'_>, layer: Layer) -> Result<Pair> {
    let (entry, exit) = (free_address()?, free_address()?);
    let mut server = workload(ground, SERVER)?;
    server.mode = MtlsMode::Strict;
    server.inbound = vec![InboundListener {
        listen: exit,
        forward: Some(ground.app),
    }];
    let mut client = workload(ground, CLIENT)?;
    client.outbound = vec![OutboundListener {
        name: SERVER.to_owned(),
        listen: entry,
        addresses: vec![exit],
        identity: id(SERVER),
        protocol: Protocol::Auto,
    }];
    if layer == Layer::L4 {
        server.opaque_ports = [ground.app.port()].into_iter().collect();
        client.outbound[0].protocol = Protocol::Opaque;
    }
    let mut pair = Pair {
        name: if layer == Layer::L4 { L4 } else { L7 },
        server: spawn(ground, &server)?,
        client: spawn(ground, &client)?,
        entry,
        grpc_entry: (layer == Layer::L7).then_some(entry),
        exit,
        server_name: exit.ip().into(),
        tls: ground.workload_tls()?,
    };
    // Only then is it asked for what counts: what it refuses before is work too.
    pair.server
        .ready(async || ask_readiness(server.status_address).await)
        .await?;
    pair.client
        .ready(async || ask_readiness(client.status_address).await)
        .await?;
    pair.until_answered().await?;
    Ok(pair)
}

/// How long a server's proxy takes from its start until it is ready, its
/// certificate included, in milliseconds.
pub(super) async fn start_time(ground: &Ground<'_>) -> Result<f64> {
    let mut config = workload(ground, SERVER)?;
    config.inbound = vec![InboundListener {
        listen: free_address()?,
        forward: Some(ground.app),
    }];
    let started = Instant::now();
    let process = spawn(ground, &config)?;
    while ask_readiness(config.status_address).await.is_err() {
        // Without sleeping: timers are a millisecond wide.
        yield_now().await;
        ensure!(
            started.elapsed() < READY_WITHIN,
            "a proxy does not become ready"
        );
    }
    let took = started.elapsed();
    drop(process);
    Ok(took.as_secs_f64() * 1_000.0)
}

async fn ask_readiness(status: SocketAddr) -> Result<()> {
    let question: Arc<[u8]> = b"GET /ready HTTP/1.1\r\nhost: proxy\r\n\r\n"
        .as_slice()
        .into();
    Kept::connect(status, &question).await?.call().await
}

fn workload(ground: &Ground<'_>, account: &str) -> Result<SidecarConfig> {
    let token: PathBuf = ground.directory.join(format!("{account}.token"));
    std::fs::write(&token, ground.ca.token(account)?)?;
    let (domain, namespace) = (default_trust_domain(), "bench".to_owned());
    let mut config = SidecarConfig::new(domain, namespace, account.to_owned());
    config.ca_address = ground.ca.address.to_string();
    config.ca_roots_path = ground.ca.roots_path().display().to_string();
    config.token_path = token.display().to_string();
    config.status_address = free_address()?;
    config.admin_address = free_address()?;
    config.inbound = Vec::new();
    Ok(config)
}

fn spawn(ground: &Ground<'_>, config: &SidecarConfig) -> Result<Process> {
    let program = ground.settings.proxy();
    let Some(valgrind) = ground.valgrind else {
        return Process::start(&program, ground.directory, &[], &config.to_env());
    };
    let arguments = callgrind::arguments(&program, ground.directory);
    Process::start(valgrind, ground.directory, &arguments, &config.to_env())
}
