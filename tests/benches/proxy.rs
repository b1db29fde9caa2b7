//! The proxy: requests through a client's and a server's proxy with mutual TLS
//! between them, beside what nginx and Envoy take for the same.
//!
//! ```text
//!  load ─HTTP/1.1─▶ client proxy ═mTLS═▶ server proxy ─HTTP/1.1─▶ app
//!  core 0           core 1               core 1                   core 0
//! ```

mod envoy;
mod nginx;
mod ours;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::authority::{RunningCa, Tokens};
use crate::http1::{Fresh, Kept, connect, start_app};
use crate::load::{Caller, at_rate, largest, maximum};
use crate::process::Process;
use crate::results::{Bound, Figure, Journal, Table, Target, say};
use crate::settings::Settings;

const CONNECTIONS: usize = 64;
/// How many make new connections, or handshakes, at a time.
const CONNECTING: usize = 16;
/// Requests a second for latencies.
const RATE: u32 = 2_000;

/// The accounts of the two ends.
const CLIENT: &str = "client";
const SERVER: &str = "server";

const MAXIMUM: Figure = figure("requests/s", 0);
const CPU_MAXIMUM: Figure = figure("CPU s/10k at max", 2);
const ADDED_P50: Figure = figure("added p50 µs", 0);
const ADDED_P99: Figure = figure("added p99 µs", 0);
const CPU_RATE: Figure = figure("CPU s/10k at 2,000/s", 2);
const NEW: Figure = figure("new conns/s", 0);
const CPU_NEW: Figure = figure("CPU ms/new conn", 3);
const HANDSHAKE: Figure = figure("server CPU ms/handshake", 3);
const IDLE: Figure = figure("RSS idle", 1);
const LOADED: Figure = figure("RSS loaded", 1);

const DIRECT: &str = "direct";

const fn figure(name: &'static str, decimals: usize) -> Figure {
    Figure { name, decimals }
}

/// Whether a proxy reads the requests that it forwards.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Layer {
    /// It forwards bytes.
    L4,
    /// It forwards requests.
    L7,
}

/// A client's and a server's proxy of one kind.
struct Pair {
    name: &'static str,
    client: Process,
    server: Process,
    /// Where the client's application would connect.
    entry: SocketAddr,
    /// Where the server's proxy listens, and how a client handshakes with it in
    /// full.
    exit: SocketAddr,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

/// What a pair is started with.
struct Ground<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    ca: &'a RunningCa,
    app: SocketAddr,
}

impl Ground<'_> {
    /// For clients that expect the server's SPIFFE ID, and resume no session.
    fn workload_tls(&self) -> Result<Arc<ClientConfig>> {
        let identity = self.ca.identity(CLIENT)?;
        let inside = bulkhead_core::protocol::Protocol::Http1;
        let offers = bulkhead_core::alpn::client_offers(inside);
        let config =
            identity.client_config(&crate::authority::id(SERVER), offers.iter().copied())?;
        let mut config = ClientConfig::clone(&config);
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

pub(crate) async fn run(settings: &Settings, journal: &mut Journal) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ca = RunningCa::start(settings, directory.path(), Tokens::Jwks).await?;
    let ground = Ground {
        settings,
        directory: directory.path(),
        ca: &ca,
        app: start_app().await?,
    };
    let mut pairs = Vec::new();
    for layer in [Layer::L7, Layer::L4] {
        pairs.push(ours::start(&ground, layer).await?);
        if let Some(program) = &settings.nginx {
            pairs.push(nginx::start(&ground, program, layer).await?);
        }
        if let Some(program) = &settings.envoy {
            pairs.push(envoy::start(&ground, program, layer).await?);
        }
    }
    let mut table = Table::new(
        "proxy",
        &[
            MAXIMUM,
            CPU_MAXIMUM,
            ADDED_P50,
            ADDED_P99,
            CPU_RATE,
            NEW,
            CPU_NEW,
            HANDSHAKE,
            IDLE,
            LOADED,
        ],
    );
    for pair in &pairs {
        table.add(pair.name, IDLE, largest(&[&pair.client, &pair.server]));
    }
    for round in 1..=settings.rounds {
        say(&format!("round {round} of {}", settings.rounds));
        let direct = measure_path(&ground, DIRECT, ground.app, &[], &mut table).await?;
        for pair in &pairs {
            let processes = [&pair.client, &pair.server];
            let latency = measure_path(&ground, pair.name, pair.entry, &processes, &mut table);
            let latency = latency.await?;
            table.add(pair.name, ADDED_P50, latency.0 - direct.0);
            table.add(pair.name, ADDED_P99, latency.1 - direct.1);
            measure_handshakes(&ground, pair, &mut table).await?;
        }
    }
    journal.publish(&table, &comparisons(&table))
}

