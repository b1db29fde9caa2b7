//! A CertificateRequest (`cert-manager.io/v1`), as far as it concerns the CA.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_pki::bundle::Roots;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::upstream::answer::Answer;
use crate::upstream::{Reason, UpstreamError};

const GROUP: &str = "cert-manager.io";

/// By which our requests are known.
const LABEL: &str = "app.kubernetes.io/managed-by";
const LABEL_VALUE: &str = "bulkhead-ca";
pub(super) const OURS: &str = "app.kubernetes.io/managed-by=bulkhead-ca";

/// The most of somebody's words that is shown.
const MAX_SHOWN: usize = 512;

pub(super) fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1", "CertificateRequest"))
}

/// An issuer: `Kind/name`, or `group/Kind/name` for one that is not
/// cert-manager's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IssuerRef {
    group: String,
    kind: String,
    name: String,
}

impl FromStr for IssuerRef {
    type Err = IssuerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let (group, kind, name) = match parts.as_slice() {
            [kind, name] => (GROUP, *kind, *name),
            [group, kind, name] => (*group, *kind, *name),
            _ => return Err(IssuerError),
        };
        if [group, kind, name].iter().any(|part| part.is_empty()) {
            return Err(IssuerError);
        }
        Ok(Self {
            group: group.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for IssuerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group != GROUP {
            write!(f, "{}/", self.group)?;
        }
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// A text does not name an issuer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("is neither Kind/name, such as ClusterIssuer/mesh, nor group/Kind/name")]
pub struct IssuerError;

/// What is asked for.
pub(super) struct Order<'a> {
    csr: &'a str,
    is_ca: bool,
    usages: &'static [&'static str],
    lifetime: Duration,
}

impl<'a> Order<'a> {
    pub(super) fn intermediate(csr: &'a str, lifetime: Duration) -> Self {
        Self {
            csr,
            is_ca: true,
            usages: &["cert sign", "crl sign"],
            lifetime,
        }
    }

    pub(super) fn leaf(csr: &'a str, lifetime: Duration) -> Self {
        Self {
            csr,
            is_ca: false,
            usages: &["digital signature", "server auth", "client auth"],
            lifetime,
        }
    }

    pub(super) fn serving(csr: &'a str, lifetime: Duration) -> Self {
        Self {
            csr,
            is_ca: false,
            usages: &["digital signature", "server auth"],
            lifetime,
        }
    }

    pub(super) fn to_object(&self, issuer: &IssuerRef) -> DynamicObject {
        let mut object = DynamicObject::new("", &resource()).data(json!({"spec": {
            "request": STANDARD.encode(self.csr),
            "isCA": self.is_ca,
            "usages": self.usages,
            "duration": format!("{}s", self.lifetime.as_secs()),
            "issuerRef": {"group": issuer.group, "kind": issuer.kind, "name": issuer.name},
        }}));
        object.metadata.name = None;
        object.metadata.generate_name = Some("bulkhead-ca-".to_owned());
        object.metadata.labels = Some([(LABEL.to_owned(), LABEL_VALUE.to_owned())].into());
        object
    }
}

/// How far a request has come.
#[derive(Debug)]
pub enum State {
    Issued(Issued),
    /// By whom and why.
    Refused(String),
    /// What it waits for.
    Pending(String),
    /// What its status has in it that does not belong there.
    Unreadable(String),
}

/// The answer, in PEM.
#[derive(Debug)]
pub struct Issued {
    chain: String,
    ca: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
    #[serde(default)]
    certificate: String,
    #[serde(default)]
    ca: String,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl State {
    /// Reads a CertificateRequest.
    pub fn of(request: &Value) -> Self {
        let status = match request.get("status") {
            None | Some(Value::Null) => Status::default(),
            Some(status) => match Status::deserialize(status) {
                Ok(status) => status,
                Err(error) => return Self::Unreadable(shown(&error.to_string())),
            },
        };
        let conditions = &status.conditions;
        let find = |kind: &str| conditions.iter().find(|found| found.kind == kind);
        let is_true = |kind: &str| {
            let mut held = conditions.iter().filter(|found| found.status == "True");
            held.find(|found| found.kind == kind)
        };
        for (kind, what) in [("Denied", "was denied"), ("InvalidRequest", "is invalid")] {
            if let Some(condition) = is_true(kind) {
                return Self::Refused(format!("it {what}: {}", condition.shown()));
            }
        }
        match find("Ready") {
            Some(ready) if ready.status == "True" => {
                match (decoded(&status.certificate), decoded(&status.ca)) {
                    (Some(chain), Some(ca)) => Self::Issued(Issued { chain, ca }),
                    _ => Self::Unreadable("its certificates are not in base64".to_owned()),
                }
            }
            Some(ready) if matches!(ready.reason.as_str(), "Failed" | "Denied") => {
                Self::Refused(format!("the issuer refused: {}", ready.shown()))
            }
            Some(ready) => Self::Pending(ready.shown()),
            None if is_true("Approved").is_some() => {
                Self::Pending("it was approved, and the issuer said nothing yet".to_owned())
            }
            None => Self::Pending("nobody approved or denied it".to_owned()),
        }
    }
}

fn decoded(base64: &str) -> Option<String> {
    let bytes = STANDARD.decode(base64).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The beginning of somebody's words, on one line.
fn shown(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_SHOWN)
        .collect()
}

impl Condition {
    fn shown(&self) -> String {
        shown(&format!("{} ({})", self.message, self.reason))
    }
}

impl Issued {
    /// What was issued, still to be judged.
    pub fn read(&self, roots: Option<&Roots>) -> Result<Answer, UpstreamError> {
        if self.chain.is_empty() {
            return Err(UpstreamError::new(
                Reason::Unusable,
                "cert-manager called the request issued and gave no certificate",
            ));
        }
        Answer::read([self.chain.as_str(), self.ca.as_str()], roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_cert_managers_own_unless_its_group_is_named() {
        for text in [
            "ClusterIssuer/mesh",
            "Issuer/mesh",
            "awspca.cert-manager.io/AWSPCAClusterIssuer/mesh",
        ] {
            let issuer: IssuerRef = text.parse().unwrap();
            assert_eq!(issuer.to_string(), text);
        }
        for text in ["", "mesh", "Issuer/", "/mesh", "a/b/c/d"] {
            assert_eq!(text.parse::<IssuerRef>(), Err(IssuerError), "{text}");
        }
    }
    fn of_status(status: &Value) -> State {
        State::of(&json!({"spec": {}, "status": status}))
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "so be it"})
    }

