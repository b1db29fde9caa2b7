//! What one replica knows, in the form that the others read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_core::held::Held;
use serde::{Deserialize, Serialize};

use crate::object::Name;

/// So much of a pod's UID tells it from others: its first 48 bits, which are
/// random. A ConfigMap has room for 60,000 of them.
const UID_LENGTH: usize = 13;

/// The proxies that are connected to one replica.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// When it was so, in seconds since 1970.
    at: u64,
    groups: Vec<Group>,
    /// Proxies that do not say what they hold.
    silent: BTreeSet<String>,
}

/// Proxies that hold the same.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Group {
    pub(crate) bundle: String,
    pub(crate) signing_root: String,
    pub(crate) pods: BTreeSet<String>,
}

impl Report {
    pub(crate) fn new(at: SystemTime, holders: &[(Name, Option<Held>)]) -> Self {
        let mut groups: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
        let mut silent = BTreeSet::new();
        for (uid, held) in holders {
            let pods = match held {
                Some(held) => groups
                    .entry((&held.bundle, &held.signing_root))
                    .or_default(),
                None => &mut silent,
            };
            pods.insert(short(uid).to_owned());
        }
        let groups = groups.into_iter();
        Self {
            at: at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            groups: groups
                .map(|((bundle, signing_root), pods)| Group {
                    bundle: bundle.to_owned(),
                    signing_root: signing_root.to_owned(),
                    pods,
                })
                .collect(),
            silent,
        }
    }

    pub(crate) fn at(&self) -> SystemTime {
        UNIX_EPOCH
            .checked_add(Duration::from_secs(self.at))
            .unwrap_or(UNIX_EPOCH)
    }

    /// Whether it says the same as another, whenever that was.
    pub(crate) fn says_the_same_as(&self, other: &Self) -> bool {
        self.groups == other.groups && self.silent == other.silent
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(crate) fn silent(&self) -> &BTreeSet<String> {
        &self.silent
    }
}

/// A pod's UID, as reports have it.
pub(crate) fn short(uid: &str) -> &str {
    uid.get(..UID_LENGTH).unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(bundle: &str) -> Option<Held> {
        Some(Held {
            bundle: bundle.to_owned(),
            signing_root: "f0".to_owned(),
            certificate_expires: UNIX_EPOCH,
        })
    }

    fn report(second: u64, holders: &[(&str, Option<Held>)]) -> Report {
        let holders = holders.iter().cloned();
        let holders: Vec<_> = holders.map(|(uid, held)| (uid.into(), held)).collect();
        Report::new(UNIX_EPOCH + Duration::from_secs(second), &holders)
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let report = report(7, &[("a", held("b1")), ("b", held("b2")), ("c", None)]);
        let written = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&written).unwrap(), report);
        assert_eq!(report.at(), UNIX_EPOCH + Duration::from_secs(7));
    }

    #[test]
    fn only_what_proxies_hold_makes_a_report_another() {
        let first = report(1, &[("a", held("b1"))]);
        assert!(first.says_the_same_as(&report(2, &[("a", held("b1"))])));
        assert!(!first.says_the_same_as(&report(1, &[("a", held("b2"))])));
        assert!(!first.says_the_same_as(&report(1, &[("a", None)])));
    }

    #[test]
    fn twenty_thousand_proxies_fit_into_a_config_map() {
        let pods: Vec<_> = (0..20_000_u32)
            .map(|number| format!("{number:08x}-0000-4000-8000-000000000000"))
            .collect();
        let pods: Vec<_> = pods.iter().map(|uid| (uid.as_str(), held("b1"))).collect();
        let written = serde_json::to_string(&report(1, &pods)).unwrap();
        assert!(written.len() < 400_000, "{}", written.len());
    }
}
