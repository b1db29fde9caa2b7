//! What the proxy counts, under the names that Istio's dashboards query.
//!
//! Labels are bounded at the source: workloads and verified identities, never a
//! path, a host or anything else that a stranger chooses. The labels of a
//! connection are resolved once; a request only adds to what was found.

mod connections;
mod memory;
mod process;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_core::identity::SpiffeId;
use bulkhead_core::reason::Reason;
use bulkhead_core::sidecar::SidecarConfig;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::access_log::{self, AccessLog, Line};
use crate::copy::{Meter, Passed};
use crate::failure::Failure;
use crate::http1::head::RequestHead;
pub(crate) use connections::Connections;
use connections::Listed;
pub(crate) use memory::MemoryMetrics;
pub(crate) use process::ProcessMetrics;

/// Istio's buckets, in milliseconds.
const DURATION_BUCKETS: [f64; 19] = [
    0.5, 1., 5., 10., 25., 50., 100., 250., 500., 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];

/// The most client addresses that plaintext is counted by; the rest are `other`.
const MAX_PLAINTEXT_SOURCES: usize = 256;

/// Which way a connection goes, from the application's view.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// The labels that Istio's TCP and HTTP metrics have in common.
#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
pub(crate) struct PeerLabels {
    reporter: &'static str,
    source_workload: String,
    source_workload_namespace: String,
    source_principal: String,
    destination_workload: String,
    destination_workload_namespace: String,
    destination_principal: String,
    destination_service: String,
    connection_security_policy: &'static str,
}

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct RequestLabels {
    #[prometheus(flatten)]
    peers: PeerLabels,
    request_protocol: &'static str,
    response_code: u16,
    grpc_response_status: GrpcStatus,
    response_flags: &'static str,
}

/// The status of a gRPC response; an empty label for anything else.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub(crate) struct GrpcStatus(pub Option<u8>);

impl EncodeLabelValue for GrpcStatus {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self.0 {
            Some(status) => write!(encoder, "{status}"),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    direction: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source_address: String,
}

/// Makes histograms with Istio's buckets.
#[derive(Clone)]
struct Durations;

impl MetricConstructor<Histogram> for Durations {
    fn new_metric(&self) -> Histogram {
        Histogram::new(DURATION_BUCKETS)
    }
}

/// All metrics of one proxy. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    own: Arc<Own>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RequestLabels, Histogram, Durations>,
    opened: Family<PeerLabels, Counter>,
    closed: Family<PeerLabels, Counter>,
    sent: Family<PeerLabels, Counter>,
    received: Family<PeerLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    plaintext: Family<SourceLabel, Counter>,
    plaintext_sources: Arc<Mutex<BTreeSet<IpAddr>>>,
    pub(crate) process: ProcessMetrics,
    pub(crate) memory: MemoryMetrics,
    pub(crate) connections: Connections,
    access_log: AccessLog,
}

/// What is known of the server of an outbound connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Server<'a> {
    pub(crate) service: &'a str,
    /// Where nobody said, that of the identity.
    pub(crate) namespace: Option<&'a str>,
    pub(crate) workload: &'a str,
    /// Present where mutual TLS proves it.
    pub(crate) identity: Option<&'a SpiffeId>,
}

/// Who the proxy stands for.
struct Own {
    workload: String,
    namespace: String,
    principal: String,
}

impl Metrics {
    pub(crate) fn new(config: &SidecarConfig, id: &SpiffeId, access_log: AccessLog) -> Self {
        let own = Own {
            workload: known(&config.workload),
            namespace: config.namespace.clone(),
            principal: id.to_string(),
        };
        Self {
            own: Arc::new(own),
            requests: Family::default(),
            durations: Family::new_with_constructor(Durations),
            opened: Family::default(),
            closed: Family::default(),
            sent: Family::default(),
            received: Family::default(),
            refusals: Family::default(),
            plaintext: Family::default(),
            plaintext_sources: Arc::default(),
            process: ProcessMetrics::default(),
            memory: MemoryMetrics::default(),
            connections: Connections::default(),
            access_log,
        }
    }

