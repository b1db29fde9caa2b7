//! What a workload holds, as its sidecar says: certificate, trust bundle, and
//! how its renewal stands. Never a key.

use std::fmt::Write as _;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use bulkhead_core::ports;
use bulkhead_inject::PROXY_CONTAINER;
use bulkhead_pki::certificate::Certificate;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::{admin, moment};

/// Which form the answer has.
const SCHEMA: &str = "bulkhead.io/secret/v1";
/// The longest chain or bundle that is read, in bytes of PEM.
const MAX_PEM: usize = 1024 * 1024;

/// What a sidecar says at `/certs`. One of an older version says less.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    pub(crate) certificate: Option<SaidCertificate>,
    roots: String,
    trust_bundle: Option<SaidBundle>,
    renewal: Option<SaidRenewal>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SaidCertificate {
    id: String,
    chain: String,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    signing_root: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SaidBundle {
    id: Option<String>,
    sequence: Option<u64>,
    source: Option<String>,
    problem: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SaidRenewal {
    due: Option<u64>,
    last_success: Option<u64>,
    failures: Option<u64>,
    last_failure: Option<SaidFailure>,
    clock_skew_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SaidFailure {
    at: u64,
    reason: String,
    message: Option<String>,
    retry_at: Option<u64>,
}

/// What a workload holds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holding {
    pub schema: &'static str,
    /// Namespace and name, with a slash between them.
    pub pod: String,
    /// Its SPIFFE ID; none where it has no certificate.
    pub identity: Option<String>,
    /// The leaf first, then what is between it and a root.
    pub chain: Vec<Shown>,
    pub trust_bundle: Bundle,
    pub renewal: Renewal,
    #[serde(skip)]
    pem: String,
}

/// A certificate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    pub subject: String,
    pub issuer: String,
    pub serial: String,
    pub fingerprint: String,
    pub not_before: String,
    pub not_after: String,
    pub key_type: Option<String>,
    #[serde(skip)]
    end: SystemTime,
}

/// Whom it trusts.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    pub id: Option<String>,
    /// None where it is not known.
    pub sequence: Option<u64>,
    /// Where it came from: `authority` or `file`.
    pub source: Option<String>,
    /// Why what the file has now was not taken.
    pub problem: Option<String>,
    /// The fingerprint of the root that its own leaf is below.
    pub signing_root: Option<String>,
    pub roots: Vec<Shown>,
}

/// How its next certificate stands.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewal {
    pub due: Option<String>,
    pub last_success: Option<String>,
    /// Since the last success.
    pub failures: Option<u64>,
    pub last_failure: Option<Failure>,
    /// How far the pod's clock is ahead of the CA's.
    pub clock_skew_seconds: Option<f64>,
    #[serde(skip)]
    due_at: Option<SystemTime>,
}

/// Why there is no newer certificate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub at: String,
    pub reason: String,
    pub message: Option<String>,
    pub retry_at: Option<String>,
}

/// Asks the sidecar of a pod.
pub async fn ask(cluster: &Cluster, namespace: &str, pod: &str) -> anyhow::Result<Holding> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let found = pods
        .get(pod)
        .await
        .with_context(|| format!("reading pod {namespace}/{pod} failed"))?;
    let spec = found.spec.unwrap_or_default();
    let mut containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    if !containers.any(|container| container.name == PROXY_CONTAINER) {
        bail!(
            "pod {namespace}/{pod} has no sidecar, so it holds no certificate of the mesh; \
             `bulkhead check` says whether it should have one"
        );
    }
    let said = said(cluster, (namespace, pod)).await.with_context(|| {
        format!(
            "asking the sidecar of {namespace}/{pod} failed; is it running? You need to create \
             pods/portforward there"
        )
    })?;
    Holding::new(format!("{namespace}/{pod}"), said)
}

/// What the sidecar of a pod says.
pub(crate) async fn said(cluster: &Cluster, pod: (&str, &str)) -> anyhow::Result<Said> {
    admin::get(cluster, pod, ports::PROXY_ADMIN, "/certs").await
}

impl Holding {
    fn new(pod: String, said: Said) -> anyhow::Result<Self> {
        let certificate = said.certificate.unwrap_or_default();
        let bundle = said.trust_bundle.unwrap_or_default();
        let renewal = said.renewal.unwrap_or_default();
        Ok(Self {
            schema: SCHEMA,
            pod,
            identity: Some(certificate.id).filter(|id| !id.is_empty()),
            chain: shown(&certificate.chain).context("its certificate cannot be read")?,
            trust_bundle: Bundle {
                id: bundle.id,
                sequence: bundle.sequence.filter(|sequence| *sequence > 0),
                source: bundle.source,
                problem: bundle.problem,
                signing_root: certificate.signing_root,
                roots: shown(&said.roots).context("its roots cannot be read")?,
            },
            renewal: renewal.into(),
            pem: certificate.chain + &said.roots,
        })
    }

