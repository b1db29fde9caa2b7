//! The CA: certificates over kept connections, over a new connection each, and
//! with tokens that an API server has to judge; beside what the cryptography
//! alone takes on the same core.

mod reviewer;
mod storm;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use bulkhead_core::sidecar::TOKEN_AUDIENCE;
use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving;
use bulkhead_proto::generated::IstioCertificateRequest;
use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::namespace::{Namespace, a_pod};
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use rustls::ClientConfig;
use rustls::client::Resumption;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authority::{RunningCa, Tokens, id};
use crate::http1::connect;
use crate::load::{Caller, Latency, Throughput, at_rate, maximum};
use crate::process::CORE;
use crate::results::{Bound, Figure, Journal, Table, Target, say};
use crate::settings::Settings;

const CONNECTIONS: usize = 8;
const CALLS_PER_CONNECTION: usize = 4;
/// Different callers, each with a token and a request of its own.
const WORKLOADS: usize = 128;
/// Fewer, because each is a pod in an API server.
const PODS: usize = 24;
/// About as long as what is signed in a certificate.
const SIGNED_BYTES: usize = 512;

const MAXIMUM: Figure = figure("certificates/s", 0);
const PER_CPU: Figure = figure("per CPU second", 0);
const P50: Figure = figure("p50 at half of it, µs", 0);
const P99: Figure = figure("p99 at half of it, µs", 0);
const HELD_UP: Figure = figure("others had the core then, %", 1);
const MEMORY: Figure = figure("RSS, MiB", 1);

const RAW: &str = "raw P-256 verify + sign";
const KEPT: &str = "kept connections";
const NEW: &str = "a new connection each";
const REVIEWED: &str = "kept, TokenReview each";

const fn figure(name: &'static str, decimals: usize) -> Figure {
    Figure { name, decimals }
}

pub(crate) async fn run(settings: &Settings, journal: &mut Journal) -> Result<()> {
    let mut table = Table::new("ca", &[MAXIMUM, PER_CPU, P50, P99, HELD_UP, MEMORY]);
    by_key_file(settings, &mut table).await?;
    if settings.api_server {
        by_api_server(settings, &mut table).await?;
    } else {
        say(
            "there is no kube-apiserver here, so TokenReviews are not measured; `./scripts/test apiserver` builds one",
        );
    }
    let kept = table.median(KEPT, MAXIMUM);
    let raw = table.median(RAW, MAXIMUM);
    let (kept_cpu, raw_cpu) = (table.median(KEPT, PER_CPU), table.median(RAW, PER_CPU));
    let targets = [
        Target {
            what: "kept connections / raw signatures",
            value: kept.zip(raw).map(|(kept, raw)| kept / raw),
            bound: Bound::AtLeast(0.6),
        },
        Target {
            what: "the same by CPU time",
            value: kept_cpu.zip(raw_cpu).map(|(kept, raw)| kept / raw),
            bound: Bound::None,
        },
        Target {
            what: "certificates a second, a new connection each",
            value: table.median(NEW, MAXIMUM),
            bound: Bound::AtLeast(2_500.0),
        },
        Target {
            what: "certificates a second with TokenReviews",
            value: table.median(REVIEWED, MAXIMUM),
            bound: Bound::AtLeast(400.0),
        },
        Target {
            what: "p99 at half of the maximum, a new connection each, µs",
            value: table.median(NEW, P99),
            bound: Bound::AtMost(5_000.0),
        },
    ];
    journal.publish(&table, &targets)?;
    storm::run(settings, journal).await
}

/// Calls a second at which latencies are measured.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is a small positive number"
)]
fn half_of(most: Throughput) -> u32 {
    (most.per_second / 2.0) as u32
}

/// A small number, as a figure.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Tokens are judged by the issuer's keys in a file.
async fn by_key_file(settings: &Settings, table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let ca = RunningCa::start(settings, directory.path(), Tokens::Jwks).await?;
    let mut work = Vec::new();
    for number in 0..WORKLOADS {
        let account = format!("workload-{number}");
        let csr = csr::create(&PrivateKey::generate()?, Some(&id(&account)))?;
        work.push(Work::new(&ca.token(&account)?, csr)?);
    }
    let client = Client::new(&ca, work)?;
    let (warm_up, window) = (settings.warm_up, settings.window);
    for _ in 0..settings.rounds {
        let raw = raw_rates(settings.window / 2).await?;
        table.add(RAW, MAXIMUM, raw[0]);
        table.add(RAW, PER_CPU, raw[1]);
        let processes = [&ca.process];
        let most = maximum(client.kept().await?, warm_up, window, &processes).await?;
        add(table, KEPT, most);
        let latency = at_rate(
            client.kept().await?,
            half_of(most),
            warm_up,
            window,
            &processes,
        )
        .await?;
        add_latency(table, KEPT, &latency);
        let most = maximum(client.fresh(), warm_up, window, &processes).await?;
        add(table, NEW, most);
        let latency = at_rate(client.fresh(), half_of(most), warm_up, window, &processes).await?;
        add_latency(table, NEW, &latency);
    }
    Ok(())
}

