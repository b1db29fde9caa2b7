//! Taking over trust bundles, with the certificate that is there.

use crate::authority::Authority;
use crate::bundle_file::News;
use crate::credentials::Credentials;
use crate::state::Trust;
use crate::trust::{Source, supersedes};
use bulkhead_pki::bundle::TrustBundle;
use bulkhead_runtime::backoff::jitter;

use super::{Due, Task, seconds};

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
            Err(error) => return self.bundle_refused("unreadable", &error.to_string()),
        };
        let News { content, is_change } = news;
        let offered = match self.file.parse(&content) {
            Ok(offered) => offered,
            Err(error) => return self.bundle_refused("malformed", &error.to_string()),
        };
        let identity = current.identity();
        if !supersedes(&offered, identity.bundle(), is_change) {
            self.file.deal_with(content);
            return self.no_problem();
        }
        let with_bundle = identity.with_bundle(offered, self.clock.now());
        let credentials = with_bundle.map(Credentials::new);
        match credentials {
            Ok(Ok(credentials)) => {
                self.file.deal_with(content);
                self.publish(credentials);
                self.bundle_taken(Source::File);
            }
            Ok(Err(error)) => self.bundle_refused("local_failure", &error.to_string()),
            // Once there is another certificate it may fit.
            Err(error) => self.bundle_refused("own_chain_rejected", &error.to_string()),
        }
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
        }
    }

    /// Without a version there is no rotation of Bulkhead's that waits for it.
    fn must_tell(&self, bundle: &TrustBundle) -> bool {
        !self.reports_to_control && bundle.sequence() > 0 && self.claimed != Some(bundle.id())
    }

    fn renew_early(&mut self, reason: &'static str) {
        let Some(issuance) = self.issuance else {
            return;
        };
        let early = issuance.early(self.clock.now(), jitter());
        if matches!(self.due, Due::At(due) if early < due) {
            tracing::info!(due = seconds(early), reason, "renewing early");
            self.set_due(early);
        }
    }

    /// The file has something that cannot be taken. It is said once, and the file
    /// is looked at again.
    fn bundle_refused(&self, outcome: &'static str, problem: &str) {
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
    }

    fn no_problem(&self) {
        self.state
            .send_if_modified(|state| state.trust.problem.take().is_some());
    }
}