    /// Adds everything to the registry; the docs' table has the same order.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, metric: &dyn Registrable| {
            metric.add(registry, name, help);
        };
        add("istio_requests", "HTTP requests", &self.requests);
        add(
            "istio_request_duration_milliseconds",
            "Time from a request's head to its response's end",
            &self.durations,
        );
        add(
            "istio_tcp_connections_opened",
            "Opaque connections opened",
            &self.opened,
        );
        add(
            "istio_tcp_connections_closed",
            "Opaque connections closed",
            &self.closed,
        );
        add(
            "istio_tcp_sent_bytes",
            "Bytes sent to clients on opaque connections",
            &self.sent,
        );
        add(
            "istio_tcp_received_bytes",
            "Bytes received from clients on opaque connections",
            &self.received,
        );
        add(
            "bulkhead_refusals",
            "Connections and requests refused or failed by the proxy itself",
            &self.refusals,
        );
        add(
            "bulkhead_plaintext_connections",
            "Plaintext connections accepted, by client address",
            &self.plaintext,
        );
        add(
            "bulkhead_connections",
            "Connections that are open, by what they carry",
            &self.connections.count,
        );
        add(
            "bulkhead_access_log_lines_dropped",
            "Lines of the access log that nobody took in time",
            self.access_log.dropped(),
        );
        self.process.register(registry);
        self.memory.register(registry);
    }

    /// The labels of connections from a client, whose identity mutual TLS proved
    /// or which has none.
    pub(crate) fn inbound(&self, peer: Option<&SpiffeId>) -> PeerLabels {
        let (principal, namespace) = name(peer);
        PeerLabels {
            reporter: "destination",
            source_workload: UNKNOWN.to_owned(),
            source_workload_namespace: namespace,
            source_principal: principal,
            destination_workload: self.own.workload.clone(),
            destination_workload_namespace: self.own.namespace.clone(),
            destination_principal: self.own.principal.clone(),
            destination_service: self.own.workload.clone(),
            connection_security_policy: security(peer.is_some()),
        }
    }

    /// The labels of connections to a server.
    pub(crate) fn outbound(&self, server: &Server<'_>) -> PeerLabels {
        let (principal, namespace) = name(server.identity);
        let namespace = server.namespace.map_or(namespace, str::to_owned);
        PeerLabels {
            reporter: "source",
            source_workload: self.own.workload.clone(),
            source_workload_namespace: self.own.namespace.clone(),
            source_principal: self.own.principal.clone(),
            destination_workload: known(server.workload),
            destination_workload_namespace: namespace,
            destination_principal: principal,
            destination_service: server.service.to_owned(),
            connection_security_policy: security(server.identity.is_some()),
        }
    }

    pub(crate) fn refused(&self, direction: Direction, reason: Reason) {
        let labels = RefusalLabels {
            direction: direction.as_str(),
            reason: reason.code(),
        };
        self.refusals.get_or_create(&labels).inc();
    }

    /// Counts a plaintext connection by who sent it.
    pub(crate) fn plaintext(&self, source: IpAddr) {
        let mut sources = self
            .plaintext_sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let named = sources.contains(&source)
            || (sources.len() < MAX_PLAINTEXT_SOURCES && sources.insert(source));
        drop(sources);
        let source_address = if named {
            source.to_canonical().to_string()
        } else {
            "other".to_owned()
        };
        self.plaintext
            .get_or_create(&SourceLabel { source_address })
            .inc();
    }

    pub(crate) fn http(&self, direction: Direction, peers: PeerLabels) -> HttpMetrics {
        let peers = Arc::new(peers);
        let listed = self.connections.open(direction, "http", Arc::clone(&peers));
        HttpMetrics {
            metrics: self.clone(),
            direction,
            peers,
            _listed: listed,
            found: RefCell::default(),
        }
    }

    pub(crate) fn tcp(&self, direction: Direction, peers: PeerLabels) -> TcpMetrics {
        self.opened.get_or_create(&peers).inc();
        let peers = Arc::new(peers);
        TcpMetrics {
            closed: self.closed.get_or_create_owned(&peers),
            meter: Meter {
                from_client: Passed::counted_in(self.received.get_or_create_owned(&peers)),
                from_server: Passed::counted_in(self.sent.get_or_create_owned(&peers)),
            },
            started: Instant::now(),
            direction,
            _listed: self.connections.open(direction, "tcp", Arc::clone(&peers)),
            peers,
            access_log: self.access_log.clone(),
        }
    }
}

const UNKNOWN: &str = "unknown";

fn protocol(is_grpc: bool) -> &'static str {
    if is_grpc { "grpc" } else { "http" }
}

fn known(name: &str) -> String {
    if name.is_empty() { UNKNOWN } else { name }.to_owned()
}