/// Tokens are judged by a real API server, which shares the core with the load.
async fn by_api_server(settings: &Settings, table: &mut Table) -> Result<()> {
    let server = ApiServer::start().await?;
    let kubeconfig = server.admin_kubeconfig();
    let directory = tempfile::tempdir()?;
    let ca = RunningCa::start(settings, directory.path(), Tokens::ApiServer(&kubeconfig)).await?;
    let namespace = Namespace::create(&server.client().await, &[], &[]).await;
    let mut work = Vec::new();
    for number in 0..PODS {
        let account = format!("workload-{number}");
        namespace.create_service_account(&account).await;
        let pod = a_pod(&account).spec(json!({"serviceAccountName": account}));
        let pod = namespace.create_pod(&pod.build()).await?;
        let token = namespace.token(&account, Some(TOKEN_AUDIENCE), Some(&pod));
        let csr = csr::create(&PrivateKey::generate()?, None)?;
        work.push(Work::new(&token.await, csr)?);
    }
    let client = Client::new(&ca, work)?;
    for _ in 0..settings.rounds {
        let callers = client.kept().await?;
        let processes = [&ca.process];
        let most = maximum(callers, settings.warm_up, settings.window, &processes).await?;
        add(table, REVIEWED, most);
    }
    Ok(())
}

fn add(table: &mut Table, row: &'static str, most: Throughput) {
    table.add(row, MAXIMUM, most.per_second);
    table.add(row, PER_CPU, 10_000.0 / most.cpu_per_10k());
    table.add(row, MEMORY, most.resident_mib);
}

fn add_latency(table: &mut Table, row: &'static str, latency: &Latency) {
    table.add(row, P50, latency.percentile(50));
    table.add(row, P99, latency.percentile(99));
    table.add(row, HELD_UP, latency.held_up * 100.0);
}

/// What one caller sends, made beforehand.
struct Work {
    authorization: HeaderValue,
    message: Bytes,
}

impl Work {
    fn new(token: &str, csr: String) -> Result<Self> {
        let request = IstioCertificateRequest {
            csr,
            ..IstioCertificateRequest::default()
        };
        let length = u32::try_from(request.encoded_len())?;
        // Not compressed, and how long it is: gRPC over HTTP/2.
        let mut message = [&[0], length.to_be_bytes().as_slice()].concat();
        request.encode(&mut message)?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}"))?;
        authorization.set_sensitive(true);
        Ok(Self {
            authorization,
            message: message.into(),
        })
    }

    /// Calls, and returns the trailers, or the headers where they are all.
    async fn send(&self, sender: &mut SendRequest<Full<Bytes>>) -> Result<HeaderMap> {
        let request =
            Request::post("https://ca/istio.v1.auth.IstioCertificateService/CreateCertificate")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", self.authorization.clone())
                .body(Full::new(self.message.clone()))?;
        sender.ready().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        Ok(body.trailers().cloned().unwrap_or(head.headers))
    }
}

/// How to reach the CA.
#[derive(Clone)]
struct Client {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    work: Rc<[Work]>,
}

impl Client {
    fn new(ca: &RunningCa, work: Vec<Work>) -> Result<Self> {
        // One signature less for this side to verify than from the root on: the
        // server's work is the same, and this core must not be what is measured.
        let tls = serving::client_config(&ca.intermediate()?, ["h2"])?;
        let mut tls = ClientConfig::clone(&tls);
        // Workloads that start have no session to resume.
        tls.resumption = Resumption::disabled();
        Ok(Self {
            address: ca.address,
            tls: Arc::new(tls),
            work: work.into(),
        })
    }