/// What is asked of every way to the application; the median and the 99th
/// percentile of its latency.
async fn measure_path(
    ground: &Ground<'_>,
    name: &'static str,
    entry: SocketAddr,
    processes: &[&Process],
    table: &mut Table,
) -> Result<(f64, f64)> {
    let (warm_up, window) = (ground.settings.warm_up, ground.settings.window);
    let most = maximum(kept(entry).await?, warm_up, window, processes).await?;
    table.add(name, MAXIMUM, most.per_second);
    let latency = at_rate(kept(entry).await?, RATE, warm_up, window, processes).await?;
    let callers = (0..CONNECTING).map(|_| Fresh {
        address: entry,
        request: request("connection: close\r\n"),
    });
    let new = maximum(callers.collect(), warm_up / 2, window / 2, processes).await?;
    table.add(name, NEW, new.per_second);
    if !processes.is_empty() {
        table.add(name, CPU_MAXIMUM, most.cpu_per_10k());
        table.add(name, LOADED, most.resident_mib);
        table.add(name, CPU_RATE, latency.cpu_per_10k);
        table.add(name, CPU_NEW, new.cpu.iter().sum::<f64>() * 1_000.0);
    }
    Ok((latency.percentile(50), latency.percentile(99)))
}

/// Full mutual handshakes with the server's proxy alone, each with one request,
/// which is what shows that the server has verified its client.
async fn measure_handshakes(ground: &Ground<'_>, pair: &Pair, table: &mut Table) -> Result<()> {
    let callers = (0..CONNECTING).map(|_| Handshake {
        address: pair.exit,
        server_name: pair.server_name.clone(),
        tls: TlsConnector::from(Arc::clone(&pair.tls)),
        request: request("connection: close\r\n"),
    });
    let (warm_up, window) = (ground.settings.warm_up / 2, ground.settings.window / 2);
    let made = maximum(callers.collect(), warm_up, window, &[&pair.server]).await?;
    table.add(pair.name, HANDSHAKE, made.cpu[0] * 1_000.0);
    Ok(())
}

struct Handshake {
    address: SocketAddr,
    server_name: ServerName<'static>,
    tls: TlsConnector,
    request: Arc<[u8]>,
}

impl Caller for Handshake {
    async fn call(&mut self) -> Result<()> {
        let stream = connect(self.address).await?;
        let stream = self.tls.connect(self.server_name.clone(), stream).await?;
        Kept::over(stream, &self.request).call().await
    }
}

async fn kept(entry: SocketAddr) -> Result<Vec<Kept<tokio::net::TcpStream>>> {
    let mut callers = Vec::new();
    for _ in 0..CONNECTIONS {
        callers.push(Kept::connect(entry, &request("")).await?);
    }
    Ok(callers)
}

fn request(also: &str) -> Arc<[u8]> {
    let text = format!(
        "GET /items/1 HTTP/1.1\r\nhost: server.bench\r\nuser-agent: bulkhead-bench\r\n\
         accept: */*\r\n{also}\r\n"
    );
    text.into_bytes().into()
}

/// Waits until a request through a pair is answered.
async fn until_answered(pair: &mut Pair) -> Result<()> {
    let entry = pair.entry;
    let attempt = async || Kept::connect(entry, &request("")).await?.call().await;
    // Whichever of the two has ended, its log says why.
    pair.server.ready(async || connect(pair.exit).await).await?;
    pair.client.ready(attempt).await
}

/// Ours beside the others.
fn comparisons(table: &Table) -> Vec<Target> {
    let mut all = Vec::new();
    for (what, figure, ours, theirs) in [
        (
            "requests/s, ours L7 / nginx L7",
            MAXIMUM,
            ours::L7,
            nginx::L7,
        ),
        (
            "requests/s, ours L7 / Envoy L7",
            MAXIMUM,
            ours::L7,
            envoy::L7,
        ),
        (
            "requests/s, ours L4 / nginx L4",
            MAXIMUM,
            ours::L4,
            nginx::L4,
        ),
        (
            "requests/s, ours L4 / Envoy L4",
            MAXIMUM,
            ours::L4,
            envoy::L4,
        ),
        (
            "added p50, ours L7 / nginx L7",
            ADDED_P50,
            ours::L7,
            nginx::L7,
        ),
        (
            "added p99, ours L7 / nginx L7",
            ADDED_P99,
            ours::L7,
            nginx::L7,
        ),
        (
            "added p99, ours L7 / Envoy L7",
            ADDED_P99,
            ours::L7,
            envoy::L7,
        ),
        (
            "added p99, ours L4 / nginx L4",
            ADDED_P99,
            ours::L4,
            nginx::L4,
        ),
        (
            "CPU at 2,000/s, ours L7 / nginx L7",
            CPU_RATE,
            ours::L7,
            nginx::L7,
        ),
        (
            "CPU at maximum, ours L7 / nginx L7",
            CPU_MAXIMUM,
            ours::L7,
            nginx::L7,
        ),
        (
            "CPU at 2,000/s, ours L4 / nginx L4",
            CPU_RATE,
            ours::L4,
            nginx::L4,
        ),
        (
            "new connections/s, ours L7 / nginx L7",
            NEW,
            ours::L7,
            nginx::L7,
        ),
        (
            "new connections/s, ours L4 / nginx L4",
            NEW,
            ours::L4,
            nginx::L4,
        ),
    ] {
        let (mine, others) = (table.median(ours, figure), table.median(theirs, figure));
        all.push(Target {
            what,
            value: mine.zip(others).map(|(mine, others)| mine / others),
            bound: Bound::None,
        });
    }
    all
}
