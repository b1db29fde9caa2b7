//! Taking over trust bundles, with the certificate that is there.

use std::time::{Duration, SystemTime};

use crate::authority::Authority;
use crate::bundle_file::News;
use crate::credentials::Credentials;
use crate::state::Trust;
use crate::trust::{Source, is_plausible, settles, supersedes};
use bulkhead_pki::bundle::TrustBundle;
use bulkhead_runtime::backoff::jitter;
use tokio::time::Instant;

use super::{Due, LOOK, Task, seconds};

impl<A: Authority> Task<A> {
    /// Takes over the trust bundle of the file, where it is a later one.
    pub(super) async fn look_at_file(&mut self) {
        let Some(current) = self.current() else {
            // Without a certificate there is nothing to verify a bundle by.
            return;
        };
        let news = match self.file.look().await {
            Ok(Some(news)) => news,
            Ok(None) => return self.no_problem(),
            Err(error) => {
                self.bundle_refused("unreadable", &error.to_string());
                return;
            }
        };
        let News { content, is_change } = news;
        let offered = match self.file.parse(&content) {
            Ok(offered) => offered,
            Err(error) => {
                self.bundle_refused("malformed", &error.to_string());
                return;
            }
        };
        let identity = current.identity();
        if !supersedes(&offered, identity.bundle(), is_change) {
            self.file.deal_with(content);
            return self.no_problem();
        }
        if let Some(problem) = self.doubt(&offered) {
            self.ask_about("unconfirmed", &problem);
            return;
        }
        let with_bundle = identity.with_bundle(offered, self.clock.now());
        let credentials = with_bundle.map(Credentials::new);
        match credentials {
            Ok(Ok(credentials)) => {
                self.file.deal_with(content);
                self.doubts.reset();
                self.publish(credentials);
                self.bundle_taken(Source::File);
            }
            Ok(Err(error)) => {
                self.bundle_refused("local_failure", &error.to_string());
            }
            // Once there is another certificate it may fit: the one in use may be
            // from a replica of the CA that was behind.
            Err(error) => self.ask_about("own_chain_rejected", &error.to_string()),
        }
    }

    /// Why the CA is to be asked before a bundle of the file's is taken.
    fn doubt(&self, offered: &TrustBundle) -> Option<String> {
        let (offered, vouched) = (offered.sequence(), self.vouched_sequence());
        if vouched == 0 {
            // A CA that says no versions: nobody can tell which is later.
            return None;
        }
        if offered == 0 {
            let problem = "the file does not say which version of the trust bundle it has, and \
                           the CA does: it is asked which is right";
            return Some(problem.to_owned());
        }
        if !is_plausible(offered, vouched, self.clock.now()) {
            return Some(format!(
                "the file has version {offered} of the trust bundle, which is of the future: who \
                 wrote it? The CA is asked which is right; its last was {vouched}"
            ));
        }
        self.distrusts_file.then(|| {
            format!(
                "the file has version {offered} of the trust bundle, and had one before that the \
                 CA knows nothing of: the CA is asked which is right"
            )
        })
    }

    /// The file has something that cannot be taken yet, and the CA may help.
    fn ask_about(&mut self, outcome: &'static str, problem: &str) {
        self.bundle_refused(outcome, problem);
        let now = Instant::now();
        if now < self.doubt {
            return;
        }
        let wait = self.doubts.after_failure(jitter());
        // The answer is looked at before the next question.
        self.doubt = now + wait + LOOK + LOOK;
        self.renew_by(
            self.clock.now() + wait,
            "the file has a trust bundle that cannot be taken yet",
        );
    }

    /// The version of the latest bundle that the CA itself said; 0 for none.
    pub(super) fn vouched_sequence(&self) -> u64 {
        self.vouched.as_ref().map_or(0, TrustBundle::sequence)
    }

    /// The CA has said which bundle there is. A replica that is behind takes
    /// nothing back.
    pub(super) fn vouch(&mut self, answered: TrustBundle) {
        if answered.sequence() == 0 || answered.sequence() >= self.vouched_sequence() {
            self.vouched = Some(answered);
        }
    }