    async fn kept(&self) -> Result<Vec<Kept>> {
        let mut callers = Vec::new();
        for _ in 0..CONNECTIONS {
            let sender = self.connect().await?;
            for _ in 0..CALLS_PER_CONNECTION {
                callers.push(Kept {
                    sender: sender.clone(),
                    turn: Turn::new(self, callers.len()),
                });
            }
        }
        Ok(callers)
    }

    fn fresh(&self) -> Vec<Fresh> {
        let caller = |number| Fresh {
            client: self.clone(),
            turn: Turn::new(self, number),
        };
        (0..CONNECTIONS * CALLS_PER_CONNECTION)
            .map(caller)
            .collect()
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        self.over(connect(self.address).await?).await
    }

    async fn over(&self, stream: TcpStream) -> Result<SendRequest<Full<Bytes>>> {
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(self.address.ip().into(), stream).await?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Whose work is next.
struct Turn {
    work: Rc<[Work]>,
    next: usize,
}

impl Turn {
    fn new(client: &Client, first: usize) -> Self {
        Self {
            work: Rc::clone(&client.work),
            next: first,
        }
    }

    async fn call(&mut self, sender: &mut SendRequest<Full<Bytes>>) -> Result<()> {
        let work = &self.work[self.next % self.work.len()];
        self.next += 1;
        let answer = work.send(sender).await?;
        let status = status_of(&answer)?;
        ensure!(status == "0", "no certificate: {answer:?}");
        Ok(())
    }
}

/// The status of a call, by its trailers or, where there was no answer, by its
/// headers.
fn status_of(answer: &HeaderMap) -> Result<&str> {
    let status = answer.get("grpc-status").context("there is no status")?;
    Ok(status.to_str()?)
}

/// Calls over a kept connection.
struct Kept {
    sender: SendRequest<Full<Bytes>>,
    turn: Turn,
}

impl Caller for Kept {
    async fn call(&mut self) -> Result<()> {
        self.turn.call(&mut self.sender).await
    }
}

/// Calls over a new connection each.
struct Fresh {
    client: Client,
    turn: Turn,
}

impl Caller for Fresh {
    async fn call(&mut self) -> Result<()> {
        let mut sender = self.client.connect().await?;
        self.turn.call(&mut sender).await
    }
}

/// How many signatures the CA's core verifies and makes with nothing around
/// it, while the other core does the same: in a second, and in a second of CPU time.
async fn raw_rates(time: Duration) -> Result<[f64; 2]> {
    let this = std::env::current_exe()?;
    let arguments = ["--raw-signatures".to_owned(), time.as_millis().to_string()];
    let mut asked = tokio::process::Command::new("taskset");
    asked.args(["--cpu-list", CORE]).arg(&this).args(&arguments);
    // The CA's callers are busy on this process's core while it works, and two cores of
    // a virtual machine may be the two threads of one.
    let mut beside = tokio::process::Command::new(&this);
    beside.args(&arguments);
    let (asked, beside) = tokio::join!(asked.output(), beside.output());
    beside?;
    let text = String::from_utf8(asked?.stdout)?;
    let rates: Vec<f64> = text
        .split_whitespace()
        .filter_map(|rate| rate.parse().ok())
        .collect();
    let rates = rates.try_into();
    rates.map_err(|_| anyhow!("measuring signatures said {text:?}"))
}

/// Verifies a signature and makes one, again and again, and prints how often in
/// a second, and how often in a second of CPU time.
pub(crate) fn print_raw_rates(time: Duration) -> Result<()> {
    let random = SystemRandom::new();
    let unspecified = |_| anyhow!("the cryptography failed");
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(unspecified)?;
    let public = key.public_key().as_ref();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public);
    let message = [7; SIGNED_BYTES];
    let mut signature = key.sign(&random, &message).map_err(unspecified)?;
    let (start, busy, mut done) = (Instant::now(), own_cpu_seconds()?, 0_u32);
    while start.elapsed() < time {
        public
            .verify(&message, signature.as_ref())
            .map_err(unspecified)?;
        signature = key.sign(&random, &message).map_err(unspecified)?;
        done += 1;
    }
    let (took, busy) = (start.elapsed().as_secs_f64(), own_cpu_seconds()? - busy);
    say(&format!(
        "{} {}",
        f64::from(done) / took,
        f64::from(done) / busy
    ));
    Ok(())
}

fn own_cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds = text.split(' ').next().unwrap_or_default();
    Ok(nanoseconds.parse::<f64>()? / 1e9)
}
