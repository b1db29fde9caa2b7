//! The proxy: requests through a client's and a server's proxy with mutual TLS
//! between them, beside what nginx, haproxy and Envoy take for the same.
//!
//! ```text
//!  load ─HTTP/1.1, gRPC─▶ client proxy ═mTLS═▶ server proxy ─▶ app
//!  core 0                 core 1               core 1          core 0
//! ```
//!
//! - `ours`, `nginx`, `haproxy`, `envoy`: a pair of each.
//! - `handshakes`: with the server's proxy alone, in full and resumed.
//! - `idle`: what connections cost that say nothing.
//! - `instructions`: how many ours executes.
//! - `targets`: ours beside the others.

mod envoy;
mod handshakes;
mod haproxy;
mod idle;
pub(crate) mod instructions;
mod nginx;
mod ours;
mod targets;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;

use crate::authority::{RunningCa, Tokens};
use crate::grpc::Unary;
use crate::http1::{BULK_PATH, Bulk, Fresh, Kept, connect, start_app};
use crate::load::{Caller as _, at_rate, largest, maximum};
use crate::process::Process;
use crate::results::{Figure, Journal, Table, say};
use crate::settings::Settings;
use crate::stillness::Stillness;

const CONNECTIONS: usize = 64;
/// Of gRPC, with as many calls at a time on each as make up the same number.
const GRPC_CONNECTIONS: usize = 8;
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
const RESUMED: Figure = figure("server CPU ms/resumed", 3);
const BULK: Figure = figure("bulk MiB/s", 0);
const GRPC: Figure = figure("gRPC calls/s", 0);
const CPU_GRPC: Figure = figure("CPU s/10k gRPC", 2);
const IDLE: Figure = figure("RSS idle", 1);
const LOADED: Figure = figure("RSS loaded", 1);
const IDLE_CLIENT: Figure = figure("KiB/idle conn, client", 1);
const IDLE_SERVER: Figure = figure("KiB/idle conn, server", 1);
const START: Figure = figure("exec to ready ms", 1);
const SIZE: Figure = figure("stripped MiB", 2);

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
    /// The same for gRPC, where it is spoken.
    grpc_entry: Option<SocketAddr>,
    /// Where the server's proxy listens, and how a client handshakes with it in
    /// full.
    exit: SocketAddr,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl Pair {
    fn processes(&self) -> [&Process; 2] {
        [&self.client, &self.server]
    }

    /// Waits until a request through the pair is answered.
    async fn until_answered(&mut self) -> Result<()> {
        let (entry, exit) = (self.entry, self.exit);
        let attempt = async || Kept::connect(entry, &request("")).await?.call().await;
        // Whichever of the two has ended, its log says why.
        self.server.ready(async || connect(exit).await).await?;
        self.client.ready(attempt).await
    }
}

/// What a pair is started with.
struct Ground<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    ca: &'a RunningCa,
    app: SocketAddr,
    /// What our proxies run under to have their instructions counted.
    valgrind: Option<&'a Path>,
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
        app: start_app(Stillness::default()).await?,
        valgrind: None,
    };
    let pairs = start_pairs(&ground).await?;
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
            RESUMED,
            BULK,
            GRPC,
            CPU_GRPC,
            IDLE,
            LOADED,
            IDLE_CLIENT,
            IDLE_SERVER,
            START,
            SIZE,
        ],
    );
    for pair in &pairs {
        table.add(pair.name, IDLE, largest(&pair.processes()));
    }
    for round in 1..=settings.rounds {
        say(&format!("round {round} of {}", settings.rounds));
        let direct = measure_path(&ground, DIRECT, ground.app, &[], &mut table).await?;
        measure_grpc(&ground, DIRECT, ground.app, &[], &mut table).await?;
        for pair in &pairs {
            let measured = measure_pair(&ground, pair, direct, &mut table).await;
            measured.with_context(|| format!("measuring {}", pair.name))?;
        }
        table.add(ours::L7, START, ours::start_time(&ground).await?);
    }
    for pair in &pairs {
        let measured = idle::measure(pair, &mut table).await;
        measured.with_context(|| format!("measuring idle connections of {}", pair.name))?;
    }
    let program = settings.proxy();
    let size = std::fs::metadata(&program)
        .with_context(|| format!("looking at {}", program.display()))?
        .len();
    table.add(
        ours::L7,
        SIZE,
        u32::try_from(size).map(f64::from)? / f64::from(1 << 20),
    );
    journal.publish(&table, &targets::all(&table))
}

