//! Ten thousand pods at once: after a restart of everything, and with an API
//! server that is slow and fails meanwhile.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_runtime::backoff::{Backoff, jitter};
use http::HeaderMap;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::reviewer::Reviewer;
use super::{Client, Work, status_of};
use crate::authority::{RunningCa, Tokens};
use crate::results::{Bound, Figure, Journal, Table, Target};
use crate::settings::Settings;

const PODS: usize = 10_000;
/// Pods come from so many addresses, as those of a cluster's nodes.
const NODES: usize = 100;
/// How long a client gives a call, its connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// When a call failed without a word about when to come again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How often it is asked whether the CA is ready.
const PROBE_EVERY: Duration = Duration::from_millis(50);

const ALL: Figure = super::figure("all certified after, s", 1);
const HALF: Figure = super::figure("half after, s", 1);
const TOLD: Figure = super::figure("told to come again", 0);
const FAILED: Figure = super::figure("failed otherwise", 0);
const PROBE: Figure = super::figure("slowest /ready, ms", 0);
const IDLE: Figure = super::figure("RSS idle, MiB", 1);
const PEAK: Figure = super::figure("RSS at most, MiB", 1);

const RESTART: &str = "10,000 pods restarted";
const COLD: &str = "10,000 pods, API server slow and failing";

/// Once each: they are long, and what they say is not a matter of microseconds.
pub(super) async fn run(settings: &Settings, journal: &mut Journal) -> Result<()> {
    let mut table = Table::new("ca storm", &[ALL, HALF, TOLD, FAILED, PROBE, IDLE, PEAK]);
    restart(settings, &mut table).await?;
    cold_start(settings, &mut table).await?;
    let at_most = |what, contestant, figure, limit| Target {
        what,
        value: table.median(contestant, figure),
        bound: Bound::AtMost(limit),
    };
    let targets = [
        at_most("seconds until all are certified", RESTART, ALL, 30.0),
        at_most("MiB idle", RESTART, IDLE, 10.0),
        at_most("MiB in the storm", RESTART, PEAK, 100.0),
        at_most("MiB in the cold start", COLD, PEAK, 100.0),
        at_most("slowest /ready in the storm, ms", RESTART, PROBE, 100.0),
        at_most("slowest /ready in the cold start, ms", COLD, PROBE, 100.0),
        Target {
            what: "seconds until a cold start is over",
            value: table.median(COLD, ALL),
            bound: Bound::None,
        },
    ];
    journal.publish(&table, &targets)
}

/// All pods restart; their tokens are judged by a key.
async fn restart(settings: &Settings, table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ca = RunningCa::start(settings, directory.path(), Tokens::Jwks).await?;
    let token = |number| ca.token(&format!("pod-{number}"));
    storm(&ca, RESTART, token, table).await
}

/// A whole cluster starts; the API server has to judge every token, and is slow
/// and fails meanwhile.
async fn cold_start(settings: &Settings, table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let reviewer = Reviewer::start().await?;
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, reviewer.kubeconfig())?;
    let tokens = Tokens::ApiServer(Path::new(&kubeconfig));
    let ca = RunningCa::start(settings, directory.path(), tokens).await?;
    reviewer.begin();
    storm(&ca, COLD, |number| Ok(Reviewer::token(number)), table).await
}

async fn storm(
    ca: &RunningCa,
    row: &'static str,
    token: impl Fn(usize) -> Result<String>,
    table: &mut Table,
) -> Result<()> {
    let csr = csr::create(&PrivateKey::generate()?, None)?;
    let work: Result<Vec<_>> = (0..PODS)
        .map(|number| Work::new(&token(number)?, csr.clone()))
        .collect();
    let client = Client::new(ca, work?)?;
    table.add(row, IDLE, ca.process.resident_mib());
    let counts = Rc::new(Counts::default());
    let mut pods = JoinSet::new();
    let began = Instant::now();
    for number in 0..PODS {
        let pod = Pod {
            number,
            client: client.clone(),
            counts: Rc::clone(&counts),
        };
        pods.spawn_local(pod.until_certified());
    }
    let mut slowest = Duration::ZERO;
    let mut half = None;
    while counts.certified.get() < PODS {
        slowest = slowest.max(probe(ca.monitoring).await?);
        if counts.certified.get() >= PODS / 2 {
            half.get_or_insert_with(|| began.elapsed());
        }
        ensure!(
            began.elapsed() < Duration::from_secs(600),
            "the storm does not end"
        );
    }
    let all = began.elapsed();
    pods.join_all().await;
    table.add(row, ALL, all.as_secs_f64());
    table.add(row, HALF, half.unwrap_or(all).as_secs_f64());
    table.add(row, TOLD, super::count(counts.told.get()));
    table.add(row, FAILED, super::count(counts.failed.get()));
    table.add(row, PROBE, slowest.as_secs_f64() * 1000.0);
    table.add(row, PEAK, ca.process.peak_mib());
    Ok(())
}

/// How long `/ready` takes, over a new connection as kubelet makes one. The wait
/// for this process's own turn is not in it.
async fn probe(monitoring: SocketAddr) -> Result<Duration> {
    sleep(PROBE_EVERY).await;
    let took = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let began = std::time::Instant::now();
        let mut stream = std::net::TcpStream::connect(monitoring)?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "not ready: {answer}");
        Ok(began.elapsed())
    });
    took.await?
}

/// What happened so far.
#[derive(Default)]
struct Counts {
    certified: Cell<usize>,
    told: Cell<usize>,
    failed: Cell<usize>,
}

/// A client that has no certificate and does as it is told.
struct Pod {
    number: usize,
    client: Client,
    counts: Rc<Counts>,
}

impl Pod {
    async fn until_certified(self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let add = |count: &Cell<usize>| count.set(count.get() + 1);
            let wait = match timeout(CALL_TIMEOUT, self.call()).await {
                Ok(Ok(None)) => {
                    add(&self.counts.certified);
                    return;
                }
                Ok(Ok(Some(delay))) => {
                    add(&self.counts.told);
                    delay
                }
                Ok(Err(_)) | Err(_) => {
                    add(&self.counts.failed);
                    backoff.after_failure(jitter())
                }
            };
            sleep(wait).await;
        }
    }

    /// Nothing where there is a certificate now, else when to come again.
    async fn call(&self) -> Result<Option<Duration>> {
        let node = u8::try_from(self.number % NODES).context("there are few nodes")?;
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 1, node + 1), 0)))?;
        let stream = socket.connect(self.client.address).await?;
        let mut sender = self.client.over(stream).await?;
        let answer = self.client.work[self.number].send(&mut sender).await?;
        let status = status_of(&answer)?;
        if status == "0" {
            return Ok(None);
        }
        let delay = pushback(&answer).with_context(|| format!("refused with {status}"))?;
        Ok(Some(delay))
    }
}

fn pushback(answer: &HeaderMap) -> Option<Duration> {
    let milliseconds = answer.get("grpc-retry-pushback-ms")?.to_str().ok()?;
    Some(Duration::from_millis(milliseconds.parse().ok()?))
}