    /// The CA knows nothing of what the file said, and that was taken back.
    pub(super) fn refuted(&mut self, held: &TrustBundle, answered: &TrustBundle) {
        self.distrusts_file = true;
        self.told.metrics.trust(Source::File, "refuted");
        tracing::error!(
            trust_bundle = %held.id(),
            sequence = held.sequence(),
            authority_trust_bundle = %answered.id(),
            authority_sequence = answered.sequence(),
            "the file had a trust bundle that the CA knows nothing of; it is held no longer. Who \
             wrote the file?"
        );
    }

    /// The CA has not said yet whether it knows what the file said: once it must,
    /// it is asked again.
    pub(super) fn ask_again_if_in_doubt(&mut self) {
        let current = self.current();
        let Some(held) = current.as_ref().map(|current| current.identity().bundle()) else {
            return;
        };
        let (now, sequence) = (self.clock.now(), held.sequence());
        if sequence <= self.vouched_sequence() || self.vouched_sequence() == 0 {
            return;
        }
        let wait = settles(sequence).and_then(|at| at.duration_since(now).ok());
        self.renew_early_after(
            wait.unwrap_or_default(),
            "the CA has not confirmed the trust bundle of the file yet",
        );
    }

    /// A bundle has been published: if another root signs now than the one that
    /// this workload's own certificate ends in, it leaves that one soon; and if
    /// the CA hears from nobody else that it is held, it hears it soon.
    pub(super) fn bundle_taken(&mut self, source: Source) {
        let Some(current) = self.current() else {
            return;
        };
        let identity = current.identity();
        let bundle = identity.bundle();
        let now = self.clock.now();
        let roots = bundle.roots().certificates();
        tracing::info!(
            %source,
            trust_bundle = %bundle.id(),
            sequence = bundle.sequence(),
            roots = roots.len(),
            "took a trust bundle"
        );
        self.told.metrics.trust(source, "adopted");
        self.state.send_modify(|state| {
            state.trust = Trust {
                source: Some(source),
                adopted: Some(now),
                problem: None,
            };
        });
        let signs = roots.first();
        if signs.is_some_and(|root| root != identity.signing_root()) {
            self.renew_early("another root signs now");
        } else if self.must_tell(bundle) {
            self.renew_early("the CA is not told in another way what is held here");
        } else if self.is_unconfirmed(bundle) {
            self.renew_early("the CA has not said itself that this root is to be trusted");
        }
    }

    /// Whether a root is trusted of which only the file has told.
    fn is_unconfirmed(&self, bundle: &TrustBundle) -> bool {
        let Some(vouched) = self.vouched.as_ref().filter(|last| last.sequence() > 0) else {
            return false;
        };
        let known = vouched.roots().certificates();
        let mut roots = bundle.roots().certificates().iter();
        roots.any(|root| !known.contains(root))
    }

    /// Without a version there is no rotation of Bulkhead's that waits for it.
    fn must_tell(&self, bundle: &TrustBundle) -> bool {
        !self.reports_to_control && bundle.sequence() > 0 && self.claimed != Some(bundle.id())
    }

    fn renew_early(&mut self, reason: &'static str) {
        self.renew_early_after(Duration::ZERO, reason);
    }

    fn renew_early_after(&mut self, wait: Duration, reason: &'static str) {
        let Some(issuance) = self.issuance else {
            return;
        };
        self.renew_by(issuance.early(self.clock.now() + wait, jitter()), reason);
    }

    fn renew_by(&mut self, early: SystemTime, reason: &'static str) {
        if matches!(self.due, Due::At(due) if early < due) {
            tracing::info!(due = seconds(early), reason, "renewing early");
            self.set_due(early);
        }
    }

    /// The file has something that cannot be taken. It is said once, and the file
    /// is looked at again. Returns whether it was not said before.
    fn bundle_refused(&self, outcome: &'static str, problem: &str) -> bool {
        let is_new = self.state.send_if_modified(|state| {
            let is_new = state.trust.problem.as_deref() != Some(problem);
            state.trust.problem = Some(problem.to_owned());
            is_new
        });
        if is_new {
            self.told.metrics.trust(Source::File, outcome);
            tracing::warn!(
                problem,
                outcome,
                own_time = seconds(self.clock.now()),
                "the trust bundle in the file cannot be taken; the one in use holds"
            );
        }
        is_new
    }

    fn no_problem(&mut self) {
        self.doubts.reset();
        self.state
            .send_if_modified(|state| state.trust.problem.take().is_some());
    }
}