fn security(mutual: bool) -> &'static str {
    if mutual { "mutual_tls" } else { "none" }
}

fn name(peer: Option<&SpiffeId>) -> (String, String) {
    let namespace = peer
        .and_then(SpiffeId::workload_name)
        .map_or(UNKNOWN, |(namespace, _)| namespace);
    let principal = peer.map_or(UNKNOWN, SpiffeId::as_str);
    (principal.to_owned(), namespace.to_owned())
}

/// What `Metrics::register` needs of a metric.
trait Registrable {
    fn add(&self, registry: &mut Registry, name: &str, help: &str);
}

impl<T> Registrable for T
where
    T: prometheus_client::registry::Metric + Clone,
{
    fn add(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.clone());
    }
}

/// The metrics of one opaque connection; dropping it counts the close.
pub(crate) struct TcpMetrics {
    closed: Counter,
    pub meter: Meter,
    started: Instant,
    direction: Direction,
    peers: Arc<PeerLabels>,
    access_log: AccessLog,
    _listed: Listed,
}

impl Drop for TcpMetrics {
    fn drop(&mut self) {
        self.closed.inc();
        if self.access_log.is_on() {
            self.access_log.add(&Line {
                direction: self.direction.as_str(),
                protocol: "tcp",
                source: &self.peers.source_principal,
                destination: &self.peers.destination_principal,
                service: &self.peers.destination_service,
                method: None,
                path: None,
                status: None,
                grpc_status: None,
                reason: None,
                duration_ms: milliseconds(self.started.elapsed()),
                bytes_received: self.meter.from_client.own(),
                bytes_sent: self.meter.from_server.own(),
            });
        }
    }
}

/// The metrics of the requests on one connection.
pub(crate) struct HttpMetrics {
    metrics: Metrics,
    direction: Direction,
    peers: Arc<PeerLabels>,
    _listed: Listed,
    /// What requests so far have led to: a handful of entries.
    found: RefCell<Vec<(Outcome, Counter, Histogram)>>,
}

/// What distinguishes one request from another in the metrics.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Outcome {
    protocol: &'static str,
    status: u16,
    grpc_status: GrpcStatus,
    flags: &'static str,
}

impl Outcome {
    /// With codes of which there are not many, whatever a server says: an unknown status
    /// is its class's x00 (RFC 9110, 15), an unknown status of gRPC is UNKNOWN.
    fn bounded(self) -> Self {
        let known = http::StatusCode::from_u16(self.status).ok();
        let is_known = known.is_some_and(|status| status.canonical_reason().is_some());
        Self {
            status: match is_known {
                true => self.status,
                false => self.status / 100 * 100,
            },
            grpc_status: GrpcStatus(self.grpc_status.0.map(|status| match status {
                0..=GRPC_LAST => status,
                _ => GRPC_UNKNOWN,
            })),
            ..self
        }
    }
}

/// UNKNOWN, and UNAUTHENTICATED, which is the last of gRPC's statuses.
const GRPC_UNKNOWN: u8 = 2;
const GRPC_LAST: u8 = 16;

/// Which side a response was broken off by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CutBy {
    Client,
    Server,
}

/// One request, as metrics and access log see it.
pub(crate) struct HttpRequest {
    protocol: &'static str,
    /// Only where the access log is on.
    access: Option<Access>,
}

/// What only the access log tells of a request.
struct Access {
    method: String,
    path: String,
    /// Bytes of bodies: the request's, which HTTP/2 sends beside its response, and the
    /// response's.
    received: Rc<Cell<u64>>,
    sent: Cell<u64>,
}

impl HttpRequest {
    pub(crate) fn is_grpc(&self) -> bool {
        self.protocol == "grpc"
    }

    /// Where the bytes of its body are to be counted, if anybody wants to know.
    pub(crate) fn received(&self) -> Option<Rc<Cell<u64>>> {
        let access = self.access.as_ref();
        access.map(|access| Rc::clone(&access.received))
    }

    /// Notes bytes of its body.
    pub(crate) fn receives(&self, count: u64) {
        if let Some(access) = &self.access {
            access.received.set(access.received.get() + count);
        }
    }

    /// Notes bytes of its response's body.
    pub(crate) fn sends(&self, count: u64) {
        if let Some(access) = &self.access {
            access.sent.set(access.sent.get() + count);
        }
    }
}

