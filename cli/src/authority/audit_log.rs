//! What was issued to whom, and what was refused: the CA's audit records, which
//! are lines of its pods' logs.

use std::time::SystemTime;

use bulkhead_ca::audit::TARGET;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::LogParams;
use kube::{Api, ResourceExt as _};
use serde_json::Value;

use super::replicas;
use crate::cluster::Cluster;
use crate::{error, moment};

mod follow;

pub use follow::follow;

/// The CA's container.
const CONTAINER: &str = "ca";

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// When it was written, by the replica's clock.
    pub at: Timestamp,
    /// The replica that wrote it.
    pub pod: String,
    /// All of it.
    fields: Value,
}

/// Which records are asked for; all conditions hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// A SPIFFE ID, or its `namespace/serviceaccount`.
    pub identity: Option<String>,
    /// In hexadecimal, with or without colons and leading zeros.
    pub serial: Option<String>,
    /// Only what was not issued.
    pub is_refused: bool,
}

impl Record {
    /// Reads a line of a log; `None` where it is no audit record.
    pub fn parse(pod: &str, line: &str) -> Option<Self> {
        let mut fields: Value = serde_json::from_str(line).ok()?;
        if fields["target"] != TARGET {
            return None;
        }
        let at = fields["timestamp"].as_str()?.parse().ok()?;
        // Whether a formatter nests the fields is its own affair.
        if let Some(Value::Object(nested)) = fields.get_mut("fields").map(Value::take) {
            let all = fields.as_object_mut()?;
            all.remove("fields");
            all.extend(nested);
        }
        Some(Self {
            at,
            pod: pod.to_owned(),
            fields,
        })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }

    /// For programs: the record as it was written, and who wrote it.
    pub fn to_json(&self) -> Value {
        let mut fields = self.fields.clone();
        fields["replica"] = self.pod.clone().into();
        fields
    }

    /// For people: a line.
    pub fn to_line(&self) -> String {
        let outcome = self.text("outcome").unwrap_or("?");
        let who = self.text("identity").or_else(|| self.text("caller"));
        let mut line = format!(
            "{}  {outcome:<9}  {}",
            self.at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
            who.unwrap_or("an unknown caller")
        );
        for (label, name) in [("pod", "pod"), ("from", "from"), ("serial", "serial")] {
            if let Some(value) = self.text(name) {
                line.push_str(&format!("  {label} {value}"));
            }
        }
        if let Some(end) = self.fields["not_after"].as_u64() {
            line.push_str(&format!("  until {}", moment::timestamp(moment::at(end))));
        }
        if let Some(reason) = self.text("reason") {
            line.push_str(&format!("  {reason}"));
            if let Some(detail) = self.text("detail") {
                line.push_str(&format!(": {detail}"));
            }
        }
        line
    }
}

impl Filter {
    pub fn accepts(&self, record: &Record) -> bool {
        let has_identity = self.identity.as_ref().is_none_or(|wanted| {
            let mut said = ["identity", "caller"].into_iter();
            said.any(|name| record.text(name).is_some_and(|id| is_identity(id, wanted)))
        });
        let has_serial = self.serial.as_ref().is_none_or(|wanted| {
            let serial = record.text("serial");
            serial.is_some_and(|serial| plain(serial) == plain(wanted))
        });
        let is_refused = !matches!(record.text("outcome"), Some("issued" | "token_issued"));
        has_identity && has_serial && (is_refused || !self.is_refused)
    }
}

fn is_identity(id: &str, wanted: &str) -> bool {
    let short = wanted
        .split_once('/')
        .map(|(namespace, account)| format!("/ns/{namespace}/sa/{account}"));
    id == wanted || short.is_some_and(|short| id.ends_with(&short))
}

/// A serial number as OpenSSL, browsers and we may each write it.
fn plain(serial: &str) -> String {
    let digits = serial.trim_start_matches("0x").chars();
    let digits: String = digits.filter(char::is_ascii_hexdigit).collect();
    digits.trim_start_matches('0').to_ascii_lowercase()
}

/// What the CA's pods have written, oldest first, and which pods could not be
/// read.
pub async fn read(
    cluster: &Cluster,
    filter: &Filter,
    since: SystemTime,
    now: SystemTime,
) -> anyhow::Result<(Vec<Record>, Vec<String>)> {
    let pods = replicas::pods(cluster).await?;
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.system_namespace);
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for pod in &pods {
        let name = pod.name_any();
        for previous in [true, false] {
            if previous && !has_restarted(pod) {
                continue;
            }
            let parameters = LogParams {
                previous,
                ..parameters(since, now)
            };
            match api.logs(&name, &parameters).await {
                Ok(text) => records.extend(
                    text.lines()
                        .filter_map(|line| Record::parse(&name, line))
                        .filter(|record| filter.accepts(record) && is_since(record, since)),
                ),
                Err(error) => problems.push(format!("{name}: {}", error::of_kube(&error))),
            }
        }
    }
    records.sort_by_key(|record| record.at);
    Ok((records, problems))
}

