//! The webhook: reviews of a pod with three containers and probes, over kept
//! TLS connections, as an API server asks.

use std::sync::Arc;

use anyhow::Result;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving::{self, ServerName, ServingAuthority};
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::ports::free_address;
use rustls::ClientConfig;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::http1::{Kept, connect};
use crate::load::{at_rate, maximum};
use crate::process::Process;
use crate::results::{Bound, Figure, Journal, Table, Target};
use crate::settings::Settings;

/// As many as an API server keeps.
const CONNECTIONS: usize = 25;
/// Pods a second: the target.
const GOAL: u32 = 6_000;
const REVIEW: &str = include_str!("webhook/review.json");

const MAXIMUM: Figure = figure("pods/s", 0);
const PER_CPU: Figure = figure("pods per CPU second", 0);
const P50: Figure = figure("p50 at 3,000/s, µs", 0);
const P99: Figure = figure("p99 at 3,000/s, µs", 0);
const MEMORY: Figure = figure("RSS, MiB", 1);

const fn figure(name: &'static str, decimals: usize) -> Figure {
    Figure { name, decimals }
}

pub(crate) async fn run(settings: &Settings, journal: &mut Journal) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let webhook = Webhook::start(settings, directory.path()).await?;
    let mut table = Table::new("webhook", &[MAXIMUM, PER_CPU, P50, P99, MEMORY]);
    let name = "bulkhead-webhook";
    let processes = [&webhook.process];
    for _ in 0..settings.rounds {
        let callers = webhook.callers().await?;
        let most = maximum(callers, settings.warm_up, settings.window, &processes).await?;
        table.add(name, MAXIMUM, most.per_second);
        table.add(name, PER_CPU, 10_000.0 / most.cpu_per_10k());
        table.add(name, MEMORY, most.resident_mib);
        let callers = webhook.callers().await?;
        let (warm_up, window) = (settings.warm_up, settings.window);
        let latency = at_rate(callers, GOAL / 2, warm_up, window, &processes).await?;
        table.add(name, P50, latency.percentile(50));
        table.add(name, P99, latency.percentile(99));
    }
    let targets = [
        Target {
            what: "pods a second",
            value: table.median(name, MAXIMUM),
            bound: Bound::AtLeast(f64::from(GOAL)),
        },
        Target {
            what: "p99 at half the target's rate, µs",
            value: table.median(name, P99),
            bound: Bound::AtMost(1_000.0),
        },
    ];
    journal.publish(&table, &targets)
}

/// The running program, told of its namespaces by a file and of its certificate
/// by three.
struct Webhook {
    process: Process,
    address: std::net::SocketAddr,
    tls: Arc<ClientConfig>,
    request: Arc<[u8]>,
}

impl Webhook {
    async fn start(settings: &Settings, directory: &std::path::Path) -> Result<Self> {
        let address = free_address()?;
        let lifetime = std::time::Duration::from_secs(24 * 3600);
        let now = Clock::system().now();
        let authority = ServingAuthority::new("bench", lifetime, now)?;
        let names = [ServerName::Ip(address.ip())];
        let certificate = authority.issue(&names, lifetime, now)?;
        let namespaces = json!({"items": [{
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "shop", "labels": {"bulkhead.io/inject": "enabled"}},
        }]});
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text)?;
            anyhow::Ok(path.display().to_string())
        };
        let authority = authority.certificate().to_pem();
        let environment = [
            (
                "BULKHEAD_WEBHOOK_PROXY_IMAGE",
                "bulkhead-proxy:1".to_owned(),
            ),
            ("BULKHEAD_WEBHOOK_ADDRESS", address.to_string()),
            (
                "BULKHEAD_WEBHOOK_MONITORING_ADDRESS",
                free_address()?.to_string(),
            ),
            ("BULKHEAD_WEBHOOK_URL", format!("https://{address}")),
            (
                "BULKHEAD_WEBHOOK_NAMESPACES",
                write("namespaces.json", &namespaces.to_string())?,
            ),
            (
                "BULKHEAD_WEBHOOK_TLS_CERT",
                write("tls.crt", &certificate.chain_pem())?,
            ),
            (
                "BULKHEAD_WEBHOOK_TLS_KEY",
                write("tls.key", &certificate.key().to_pem()?)?,
            ),
            ("BULKHEAD_WEBHOOK_TLS_CA", write("ca.crt", &authority)?),
        ];
        let request = format!(
            "POST /inject?timeout=10s HTTP/1.1\r\nhost: {address}\r\n\
             content-type: application/json\r\naccept: application/json\r\n\
             user-agent: kube-apiserver-admission\r\ncontent-length: {}\r\n\r\n{REVIEW}",
            REVIEW.len()
        );
        let program = settings.programs.join("bulkhead-webhook");
        let mut webhook = Self {
            process: Process::start(&program, directory, &[], &environment)?,
            address,
            tls: serving::client_config(&Roots::from_pem(&authority)?, ["http/1.1"])?,
            request: request.into_bytes().into(),
        };
        let (tls, request) = (Arc::clone(&webhook.tls), Arc::clone(&webhook.request));
        let caller = async || {
            let mut caller = connect_tls(address, &tls, &request).await?;
            // The pod gets its sidecar; what is measured is not a refusal.
            let answer = caller.answer().await?;
            anyhow::ensure!(
                answer
                    .windows(12)
                    .any(|part| part == b"\"JSONPatch\"}" || part == b"\"JSONPatch\","),
                "the pod was not injected: {}",
                String::from_utf8_lossy(answer)
            );
            Ok(())
        };
        webhook.process.ready(caller).await?;
        Ok(webhook)
    }

    async fn callers(&self) -> Result<Vec<Kept<TlsStream<TcpStream>>>> {
        let mut callers = Vec::new();
        for _ in 0..CONNECTIONS {
            callers.push(connect_tls(self.address, &self.tls, &self.request).await?);
        }
        Ok(callers)
    }
}

async fn connect_tls(
    address: std::net::SocketAddr,
    tls: &Arc<ClientConfig>,
    request: &Arc<[u8]>,
) -> Result<Kept<TlsStream<TcpStream>>> {
    let stream = connect(address).await?;
    let connector = TlsConnector::from(Arc::clone(tls));
    let stream = connector.connect(address.ip().into(), stream).await?;
    Ok(Kept::over(stream, request))
}
