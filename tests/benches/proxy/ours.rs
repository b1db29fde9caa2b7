//! A pair of `bulkhead-proxy`, each with a certificate that it fetched itself.

use std::path::PathBuf;

use anyhow::Result;
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_core::sidecar::{
    InboundListener, OutboundListener, SidecarConfig, default_trust_domain,
};

use super::{CLIENT, Ground, Layer, Pair, SERVER, until_answered};
use crate::authority::id;
use crate::process::{Process, free_address};

pub(super) const L4: &str = "ours L4";
pub(super) const L7: &str = "ours L7";

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
        exit,
        server_name: exit.ip().into(),
        tls: ground.workload_tls()?,
    };
    until_answered(&mut pair).await?;
    Ok(pair)
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
    let program = ground.settings.programs.join("bulkhead-proxy");
    Process::start(&program, ground.directory, &[], &config.to_env())
}
