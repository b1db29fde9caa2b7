//! How it goes with a workload's certificate, for people who ask: beside the
//! certificate itself, when the next is due and what went wrong last.

use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::identity::WorkloadIdentity;
use serde_json::{Value, json};

use crate::trust::Source;

/// What the renewal knows besides the certificate in use.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// When the next certificate will be asked for.
    pub due: Option<SystemTime>,
    pub last_success: Option<SystemTime>,
    /// How many tries have failed since.
    pub failures: u64,
    pub last_failure: Option<Failure>,
    /// How many seconds this machine's clock is ahead of the CA's.
    pub clock_skew: Option<f64>,
    pub trust: Trust,
}

/// Where the trust bundle in use is from.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    pub source: Option<Source>,
    pub adopted: Option<SystemTime>,
    /// Why what the file says now is not what is trusted.
    pub problem: Option<String>,
}

/// A try that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    pub at: SystemTime,
    /// The outcome by which the metric counts it.
    pub reason: &'static str,
    pub message: String,
    /// The CA's time, where it answered.
    pub authority_time: Option<SystemTime>,
    pub retry_at: SystemTime,
}

impl State {
    /// All of it as JSON, with the identity in use: everything but the key.
    pub fn to_json(&self, identity: Option<&WorkloadIdentity>) -> Value {
        json!({
            "certificate": identity.map(certificate),
            "roots": identity.map(|identity| identity.bundle().to_pem()),
            "trust_bundle": identity.map(|identity| self.trust_bundle(identity)),
            "renewal": {
                "due": self.due.map(seconds),
                "last_success": self.last_success.map(seconds),
                "failures": self.failures,
                "last_failure": self.last_failure.as_ref().map(Failure::to_json),
                "clock_skew_seconds": self.clock_skew,
            },
        })
    }

    fn trust_bundle(&self, identity: &WorkloadIdentity) -> Value {
        let bundle = identity.bundle();
        let roots = bundle.roots().certificates().iter().map(facts);
        json!({
            "id": bundle.id().to_string(),
            "sequence": bundle.sequence(),
            "source": self.trust.source.map(Source::as_str),
            "adopted": self.trust.adopted.map(seconds),
            "problem": self.trust.problem,
            "roots": roots.collect::<Vec<_>>(),
        })
    }
}

impl Failure {
    fn to_json(&self) -> Value {
        json!({
            "at": seconds(self.at),
            "reason": self.reason,
            "message": self.message,
            "authority_time": self.authority_time.map(seconds),
            "retry_at": seconds(self.retry_at),
        })
    }
}

fn certificate(identity: &WorkloadIdentity) -> Value {
    let chain = identity.chain();
    let certificates = std::iter::once(chain.leaf()).chain(chain.intermediates());
    json!({
        "id": identity.id(),
        "serial": identity.serial(),
        "not_before": seconds(identity.not_before()),
        "not_after": seconds(identity.not_after()),
        "signing_root": identity.signing_root().fingerprint().to_string(),
        "certificates": certificates.map(facts).collect::<Vec<_>>(),
        "chain": chain.to_pem(),
    })
}

/// What people look for in a certificate.
fn facts(certificate: &Certificate) -> Value {
    let key = certificate.public_key();
    json!({
        "subject": certificate.subject(),
        "issuer": certificate.issuer(),
        "serial": certificate.serial(),
        "fingerprint": certificate.fingerprint().to_string(),
        "not_before": seconds(certificate.not_before()),
        "not_after": seconds(certificate.not_after()),
        "key": key.ok().map(|key| key.kind().to_string()),
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