impl HttpMetrics {
    /// Notes an HTTP/1 request whose head `bytes` begin with.
    pub(crate) fn begin(&self, request: &RequestHead, bytes: &[u8]) -> HttpRequest {
        HttpRequest {
            protocol: "http",
            access: self.metrics.access_log.is_on().then(|| {
                Access::new(
                    &bytes[request.method_text.clone()],
                    &bytes[request.target.clone()],
                )
            }),
        }
    }

    /// Notes an HTTP/2 request.
    pub(crate) fn begin_http2<B>(&self, request: &http::Request<B>) -> HttpRequest {
        let is_grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        HttpRequest {
            protocol: protocol(is_grpc),
            access: self.metrics.access_log.is_on().then(|| {
                let target = request.uri().path_and_query();
                let target = target.map_or("*", |target| target.as_str());
                Access::new(request.method().as_str().as_bytes(), target.as_bytes())
            }),
        }
    }

    pub(crate) fn finished(&self, request: &HttpRequest, status: u16, took: Duration) {
        self.finished_grpc(request, status, GrpcStatus(None), took);
    }

    pub(crate) fn finished_grpc(
        &self,
        request: &HttpRequest,
        status: u16,
        grpc_status: GrpcStatus,
        took: Duration,
    ) {
        let outcome = Outcome {
            protocol: request.protocol,
            status,
            grpc_status,
            flags: "-",
        };
        self.count(outcome, took);
        self.access(request, outcome, took, None);
    }

    /// Notes a response that broke off.
    pub(crate) fn cut(&self, request: &HttpRequest, took: Duration, by: CutBy, error: &io::Error) {
        let outcome = Outcome {
            protocol: request.protocol,
            status: 0,
            grpc_status: GrpcStatus(None),
            flags: match by {
                CutBy::Client => "DC",
                CutBy::Server => "UC",
            },
        };
        self.count(outcome, took);
        let direction = self.direction.as_str();
        tracing::debug!(%error, ?by, direction, "a response broke off");
        self.access(request, outcome, took, Some("response_cut"));
    }

    /// Notes an answer of the proxy's own, which has a gRPC status where it
    /// answers gRPC. The request is absent where it was none that can be read.
    pub(crate) fn refused(
        &self,
        request: Option<&HttpRequest>,
        failure: &Failure,
        status: u16,
        grpc_status: GrpcStatus,
        took: Duration,
    ) {
        let outcome = Outcome {
            protocol: protocol(grpc_status.0.is_some()),
            status,
            grpc_status,
            flags: response_flags(failure.reason),
        };
        self.count(outcome, took);
        if let Some(request) = request {
            self.access(request, outcome, took, Some(failure.reason.code()));
        }
        self.metrics.refused(self.direction, failure.reason);
        if failure.reason == Reason::Overloaded {
            // The budget says once that this begins, and once that it is over.
            return;
        }
        tracing::info!(
            reason = failure.reason.code(),
            detail = failure.detail,
            direction = self.direction.as_str(),
            source = self.peers.source_principal,
            status,
            "refused a request: {}",
            failure.reason.cause()
        );
    }

    fn count(&self, outcome: Outcome, took: Duration) {
        let outcome = outcome.bounded();
        let mut found = self.found.borrow_mut();
        let index = match found.iter().position(|(known, ..)| *known == outcome) {
            Some(index) => index,
            None => {
                let labels = RequestLabels {
                    peers: PeerLabels::clone(&self.peers),
                    request_protocol: outcome.protocol,
                    response_code: outcome.status,
                    grpc_response_status: outcome.grpc_status,
                    response_flags: outcome.flags,
                };
                let requests = self.metrics.requests.get_or_create_owned(&labels);
                let durations = self.metrics.durations.get_or_create_owned(&labels);
                found.push((outcome, requests, durations));
                found.len() - 1
            }
        };
        let (_, requests, durations) = &found[index];
        requests.inc();
        durations.observe(milliseconds(took));
    }

    fn access(
        &self,
        request: &HttpRequest,
        outcome: Outcome,
        took: Duration,
        reason: Option<&'static str>,
    ) {
        let Some(access) = &request.access else {
            return;
        };
        self.metrics.access_log.add(&Line {
            direction: self.direction.as_str(),
            protocol: request.protocol,
            source: &self.peers.source_principal,
            destination: &self.peers.destination_principal,
            service: &self.peers.destination_service,
            method: Some(&access.method),
            path: Some(&access.path),
            status: Some(outcome.status),
            grpc_status: outcome.grpc_status.0,
            reason,
            duration_ms: milliseconds(took),
            bytes_received: access.received.get(),
            bytes_sent: access.sent.get(),
        });
    }
}