    /// Chain and roots, as a TLS library reads them.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// For people.
    pub fn to_text(&self, now: SystemTime) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<14}{value}");
        };
        line("pod", &self.pod);
        line(
            "identity",
            self.identity
                .as_deref()
                .unwrap_or("none: it has no certificate yet"),
        );
        for (index, part) in self.chain.iter().enumerate() {
            let name = if index == 0 { "certificate" } else { "below" };
            line(name, &part.to_line(now));
        }
        let bundle = &self.trust_bundle;
        let sequence = bundle.sequence.map_or_else(
            || "of no known sequence".to_owned(),
            |sequence| format!("sequence {sequence}"),
        );
        let source = bundle.source.as_deref();
        let source = source.map_or_else(String::new, |source| format!(", from the {source}"));
        let id = bundle.id.as_deref().unwrap_or("of no known id");
        line("trust bundle", &format!("{id}, {sequence}{source}"));
        for root in &bundle.roots {
            let is_own = bundle.signing_root.as_ref() == Some(&root.fingerprint);
            let note = if is_own {
                "  (its certificate is below this one)"
            } else {
                ""
            };
            line("  root", &format!("{}{note}", root.to_line(now)));
        }
        if let Some(problem) = &bundle.problem {
            line("  NOT TAKEN", problem);
        }
        let due = self.renewal.due_at;
        let due = due.map_or_else(|| "not known".to_owned(), |due| moment::both(due, now));
        line("next renewal", &due);
        if let Some(failure) = &self.renewal.last_failure {
            line("last failure", &failure.to_line(self.renewal.failures));
        }
        if let Some(skew) = self
            .renewal
            .clock_skew_seconds
            .filter(|skew| skew.abs() >= 1.0)
        {
            line("clock", &format!("{skew:+.0} s beside the CA's"));
        }
        text
    }
}

impl Shown {
    fn to_line(&self, now: SystemTime) -> String {
        let kind = self
            .key_type
            .as_deref()
            .unwrap_or("a key of no accepted kind");
        format!(
            "serial {}, {kind}, until {} ({}), fingerprint {}",
            self.serial,
            self.not_after,
            moment::relative(self.end, now),
            self.fingerprint
        )
    }
}

impl Failure {
    fn to_line(&self, count: Option<u64>) -> String {
        let message = self.message.as_deref();
        let message = message.map_or_else(String::new, |message| format!(": {message}"));
        let count = count.filter(|count| *count > 1);
        let count = count.map_or_else(String::new, |count| {
            format!(", failed {count} times in a row")
        });
        let retry = self.retry_at.as_deref();
        let retry = retry.map_or_else(String::new, |retry| format!("; again at {retry}"));
        format!("{} {}{message}{count}{retry}", self.at, self.reason)
    }
}

impl From<SaidRenewal> for Renewal {
    fn from(said: SaidRenewal) -> Self {
        let time = |seconds: Option<u64>| seconds.map(|it| moment::timestamp(moment::at(it)));
        Self {
            due: time(said.due),
            last_success: time(said.last_success),
            failures: said.failures,
            last_failure: said.last_failure.map(|failure| Failure {
                at: moment::timestamp(moment::at(failure.at)),
                reason: failure.reason,
                message: failure.message,
                retry_at: time(failure.retry_at),
            }),
            clock_skew_seconds: said.clock_skew_seconds,
            due_at: said.due.map(moment::at),
        }
    }
}

fn shown(pem: &str) -> anyhow::Result<Vec<Shown>> {
    let certificates = Certificate::all_from_pem(pem, MAX_PEM)?;
    Ok(certificates.iter().map(Shown::of).collect())
}

impl Shown {
    fn of(certificate: &Certificate) -> Self {
        let key = certificate.public_key();
        Self {
            subject: certificate.subject(),
            issuer: certificate.issuer(),
            serial: certificate.serial(),
            fingerprint: certificate.fingerprint().to_string(),
            not_before: moment::timestamp(certificate.not_before()),
            not_after: moment::timestamp(certificate.not_after()),
            key_type: key.ok().map(|key| key.kind().to_string()),
            end: certificate.not_after(),
        }
    }
}

#[cfg(test)]
mod tests;
