//! What workloads hold, as control has written it into the object.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_crds::certificate_authority::Proxies;
use bulkhead_pki::bundle::BundleId;
use bulkhead_pki::certificate::Fingerprint;
use bulkhead_runtime::clock::Clock;
use tokio::time::Instant;

use super::Latest;
use crate::rotation::holders::{HolderReport, Holders, Missing};

/// Control says it anew each 30 s. What is older is of the past: half a minute
/// for clocks that disagree, and as much for an API server that is slow.
const FRESH: Duration = Duration::from_secs(90);

/// Reads what control has written.
pub struct ReportedHolders {
    latest: Latest,
    clock: Clock,
    silent: Option<Duration>,
    /// When control says that it wrote, and when that was first seen here: the
    /// clock of another machine alone tells no age.
    seen: Mutex<Option<(SystemTime, Instant)>>,
}

impl ReportedHolders {
    /// `silent` is how long those take to adopt a bundle of whom control knows
    /// nothing, where there are any.
    pub fn new(latest: Latest, clock: Clock, silent: Option<Duration>) -> Self {
        Self {
            latest,
            clock,
            silent,
            seen: Mutex::default(),
        }
    }

    fn said(&self, bundle: &BundleId, signing_root: &Fingerprint) -> HolderReport {
        let latest = self.latest.borrow();
        let status = latest.as_ref().and_then(|object| object.status.as_ref());
        let Some(proxies) = status.and_then(|status| status.proxies.as_ref()) else {
            return unknown("has not said yet what proxies hold; is it running?".to_owned());
        };
        let now = self.clock.now();
        let report = read(proxies, bundle, signing_root, now);
        let age = self.age_of(SystemTime::from(proxies.at.0));
        HolderReport {
            at: report.at.map(|at| at.min(now - age)),
            ..report
        }
    }

    /// For how long what control wrote then has been known here.
    fn age_of(&self, written: SystemTime) -> Duration {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, since) = seen.unwrap_or((written, Instant::now()));
        let since = if before == written {
            since
        } else {
            Instant::now()
        };
        *seen = Some((written, since));
        since.elapsed()
    }
}

impl Holders for ReportedHolders {
    fn report(&self, bundle: &BundleId, signing_root: &Fingerprint) -> HolderReport {
        HolderReport {
            silent: self.silent,
            ..self.said(bundle, signing_root)
        }
    }
}

fn read(
    proxies: &Proxies,
    bundle: &BundleId,
    signing_root: &Fingerprint,
    now: SystemTime,
) -> HolderReport {
    let at = SystemTime::from(proxies.at.0);
    if at.duration_since(now).is_ok_and(|ahead| ahead > FRESH) {
        return unknown(format!(
            "says what proxies hold at {}, which is in the future: one of the clocks is wrong",
            proxies.at.0
        ));
    }
    if now.duration_since(at).is_ok_and(|age| age > FRESH) {
        return unknown(format!(
            "has not said since {} what proxies hold; is it running?",
            proxies.at.0
        ));
    }
    if proxies.bundle != bundle.to_string() {
        return unknown("has not compared proxies with this trust bundle yet".to_owned());
    }
    let is_root = proxies.signing_root == signing_root.to_string();
    HolderReport {
        total: count(proxies.total),
        holding: count(proxies.holding),
        renewed: if is_root { count(proxies.renewed) } else { 0 },
        missing: proxies
            .missing
            .iter()
            .map(|missing| Missing {
                who: missing.pod.clone(),
                reason: missing.reason.clone(),
            })
            .collect(),
        at: Some(at),
        silent: None,
    }
}

fn unknown(reason: String) -> HolderReport {
    HolderReport {
        missing: vec![Missing {
            who: "control".to_owned(),
            reason,
        }],
        ..HolderReport::default()
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use std::time::UNIX_EPOCH;

    fn bundle() -> BundleId {
        "00112233445566778899aabbccddeeff".parse().unwrap()
    }

    fn root(digit: &str) -> Fingerprint {
        digit.repeat(64).parse().unwrap()
    }

    fn proxies() -> Proxies {
        Proxies {
            total: 3,
            holding: 2,
            renewed: 1,
            summary: "2/3".to_owned(),
            bundle: bundle().to_string(),
            signing_root: root("a").to_string(),
            missing: Vec::new(),
            at: Time(UNIX_EPOCH.try_into().unwrap()),
        }
    }

    #[test]
    fn what_control_says_counts_while_it_is_fresh() {
        let fresh = read(&proxies(), &bundle(), &root("a"), UNIX_EPOCH + FRESH);
        assert_eq!((fresh.total, fresh.holding, fresh.renewed), (3, 2, 1));
        assert_eq!(fresh.at, Some(UNIX_EPOCH));
        let later = UNIX_EPOCH + FRESH + Duration::from_secs(1);
        let stale = read(&proxies(), &bundle(), &root("a"), later);
        assert_eq!(stale.at, None, "control is away");
        assert!(stale.missing[0].reason.contains("1970"), "{stale:?}");
    }

    #[test]
    fn what_control_says_of_the_future_is_not_known_now() {
        let ahead = Proxies {
            at: Time((UNIX_EPOCH + 10 * FRESH).try_into().unwrap()),
            ..proxies()
        };
        let report = read(&ahead, &bundle(), &root("a"), UNIX_EPOCH);
        assert_eq!(report.at, None);
        assert!(report.missing[0].reason.contains("clocks"), "{report:?}");
        let now = UNIX_EPOCH + 9 * FRESH;
        assert!(read(&ahead, &bundle(), &root("a"), now).at.is_some());
    }

    #[test]
    fn proxies_that_were_compared_with_another_bundle_or_root_are_not_taken_for_done() {
        let other = "ffeeddccbbaa99887766554433221100".parse().unwrap();
        assert_eq!(
            read(&proxies(), &other, &root("a"), UNIX_EPOCH).at,
            None,
            "another bundle"
        );
        let report = read(&proxies(), &bundle(), &root("b"), UNIX_EPOCH);
        assert_eq!((report.holding, report.renewed), (2, 0), "another root");
    }
}
