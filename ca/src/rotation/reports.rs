//! What workloads hold, by what they say when they ask for a certificate: for a
//! CA that nobody else tells.
//!
//! It is kept in memory, for as long as the certificates that were issued are
//! valid. So a CA that was restarted knows of all workloads again only when
//! every certificate from before has expired; until then it says that it does
//! not know. Nor does it know the callers of another process that serves from
//! the same directory: as long as their certificates may be valid, they are others
//! who never say anything.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_pki::bundle::BundleId;
use bulkhead_pki::certificate::Fingerprint;
use bulkhead_runtime::clock::Clock;
use tokio::time::Instant;

use super::holders::{HolderReport, Holders, Missing};
use crate::issuer::Issued;
use crate::store::directory::election::Election;

/// The most workloads that are kept; where there are more, nothing is known of
/// the rest, and the report says that it does not know.
const MAX_WORKLOADS: usize = 100_000;

/// The most that are named in a report.
const MAX_NAMED: usize = 100;

/// What workloads said.
pub struct Reports {
    clock: Clock,
    /// This process among others on a directory.
    election: Option<Election>,
    seen: Mutex<Seen>,
}

struct Seen {
    /// The longest life of a certificate.
    lifetime: Duration,
    workloads: HashMap<String, Held>,
    /// Until when somebody may have a certificate that this process does not know
    /// of: from before it began, or from when there were too many.
    unknown_until: Option<Instant>,
    /// When another process was last known to have served.
    others: Option<Instant>,
}

/// What one workload has.
#[derive(Clone, Copy)]
struct Held {
    given: BundleId,
    /// What it said that it holds, if that was not what it had been given: then
    /// that counts, until it says that it took what it was given.
    claimed: Option<BundleId>,
    signing_root: Fingerprint,
    not_after: SystemTime,
}

impl Reports {
    pub fn new(lifetime: Duration, clock: Clock) -> Self {
        Self {
            clock,
            election: None,
            seen: Mutex::new(Seen {
                lifetime,
                workloads: HashMap::new(),
                unknown_until: Some(Instant::now() + lifetime),
                others: None,
            }),
        }
    }

    /// For a process that others may serve beside.
    pub fn beside(self, election: Election) -> Self {
        Self {
            election: Some(election),
            ..self
        }
    }

    fn note(&self, who: &str, issued: &Issued) {
        let mut seen = self.seen();
        let before = seen.workloads.get(who);
        let held = Held {
            given: issued.bundle,
            claimed: before.and_then(|held| held.claimed),
            signing_root: issued.signing_root,
            not_after: issued.svid.not_after(),
        };
        if seen.workloads.len() >= MAX_WORKLOADS && !seen.workloads.contains_key(who) {
            seen.forget(self.clock.now());
        }
        if seen.workloads.len() >= MAX_WORKLOADS && !seen.workloads.contains_key(who) {
            seen.unknown_until = Some(Instant::now() + seen.lifetime);
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
        self.seen().unknown_until = None;
    }

    fn resumes(&self, leaf_life: Duration) {
        let mut seen = self.seen();
        let longer = leaf_life.saturating_sub(seen.lifetime);
        seen.lifetime += longer;
        seen.unknown_until = seen.unknown_until.map(|until| until + longer);
    }

    /// A workload takes what it is given with a certificate, or says at its next
    /// call that it did not.
    fn claimed(&self, who: &str, bundle: BundleId) {
        if let Some(held) = self.seen().workloads.get_mut(who) {
            held.claimed = Some(bundle).filter(|bundle| *bundle != held.given);
        }
    }

    fn issued(&self, to: &str, issued: &Issued) {
        self.note(to, issued);
    }

    fn report(&self, bundle: &BundleId, signing_root: &Fingerprint) -> HolderReport {
        let now = self.clock.now();
        let mut seen = self.seen();
        seen.forget(now);
        if self.election.as_ref().is_some_and(Election::others_served) {
            seen.others = Some(Instant::now());
        }
        let others = seen.others.filter(|at| at.elapsed() < seen.lifetime);
        let knows_all = seen
            .unknown_until
            .is_none_or(|until| Instant::now() >= until);
        let mut report = HolderReport {
            total: seen.workloads.len(),
            at: knows_all.then_some(now),
            // Each gets the bundle with its next certificate.
            silent: others.map(|_| seen.lifetime),
            ..HolderReport::default()
        };
        for (who, held) in &seen.workloads {
            let holds = held.claimed.unwrap_or(held.given) == *bundle;
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
