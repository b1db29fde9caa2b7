//! What connections cost in memory that have carried a request and say nothing
//! more: of the client's proxy for an application's connection, of the server's
//! for one with mutual TLS.

use anyhow::Result;
use tokio_rustls::TlsConnector;

use super::{IDLE_CLIENT, IDLE_SERVER, Pair, request};
use crate::http1::{Kept, connect};
use crate::process::Process;
use crate::results::Table;

/// How many there are.
const CONNECTIONS: usize = 2_000;

pub(super) async fn measure(pair: &Pair, table: &mut Table) -> Result<()> {
    let before = pair.client.resident_mib();
    let mut applications = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = Kept::connect(pair.entry, &request("")).await?;
        connection.answer().await?;
        applications.push(connection);
    }
    table.add(pair.name, IDLE_CLIENT, each(&pair.client, before));
    drop(applications);

    let before = pair.server.resident_mib();
    let tls = TlsConnector::from(pair.tls.clone());
    let mut peers = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = connect(pair.exit).await?;
        let stream = tls.connect(pair.server_name.clone(), stream).await?;
        let mut connection = Kept::over(stream, &request(""));
        connection.answer().await?;
        peers.push(connection);
    }
    table.add(pair.name, IDLE_SERVER, each(&pair.server, before));
    Ok(())
}

/// What has become resident for each, in KiB.
fn each(process: &Process, before_mib: f64) -> f64 {
    (process.resident_mib() - before_mib) * 1024.0 / CONNECTIONS as f64
}