impl Access {
    /// Without the query, in which clients send tokens and names.
    fn new(method: &[u8], target: &[u8]) -> Self {
        let path = target.split(|byte| *byte == b'?').next();
        Self {
            method: access_log::text(method),
            path: access_log::text(path.unwrap_or_default()),
            received: Rc::default(),
            sent: Cell::default(),
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Istio's letters for what dashboards already group by.
fn response_flags(reason: Reason) -> &'static str {
    match reason {
        Reason::UpstreamConnectFailed
        | Reason::TlsHandshakeFailed
        | Reason::PeerIdentityMismatch
        | Reason::NoCertificate => "UF",
        Reason::NoReadyEndpoint => "UH",
        Reason::UpstreamClosed => "UC",
        Reason::ResponseMalformed => "UPE",
        Reason::RequestMalformed | Reason::RequestHeadTooLarge => "DPE",
        Reason::PlaintextRefused | Reason::MtlsDisabled => "UAEX",
        Reason::Overloaded => "UO",
        Reason::DestinationIsSelf | Reason::DetectionTimeout => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::sidecar::default_trust_domain;

    fn metrics() -> (Metrics, Registry) {
        let config = SidecarConfig::new(default_trust_domain(), "shop".into(), "cart".into());
        let metrics = Metrics::new(&config, &config.spiffe_id().unwrap(), AccessLog::silent());
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        (metrics, registry)
    }

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn a_strangers_addresses_cannot_fill_the_memory() {
        let (metrics, registry) = metrics();
        for number in 0..10_000_u32 {
            metrics.plaintext(IpAddr::from(number.to_be_bytes()));
        }
        let lines = text(&registry)
            .lines()
            .filter(|line| line.starts_with("bulkhead_plaintext_connections_total{"))
            .count();
        assert_eq!(lines, MAX_PLAINTEXT_SOURCES + 1);
    }

    #[test]
    fn a_servers_codes_cannot_fill_the_memory() {
        let (metrics, registry) = metrics();
        let http = metrics.http(Direction::Inbound, metrics.inbound(None));
        let request = HttpRequest {
            protocol: "grpc",
            access: None,
        };
        for status in 100..1000 {
            http.finished(&request, status, Duration::ZERO);
        }
        for status in 0..=u8::MAX {
            http.finished_grpc(&request, 200, GrpcStatus(Some(status)), Duration::ZERO);
        }
        let text = text(&registry);
        let is_series = |line: &&str| line.starts_with("istio_requests_total{");
        let count = text.lines().filter(is_series).count();
        assert!(count < 100, "{count}");
        let counted = |code: &str| {
            text.lines()
                .find(|line| is_series(line) && line.contains(code))
        };
        let unknown_of_class = counted("response_code=\"400\"").unwrap();
        assert!(!unknown_of_class.ends_with(" 1"), "{unknown_of_class}");
        assert!(counted("response_code=\"404\"").unwrap().ends_with(" 1"));
        assert_eq!(counted("response_code=\"499\""), None);
    }

    #[test]
    fn requests_are_counted_under_istios_names() {
        let (metrics, registry) = metrics();
        let peer = SpiffeId::parse("spiffe://cluster.local/ns/web/sa/front").unwrap();
        let http = metrics.http(Direction::Inbound, metrics.inbound(Some(&peer)));
        let request = HttpRequest {
            protocol: "http",
            access: None,
        };
        http.finished(&request, 200, Duration::from_millis(3));
        http.finished(&request, 200, Duration::from_millis(3));
        let text = text(&registry);
        let line = text
            .lines()
            .find(|line| line.starts_with("istio_requests_total{"))
            .unwrap();
        assert!(line.ends_with(" 2"), "{line}");
        for label in [
            "reporter=\"destination\"",
            "source_principal=\"spiffe://cluster.local/ns/web/sa/front\"",
            "source_workload_namespace=\"web\"",
            "connection_security_policy=\"mutual_tls\"",
            "response_code=\"200\"",
        ] {
            assert!(line.contains(label), "{label} is not in {line}");
        }
        assert!(text.contains("istio_request_duration_milliseconds_bucket{"));
    }
}