async fn start_pairs(ground: &Ground<'_>) -> Result<Vec<Pair>> {
    let settings = ground.settings;
    let mut pairs = Vec::new();
    for layer in [Layer::L7, Layer::L4] {
        pairs.push(ours::start(ground, layer).await?);
        if let Some(program) = &settings.nginx {
            pairs.push(nginx::start(ground, program, layer).await?);
        }
        if let Some(program) = &settings.haproxy {
            pairs.push(haproxy::start(ground, program, layer).await?);
        }
        if let Some(program) = &settings.envoy {
            pairs.push(envoy::start(ground, program, layer).await?);
        }
    }
    Ok(pairs)
}

/// One round of a pair, beside the latency without proxies.
async fn measure_pair(
    ground: &Ground<'_>,
    pair: &Pair,
    direct: (f64, f64),
    table: &mut Table,
) -> Result<()> {
    let processes = pair.processes();
    let latency = measure_path(ground, pair.name, pair.entry, &processes, table).await?;
    table.add(pair.name, ADDED_P50, latency.0 - direct.0);
    table.add(pair.name, ADDED_P99, latency.1 - direct.1);
    if let Some(entry) = pair.grpc_entry {
        let measured = measure_grpc(ground, pair.name, entry, &processes, table).await;
        measured.context("gRPC")?;
    }
    let measured = handshakes::measure(ground, pair, table).await;
    measured.context("handshakes")
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
    let bulk = Bulk::connect(entry, &request_for(BULK_PATH, "")).await?;
    let bulk = maximum(vec![bulk], warm_up / 2, window / 2, processes).await?;
    let mib = Bulk::CALL as f64 / f64::from(1 << 20);
    table.add(name, BULK, bulk.per_second * mib);
    if !processes.is_empty() {
        table.add(name, CPU_MAXIMUM, most.cpu_per_10k());
        table.add(name, LOADED, most.resident_mib);
        table.add(name, CPU_RATE, latency.cpu_per_10k);
        table.add(name, CPU_NEW, new.cpu.iter().sum::<f64>() * 1_000.0);
    }
    Ok((latency.percentile(50), latency.percentile(99)))
}

async fn measure_grpc(
    ground: &Ground<'_>,
    name: &'static str,
    entry: SocketAddr,
    processes: &[&Process],
    table: &mut Table,
) -> Result<()> {
    let streams = CONNECTIONS / GRPC_CONNECTIONS;
    let callers = Unary::connect(entry, GRPC_CONNECTIONS, streams).await?;
    let (warm_up, window) = (ground.settings.warm_up, ground.settings.window);
    let calls = maximum(callers, warm_up, window, processes).await?;
    table.add(name, GRPC, calls.per_second);
    if !processes.is_empty() {
        table.add(name, CPU_GRPC, calls.cpu_per_10k());
    }
    Ok(())
}

async fn kept(entry: SocketAddr) -> Result<Vec<Kept<tokio::net::TcpStream>>> {
    let mut callers = Vec::new();
    for _ in 0..CONNECTIONS {
        callers.push(Kept::connect(entry, &request("")).await?);
    }
    Ok(callers)
}

fn request(also: &str) -> Arc<[u8]> {
    request_for("/items/1", also)
}

fn request_for(path: &str, also: &str) -> Arc<[u8]> {
    let text = format!(
        "GET {path} HTTP/1.1\r\nhost: server.bench\r\nuser-agent: bulkhead-bench\r\n\
         accept: */*\r\n{also}\r\n"
    );
    text.into_bytes().into()
}
