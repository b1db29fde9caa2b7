//! The order by which people switch proxies out of the path without control: a
//! file that the kubelet mounts, or a request to a proxy's own admin port.
//!
//! ```json
//! {"phase": "forward", "reason": "the CA is gone", "by": "ada",
//!  "until": "2030-01-01T12:00:00Z", "pods": ["cart-0"]}
//! ```
//!
//! The way back, for which control need not be there either:
//!
//! ```json
//! {"phase": "off", "takes_back": true}
//! ```

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::discovery::{Bypass, BypassPhase};

/// The longest order that is read, in bytes: a ConfigMap's limit.
pub const MAX_ORDER: usize = 1024 * 1024;

/// What somebody asks of the proxies of a namespace, or of some of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BypassOrder {
    pub bypass: Bypass,
    /// The pods that it is for; nothing where it is for all.
    pub pods: Option<Vec<String>>,
    /// What control has said so far no longer counts: it may have said it and
    /// died. Only an admin port heeds this, because only there is an order sure
    /// to be the last word; a file may be refreshed long after.
    pub takes_back: bool,
}

impl BypassOrder {
    /// Reads an order. Fields that nobody knows are left aside: an order from a
    /// newer version must not fail in an emergency.
    pub fn from_json(bytes: &[u8]) -> Result<Self, OrderError> {
        let document: Document = serde_json::from_slice(bytes)?;
        let phase = BypassPhase::ALL
            .into_iter()
            .find(|phase| phase.as_str() == document.phase)
            .ok_or_else(|| OrderError::Phase(document.phase.chars().take(32).collect()))?;
        let until = match &document.until {
            None => None,
            Some(text) => {
                let until = OffsetDateTime::parse(text, &Rfc3339)
                    .map_err(|_| OrderError::Until(text.chars().take(64).collect()))?;
                Some(SystemTime::from(until))
            }
        };
        Ok(Self {
            bypass: Bypass {
                phase,
                reason: document.reason,
                by: document.by,
                until,
            },
            pods: document.pods,
            takes_back: document.takes_back,
        })
    }

    pub fn to_json(&self) -> String {
        let document = Document {
            phase: self.bypass.phase.as_str().to_owned(),
            reason: self.bypass.reason.clone(),
            by: self.bypass.by.clone(),
            until: self.bypass.until.and_then(rfc3339),
            pods: self.pods.clone(),
            takes_back: self.takes_back,
        };
        serde_json::to_string(&document).expect("strings and lists of them are always JSON")
    }

    /// What it asks of one pod's proxy.
    pub fn for_pod(self, pod: &str) -> Bypass {
        match self.pods {
            Some(pods) if !pods.iter().any(|name| name == pod) => Bypass::default(),
            _ => self.bypass,
        }
    }
}

/// A time as people and Kubernetes write it, to the second; nothing where the
/// year has more than four digits.
pub fn rfc3339(time: SystemTime) -> Option<String> {
    let time = OffsetDateTime::from(time).replace_nanosecond(0).ok()?;
    time.format(&Rfc3339).ok()
}

/// An order as JSON has it.
#[derive(Serialize, Deserialize)]
struct Document {
    phase: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pods: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    takes_back: bool,
}

/// Why an order cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("the order is not JSON with a phase: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0:?} is not a phase: write off, accept or forward")]
    Phase(String),
    #[error("until is {0:?}: write a time as RFC 3339 has it, such as 2030-01-01T12:00:00Z")]
    Until(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn an_order_is_read_as_it_was_written() {
        for (pods, takes_back) in [(None, true), (Some(vec!["cart-0".to_owned()]), false)] {
            let order = BypassOrder {
                bypass: Bypass {
                    phase: BypassPhase::Forward,
                    reason: "the CA is gone".into(),
                    by: "ada".into(),
                    until: Some(UNIX_EPOCH + Duration::from_secs(1_893_499_200)),
                },
                pods,
                takes_back,
            };
            let json = order.to_json();
            assert!(json.contains("\"2030-01-01T12:00:00Z\""), "{json}");
            assert_eq!(BypassOrder::from_json(json.as_bytes()).unwrap(), order);
        }
    }

    #[test]
    fn a_phase_is_all_that_must_be_said() {
        let order = br#"{"phase": "accept", "of": "a newer version"}"#;
        let order = BypassOrder::from_json(order).unwrap();
        assert_eq!(order.bypass.phase, BypassPhase::Accept);
        assert_eq!((order.bypass.until, order.pods), (None, None));
        assert!(!order.takes_back);
    }

    #[test]
    fn an_order_is_for_the_pods_that_it_names() {
        let order = br#"{"phase": "forward", "pods": ["cart-0"]}"#;
        let order = BypassOrder::from_json(order).unwrap();
        let phase = |pod| order.clone().for_pod(pod).phase;
        assert_eq!(phase("cart-0"), BypassPhase::Forward);
        assert_eq!(phase("cart-1"), BypassPhase::Off);
        assert_eq!(phase(""), BypassPhase::Off);
    }

    #[test]
    fn an_order_that_cannot_be_followed_says_what_to_write() {
        for (order, advice) in [
            (&b"forward"[..], "JSON"),
            (b"{}", "phase"),
            (br#"{"phase": "on"}"#, "write off, accept or forward"),
            (br#"{"phase": "off", "until": "30m"}"#, "RFC 3339"),
        ] {
            let error = BypassOrder::from_json(order).unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
        }
    }
}
