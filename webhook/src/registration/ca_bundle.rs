//! The CAs that the API server verifies us by, agreed on by replicas that may
//! each know a different part of them for a while.
//!
//! A replica that has not seen the newest CA yet must not take out of the
//! configuration what a better informed one has put in, and the CA of a
//! certificate that some replica still serves must stay. So a CA of somebody
//! else's is left in for a while, and what replicas write in the end is the
//! same.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bulkhead_pki::certificate::{Certificate, Fingerprint};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use tokio::time::Instant;

/// How long a CA that is registered and not ours stays. A kubelet refreshes
/// mounted Secrets at most some two minutes apart, so by then every replica has
/// read what this one has.
const LINGER: Duration = Duration::from_secs(600);
/// The longest bundle that is read back, in bytes of PEM.
const MAX_BUNDLE: usize = 1024 * 1024;

/// The CAs that are registered and not ours, by fingerprint, with the moment
/// at which each was first seen so.
#[derive(Debug, Default)]
pub(crate) struct Foreign(HashMap<Fingerprint, Instant>);

impl Foreign {
    /// What should be registered: all of `own`, and those of `registered` that
    /// some other replica may still need. Sorted, so that replicas agree.
    pub(crate) fn merge(
        &mut self,
        own: &[Certificate],
        registered: &[Certificate],
        wall: SystemTime,
        now: Instant,
    ) -> Vec<Certificate> {
        let foreign: Vec<&Certificate> = registered
            .iter()
            .filter(|certificate| !own.contains(certificate) && wall <= certificate.not_after())
            .collect();
        let seen: HashMap<Fingerprint, Instant> = foreign
            .iter()
            .map(|certificate| certificate.fingerprint())
            .map(|print| {
                let since = self.0.get(&print).copied().unwrap_or(now);
                (print, since)
            })
            .collect();
        self.0 = seen;
        let mut merged: Vec<Certificate> = own
            .iter()
            .chain(foreign.into_iter().filter(|certificate| {
                now.duration_since(self.0[&certificate.fingerprint()]) < LINGER
            }))
            .cloned()
            .collect();
        merged.sort_by_key(Certificate::fingerprint);
        merged.dedup();
        merged
    }

    /// When the next CA of somebody else's will have stayed long enough.
    pub(crate) fn next_change(&self) -> Option<Instant> {
        self.0.values().min().map(|since| *since + LINGER)
    }
}

/// The CAs of a configuration's webhooks, each webhook on its own. A bundle
/// that cannot be read holds none.
pub(crate) fn registered(configuration: &MutatingWebhookConfiguration) -> Vec<Vec<Certificate>> {
    let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
    webhooks
        .iter()
        .map(|webhook| {
            webhook
                .client_config
                .ca_bundle
                .as_ref()
                .and_then(|bundle| std::str::from_utf8(&bundle.0).ok())
                .and_then(|text| Certificate::all_from_pem(text, MAX_BUNDLE).ok())
                .unwrap_or_default()
        })
        .collect()
}

pub(crate) fn to_pem(bundle: &[Certificate]) -> String {
    bundle.iter().map(Certificate::to_pem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_pki::serving::ServingAuthority;
    use std::time::UNIX_EPOCH;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn wall() -> SystemTime {
        UNIX_EPOCH + 20_000 * DAY
    }

    fn ca(lifetime: Duration) -> Certificate {
        ServingAuthority::new("test", lifetime, wall())
            .unwrap()
            .certificate()
            .clone()
    }

    #[test]
    fn replicas_that_know_different_cas_do_not_take_out_each_others() {
        let (old, new) = (ca(DAY), ca(DAY));
        let now = Instant::now();
        let (mut first, mut second) = (Foreign::default(), Foreign::default());
        let written = first.merge(
            std::slice::from_ref(&new),
            std::slice::from_ref(&old),
            wall(),
            now,
        );
        let rewritten = second.merge(std::slice::from_ref(&old), &written, wall(), now);
        assert_eq!(written.len(), 2);
        assert_eq!(written, rewritten, "no difference, so nothing to write");
    }

    #[test]
    fn a_ca_that_nobody_claims_leaves_after_a_while() {
        let (old, new) = (ca(DAY), ca(DAY));
        let now = Instant::now();
        let mut foreign = Foreign::default();
        let both = foreign.merge(std::slice::from_ref(&new), &[old], wall(), now);
        assert_eq!(foreign.next_change(), Some(now + LINGER));
        let kept = foreign.merge(std::slice::from_ref(&new), &both, wall(), now + LINGER / 2);
        assert_eq!(kept.len(), 2);
        let left = foreign.merge(std::slice::from_ref(&new), &kept, wall(), now + LINGER);
        assert_eq!(left, [new]);
    }

    #[test]
    fn an_expired_ca_of_somebody_elses_leaves_at_once() {
        let (old, new) = (ca(Duration::from_secs(60)), ca(DAY));
        let mut foreign = Foreign::default();
        let later = wall() + Duration::from_secs(120);
        let left = foreign.merge(std::slice::from_ref(&new), &[old], later, Instant::now());
        assert_eq!(left, [new]);
    }
}
