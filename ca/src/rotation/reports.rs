//! What workloads hold, by what they say when they ask for a certificate: for a
//! CA that nobody else tells.
//!
//! It is kept in memory, for as long as the certificates that were issued are
//! valid. So a CA that was restarted knows of all workloads again only when
//! every certificate from before has expired; until then it says that it does
//! not know.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_pki::bundle::BundleId;
use bulkhead_pki::certificate::Fingerprint;
use bulkhead_runtime::clock::Clock;
use tokio::time::Instant;

use super::holders::{HolderReport, Holders, Missing};
use crate::issuer::Issued;

/// The most workloads that are kept; where there are more, nothing is known of
/// the rest, and the report says that it does not know.
const MAX_WORKLOADS: usize = 100_000;

/// The most that are named in a report.
const MAX_NAMED: usize = 100;

/// What workloads said.
pub struct Reports {
    clock: Clock,
    /// The longest life of a certificate from before this process.
    lifetime: Duration,
    began: Instant,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    workloads: HashMap<String, Held>,
    /// Whether nobody has a certificate that this process does not know of.
    knows_all: bool,
    overflowed: bool,
}

/// What one workload has.
#[derive(Clone, Copy)]
struct Held {
    bundle: BundleId,
    signing_root: Fingerprint,
    not_after: SystemTime,
    /// Whether it said that it holds another bundle than it was given: what it
    /// says counts then, and not what it is given.
    is_doubted: bool,
}

impl Reports {
    pub fn new(lifetime: Duration, clock: Clock) -> Self {
        Self {
            clock,
            lifetime,
            began: Instant::now(),
            seen: Mutex::default(),
        }
    }

    fn note(&self, who: &str, issued: &Issued) {
        let mut seen = self.seen();
        let before = seen.workloads.get(who);
        let doubted = before.filter(|held| held.is_doubted);
        let held = Held {
            bundle: doubted.map_or(issued.bundle, |held| held.bundle),
            is_doubted: doubted.is_some(),
            signing_root: issued.signing_root,
            not_after: issued.svid.not_after(),
        };
        if seen.workloads.len() >= MAX_WORKLOADS && !seen.workloads.contains_key(who) {
            seen.forget(self.clock.now());
        }
        if seen.workloads.len() >= MAX_WORKLOADS && !seen.workloads.contains_key(who) {
            seen.overflowed = true;
            return;
        }
        seen.workloads.insert(who.to_owned(), held);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Whoever has no valid certificate any more is cut off from nobody.
    fn forget(&mut self, now: SystemTime) {
        self.workloads.retain(|_, held| now < held.not_after);
    }
}

impl Holders for Reports {
    fn begins(&self) {
        self.seen().knows_all = true;
    }

    /// A workload takes what it is given with a certificate, or says at its next
    /// call that it did not.
    fn claimed(&self, who: &str, bundle: BundleId) {
        if let Some(held) = self.seen().workloads.get_mut(who) {
            held.is_doubted = held.bundle != bundle;
            held.bundle = bundle;
        }
    }

    fn issued(&self, to: &str, issued: &Issued) {
        self.note(to, issued);
    }

    fn report(&self, bundle: &BundleId, signing_root: &Fingerprint) -> HolderReport {
        let now = self.clock.now();
        let mut seen = self.seen();
        seen.forget(now);
        let knows_all = seen.knows_all || self.began.elapsed() >= self.lifetime;
        let mut report = HolderReport {
            total: seen.workloads.len(),
            at: (knows_all && !seen.overflowed).then_some(now),
            ..HolderReport::default()
        };
        for (who, held) in &seen.workloads {
            let holds = held.bundle == *bundle;
            let has_renewed = held.signing_root == *signing_root;
            report.holding += usize::from(holds);
            report.renewed += usize::from(has_renewed);
            if (holds && has_renewed) || report.missing.len() >= MAX_NAMED {
                continue;
            }
            let lack = if holds {
                "has not renewed under the new root yet"
            } else {
                "was not seen with the trust bundle yet; it asks again when its certificate is due"
            };
            report.missing.push(Missing {
                who: who.clone(),
                reason: lack.to_owned(),
            });
        }
        report.missing.sort_by(|one, other| one.who.cmp(&other.who));
        report
    }
}
