//! What the CA counts. Labels have few values, all of them ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_runtime::monitoring::Monitoring;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::issuer::status::{Phase, Status};
use crate::rotation::slots::{Authority, Slots};
use crate::upstream::Reason;

/// Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub issued: Counter,
    pub tokens_issued: Counter,
    refused: Family<ReasonLabel, Counter>,
    /// The reasons that there were: a family does not tell its labels.
    reasons: Arc<Mutex<BTreeSet<&'static str>>>,
    call_seconds: Counter<f64, std::sync::atomic::AtomicU64>,
    expiry: Family<CertificateLabel, Gauge>,
    connections: Gauge,
    rotation: Family<PhaseLabel, Gauge>,
    rotation_workloads: Family<WorkloadsLabel, Gauge>,
    upstream_failing: Gauge,
    upstream_requests: Family<UpstreamLabel, Counter>,
    upstream_seconds: Family<SignsLabel, Counter<f64, std::sync::atomic::AtomicU64>>,
    pub handshake_failures: Counter,
    pub connections_refused: Counter,
    pub connections_flooded: Counter,
    pub connections_held_back: Counter,
    connections_limit: Gauge,
    pub accept_failures: Counter,
    queue_seconds: Family<QueueLabel, Counter<f64, std::sync::atomic::AtomicU64>>,
    queue_waiting: Family<QueueLabel, Gauge>,
    pub store_failures: Counter,
    token_keys: Family<IssuerLabel, Gauge>,
    token_keys_fetches: Family<FetchLabel, Counter>,
    store_seen: Gauge,
    /// Namespaces whose ConfigMap has the trust bundle.
    pub trust_bundles: Gauge,
    pub trust_bundle_writes: Counter,
    pub trust_bundle_failures: Counter,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct IssuerLabel {
    issuer: String,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct FetchLabel {
    issuer: String,
    outcome: &'static str,
}

/// Counts something as long as it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct CertificateLabel {
    certificate: &'static str,
    generation: u64,
    state: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct WorkloadsLabel {
    state: &'static str,
}

/// What was asked for: `intermediate`, `leaf` or `serving`; and what came of it.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct UpstreamLabel {
    signs: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct SignsLabel {
    signs: &'static str,
}

impl Metrics {
    pub fn new(monitoring: &Monitoring) -> Self {
        let metrics = Self::default();
        let Self {
            issued,
            tokens_issued,
            refused,
            reasons: _,
            call_seconds,
            expiry,
            rotation,
            rotation_workloads,
            upstream_failing,
            upstream_requests,
            upstream_seconds,
            connections,
            handshake_failures,
            connections_refused,
            connections_flooded,
            connections_held_back,
            connections_limit,
            accept_failures,
            queue_seconds,
            queue_waiting,
            store_failures,
            token_keys,
            token_keys_fetches,
            store_seen,
            trust_bundles,
            trust_bundle_writes,
            trust_bundle_failures,
        } = metrics.clone();
        monitoring.register(|registry| {
            registry.register(
                "bulkhead_ca_certificates_issued",
                "Certificates issued to workloads",
                issued,
            );
            registry.register(
                "bulkhead_ca_tokens_issued",
                "JWT-SVIDs issued to workloads",
                tokens_issued,
            );
            registry.register(
                "bulkhead_ca_requests_refused",
                "Calls that ended without a certificate or token, by reason",
                refused,
            );
            registry.register(
                "bulkhead_ca_call_seconds",
                "Time spent in calls; divide by the number of calls",
                call_seconds,
            );
            registry.register(
                "bulkhead_ca_certificate_expiry_timestamp_seconds",
                "When the CA's own certificates expire, in seconds since 1970",
                expiry,
            );
            registry.register(
                "bulkhead_ca_rotation_phase",
                "1 for the phase that the rotation of the root is in, 0 for the others",
                rotation,
            );
            registry.register(
                "bulkhead_ca_rotation_workloads",
                "Workloads that are known, that hold the trust bundle, and that renewed under the signing root",
                rotation_workloads,
            );
            registry.register(
                "bulkhead_ca_upstream_failing",
                "1 while the upstream issuer does not sign, else 0",
                upstream_failing,
            );
            registry.register(
                "bulkhead_ca_upstream_requests",
                "What the upstream issuer was asked to sign, by what came of it",
                upstream_requests,
            );
            registry.register(
                "bulkhead_ca_upstream_request_seconds",
                "Time spent waiting for the upstream issuer; divide by the number of requests",
                upstream_seconds,
            );
            registry.register(
                "bulkhead_ca_connections",
                "Connections of clients that are open now",
                connections,
            );
            registry.register(
                "bulkhead_ca_tls_handshake_failures",
                "Connections that ended before TLS was agreed on",
                handshake_failures,
            );
            registry.register(
                "bulkhead_ca_connections_refused",
                "Connections that were closed because too many waited, or for too long, or because the CA has no valid certificate",
                connections_refused,
            );
            registry.register(
                "bulkhead_ca_connections_flooded",
                "Connections that were closed because much came and no call with a good token",
                connections_flooded,
            );
            registry.register(
                "bulkhead_ca_connections_held_back",
                "Times that a connection was left in the kernel because as many as may be were open",
                connections_held_back,
            );
            registry.register(
                "bulkhead_ca_connections_limit",
                "Connections that may be open, those in line for a handshake included",
                connections_limit,
            );
            registry.register(
                "bulkhead_ca_accept_failures",
                "Connections that the kernel did not give, nearly always for lack of descriptors",
                accept_failures,
            );
            registry.register(
                "bulkhead_ca_queue_wait_seconds",
                "Time that calls waited for their turn, by queue",
                queue_seconds,
            );
            registry.register(
                "bulkhead_ca_queue_waiting",
                "Calls and connections that wait for their turn now, by queue",
                queue_waiting,
            );
            registry.register(
                "bulkhead_ca_store_failures",
                "Failed attempts to read or renew the CA's own certificates",
                store_failures,
            );
            registry.register(
                "bulkhead_ca_token_keys_timestamp_seconds",
                "When the keys of a token issuer were fetched last, in seconds since 1970",
                token_keys,
            );
            registry.register(
                "bulkhead_ca_token_keys_fetches",
                "Attempts to fetch the keys of a token issuer, by outcome",
                token_keys_fetches,
            );
            registry.register(
                "bulkhead_ca_store_seen_timestamp_seconds",
                "When the CA's own certificates were last read, in seconds since 1970",
                store_seen,
            );
            registry.register(
                "bulkhead_ca_trust_bundle_namespaces",
                "Namespaces whose ConfigMap has the trust bundle",
                trust_bundles,
            );
            registry.register(
                "bulkhead_ca_trust_bundle_writes",
                "ConfigMaps with the trust bundle that were written",
                trust_bundle_writes,
            );
            registry.register(
                "bulkhead_ca_trust_bundle_failures",
                "Failed attempts to watch or write them",
                trust_bundle_failures,
            );
        });
        metrics
    }

    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.insert(reason);
    }

    /// By reason, how many calls were refused so far.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |reason| {
            let label = ReasonLabel { reason };
            self.refused.get(&label).map_or(0, |count| count.get())
        };
        reasons
            .iter()
            .map(|reason| (*reason, count(*reason)))
            .collect()
    }

    /// The store was read.
    pub fn store_seen(&self, at: SystemTime) {
        self.store_seen.set(unix_seconds(at));
    }

    /// Shows the counts of an upstream before there is anything to count.
    pub fn begin_upstream(&self) {
        for signs in ["intermediate", "leaf", "serving"] {
            for outcome in ["signed", "given_up"]
                .into_iter()
                .chain(Reason::ALL.map(Reason::as_str))
            {
                let label = UpstreamLabel { signs, outcome };
                drop(self.upstream_requests.get_or_create(&label));
            }
        }
    }

    /// Notes an answer of the upstream, or that nobody waited for one.
    pub fn upstream_answered(&self, signs: &'static str, outcome: &'static str, took: Duration) {
        self.upstream_requests
            .get_or_create(&UpstreamLabel { signs, outcome })
            .inc();
        self.upstream_seconds
            .get_or_create(&SignsLabel { signs })
            .inc_by(took.as_secs_f64());
    }

    /// A client's connection, for as long as it is open.
    pub fn connection(&self) -> Counted {
        Counted::new(&self.connections)
    }

    /// How many there may be.
    pub fn connection_limit(&self, most: usize) {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.connections_limit.set(most);
    }

    /// Somebody who waits in a queue, for as long as that takes.
    pub fn waiting(&self, queue: &'static str) -> Counted {
        Counted::new(&self.queue_waiting.get_or_create(&QueueLabel { queue }))
    }

    pub fn waited(&self, queue: &'static str, time: Duration) {
        self.queue_seconds
            .get_or_create(&QueueLabel { queue })
            .inc_by(time.as_secs_f64());
    }

    pub fn call_took(&self, time: Duration) {
        self.call_seconds.inc_by(time.as_secs_f64());
    }

    /// Notes when this server's own certificate expires.
    pub fn serving_expires(&self, not_after: SystemTime) {
        self.expires(SERVING, 0, "active", not_after);
    }

    /// Notes when the CA's authorities expire: those that are not gone, in place
    /// of what was noted before.
    pub fn authorities(&self, before: Option<&Slots>, slots: &Slots) {
        for (kind, authority) in before.into_iter().flat_map(with_kinds) {
            let (generation, state) = (authority.generation, authority.state.as_str());
            let label = CertificateLabel {
                certificate: kind,
                generation,
                state,
            };
            self.expiry.remove(&label);
        }
        for (kind, authority) in with_kinds(slots) {
            if !authority.is_gone() {
                let (generation, state) = (authority.generation, authority.state.as_str());
                self.expires(kind, generation, state, authority.not_after);
            }
        }
    }

    /// Notes how far a rotation is.
    pub fn rotation(&self, status: &Status) {
        for phase in Phase::ALL {
            let phase_is = i64::from(phase == status.phase);
            let phase = phase.as_str();
            self.rotation
                .get_or_create(&PhaseLabel { phase })
                .set(phase_is);
        }
        let holders = &status.holders;
        for (state, count) in [
            ("known", holders.total),
            ("holding", holders.holding),
            ("renewed", holders.renewed),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let gauge = self
                .rotation_workloads
                .get_or_create(&WorkloadsLabel { state });
            gauge.set(count);
        }
        let is_failing = i64::from(status.upstream.failure.is_some());
        self.upstream_failing.set(is_failing);
    }

    /// Notes when an issuer's keys were fetched; the issuers are those of the
    /// settings.
    pub fn token_keys(&self, issuer: &str, at: SystemTime) {
        let issuer = issuer.to_owned();
        let gauge = self.token_keys.get_or_create(&IssuerLabel { issuer });
        gauge.set(unix_seconds(at));
    }

    /// Counts an attempt to fetch them: `success` or `failure`.
    pub fn token_keys_fetched(&self, issuer: &str, outcome: &'static str) {
        let issuer = issuer.to_owned();
        let label = FetchLabel { issuer, outcome };
        self.token_keys_fetches.get_or_create(&label).inc();
    }

    fn expires(
        &self,
        certificate: &'static str,
        generation: u64,
        state: &'static str,
        not_after: SystemTime,
    ) {
        let label = CertificateLabel {
            certificate,
            generation,
            state,
        };
        self.expiry
            .get_or_create(&label)
            .set(unix_seconds(not_after));
    }
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

fn with_kinds(slots: &Slots) -> impl Iterator<Item = (&'static str, &Authority)> {
    let roots = slots.roots.iter().map(|slot| ("root", &slot.authority));
    let intermediates = slots.intermediates.iter().filter(|slot| !slot.own);
    let intermediates = intermediates.map(|slot| ("intermediate", &slot.authority));
    let token_keys = slots.token_keys.iter().map(|slot| ("jwt", &slot.authority));
    roots.chain(intermediates).chain(token_keys)
}

/// The label of this server's own certificate.
const SERVING: &str = "serving";