fn has_restarted(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|it| &it.container_statuses);
    statuses
        .flatten()
        .any(|container| container.name == CONTAINER && container.restart_count > 0)
}

fn is_since(record: &Record, since: SystemTime) -> bool {
    SystemTime::from(record.at) >= since
}

fn parameters(since: SystemTime, now: SystemTime) -> LogParams {
    let age = now.duration_since(since).unwrap_or_default().as_secs();
    LogParams {
        container: Some(CONTAINER.to_owned()),
        // The log's own times are those of the node; a second more is left out
        // again by what the records say themselves.
        since_seconds: i64::try_from(age.saturating_add(1)).ok(),
        ..LogParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUED: &str = r#"{"timestamp":"2026-11-21T15:00:00.123456Z","level":"INFO","message":"a certificate was issued","outcome":"issued","request":"00ff","from":"10.0.0.7:4711","caller":"spiffe://cluster.local/ns/shop/sa/cart","pod":"cart-1","identity":"spiffe://cluster.local/ns/shop/sa/cart","serial":"0a1b","not_after":1796083200,"target":"bulkhead_ca::audit"}"#;
    const REFUSED: &str = r#"{"timestamp":"2026-11-21T15:00:01Z","level":"INFO","fields":{"message":"a certificate was refused","outcome":"refused","from":"10.0.0.8:1","reason":"token_expired","detail":"the token expired"},"target":"bulkhead_ca::audit"}"#;

    fn record(line: &str) -> Record {
        Record::parse("ca-1", line).unwrap()
    }

    fn accepts(line: &str, filter: Filter) -> bool {
        filter.accepts(&record(line))
    }

    #[test]
    fn a_record_is_a_line_for_people() {
        assert_eq!(
            record(ISSUED).to_line(),
            "2026-11-21T15:00:00.123Z  issued     spiffe://cluster.local/ns/shop/sa/cart  pod cart-1  \
             from 10.0.0.7:4711  serial 0a1b  until 2026-12-01T00:00:00Z"
        );
        assert_eq!(
            record(REFUSED).to_line(),
            "2026-11-21T15:00:01.000Z  refused    an unknown caller  from 10.0.0.8:1  \
             token_expired: the token expired"
        );
    }

    #[test]
    fn other_lines_of_the_log_are_no_records() {
        for line in [
            "",
            "not JSON",
            r#"{"timestamp":"2026-11-21T15:00:00Z","target":"bulkhead_ca::app"}"#,
            r#"{"timestamp":"yesterday","target":"bulkhead_ca::audit"}"#,
        ] {
            assert_eq!(Record::parse("ca-1", line), None, "{line}");
        }
    }

    #[test]
    fn an_identity_is_found_by_its_uri_and_by_its_namespace_and_account() {
        for identity in ["spiffe://cluster.local/ns/shop/sa/cart", "shop/cart"] {
            let filter = Filter {
                identity: Some(identity.to_owned()),
                ..Filter::default()
            };
            assert!(accepts(ISSUED, filter.clone()), "{identity}");
            assert!(!accepts(REFUSED, filter), "{identity}");
        }
        let other = Filter {
            identity: Some("hop/cart".to_owned()),
            ..Filter::default()
        };
        assert!(!accepts(ISSUED, other));
    }

    #[test]
    fn a_serial_number_is_found_however_it_is_written() {
        for serial in ["0a1b", "A1B", "0A:1B", "0x0a1b", "00:0a:1b"] {
            let filter = Filter {
                serial: Some(serial.to_owned()),
                ..Filter::default()
            };
            assert!(accepts(ISSUED, filter), "{serial}");
        }
        let other = Filter {
            serial: Some("a1".to_owned()),
            ..Filter::default()
        };
        assert!(!accepts(ISSUED, other));
    }

    #[test]
    fn refusals_alone_can_be_asked_for() {
        let refused = Filter {
            is_refused: true,
            ..Filter::default()
        };
        assert!(accepts(REFUSED, refused.clone()));
        let token = ISSUED.replace("\"outcome\":\"issued\"", "\"outcome\":\"token_issued\"");
        for granted in [ISSUED, &token] {
            assert!(!accepts(granted, refused.clone()), "{granted}");
        }
    }

    #[test]
    fn programs_get_the_record_as_it_was_and_who_wrote_it() {
        let written = record(ISSUED).to_json();
        assert_eq!(written["serial"], "0a1b");
        assert_eq!(written["replica"], "ca-1");
        assert_eq!(record(REFUSED).to_json()["reason"], "token_expired");
    }
}