    #[test]
    fn what_a_request_waits_for_is_said() {
        let waits = |status: &Value| match of_status(status) {
            State::Pending(what) => what,
            other => panic!("{status}: {other:?}"),
        };
        for nothing in [json!(null), json!({}), json!({"conditions": []})] {
            assert_eq!(waits(&nothing), "nobody approved or denied it");
        }
        let approved = |is: &str| json!({"conditions": [condition("Approved", is, "somebody")]});
        assert!(waits(&approved("True")).contains("the issuer said nothing yet"));
        assert_eq!(waits(&approved("False")), "nobody approved or denied it");
        let ready = json!({"conditions": [condition("Ready", "False", "Pending")]});
        assert_eq!(waits(&ready), "so be it (Pending)");
    }

    #[test]
    fn what_was_denied_is_refused_though_it_were_ready() {
        for (kind, status, reason) in [
            ("Denied", "True", "policy.example"),
            ("InvalidRequest", "True", "Spec"),
            ("Ready", "False", "Failed"),
            ("Ready", "False", "Denied"),
        ] {
            let state = of_status(&json!({"conditions": [condition(kind, status, reason)]}));
            let State::Refused(why) = state else {
                panic!("{kind} {status} {reason}: {state:?}");
            };
            assert!(why.contains(&format!("so be it ({reason})")), "{why}");
        }
        for denied in [["False", "True"], ["True", "False"]] {
            let [one, other] = denied.map(|is| condition("Denied", is, "policy.example"));
            let ready = condition("Ready", "True", "Issued");
            let state = of_status(&json!({"conditions": [ready, one, other]}));
            assert!(matches!(state, State::Refused(_)), "{state:?}");
        }
    }

    #[test]
    fn a_status_that_cannot_be_read_is_not_one_that_nobody_wrote() {
        let ready = [condition("Ready", "True", "Issued")];
        for status in [
            json!("issued"),
            json!({"conditions": "none"}),
            json!({"conditions": [{"type": "Ready"}]}),
            json!({"conditions": ready, "certificate": 1}),
            json!({"conditions": ready, "certificate": "-----BEGIN CERTIFICATE-----"}),
            json!({"conditions": ready, "certificate": "", "ca": "?"}),
        ] {
            let state = of_status(&status);
            assert!(matches!(state, State::Unreadable(_)), "{status}: {state:?}");
        }
    }

    #[test]
    fn a_request_that_is_called_issued_has_a_certificate() {
        let conditions = [condition("Ready", "True", "Issued")];
        let State::Issued(issued) = of_status(&json!({"conditions": conditions})) else {
            panic!("it is ready");
        };
        let error = issued.read(None).unwrap_err();
        assert_eq!(error.reason(), Reason::Unusable);
        assert!(error.to_string().contains("gave no certificate"), "{error}");
    }
}
