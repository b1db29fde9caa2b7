//! Leaves that an upstream signs, one by one.
//!
//! A leaf is given out only under the root that signs by our own book: one that
//! was published, held by all workloads and put to use. An upstream may go over
//! to another root whenever it likes; until that one is held everywhere its
//! leaves would cut their holders off, so that callers are told to come again.

use std::time::{Duration, SystemTime};

use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::elsewhere::Signed;
use bulkhead_pki::serving::ServingCertificate;

use super::RotatingIssuer;
use crate::issuer::{IssueError, Issued};
use crate::upstream::{Reason, UpstreamError};
use crate::vet::VettedCsr;

/// How long an upstream may take. With the waits before it a caller is answered
/// within the ten seconds that clients wait.
const SIGNED_WITHIN: Duration = Duration::from_secs(5);

impl RotatingIssuer {
    /// Has a leaf signed by the upstream that signed `own`.
    pub(super) async fn issue_upstream(
        &self,
        own: &Signed<ServingCertificate>,
        csr: &VettedCsr,
        lifetime: Duration,
    ) -> Result<Issued, IssueError> {
        let above = self.given.upstream.as_ref();
        let above = above.ok_or(IssueError::NoUpstream)?;
        let left = signers_end(own).duration_since(self.given.clock.now());
        let lifetime = lifetime.min(left.unwrap_or_default());
        let signed = above.upstream.sign_leaf(csr, lifetime);
        let signed = tokio::time::timeout(SIGNED_WITHIN, signed).await;
        let Signed { certificate, root } = signed.map_err(|_| late())??;
        // It may have changed meanwhile which root signs.
        let current = self.current.load();
        if root.fingerprint() != current.signing_root {
            self.saw_root(&root);
            return Err(IssueError::NewRoot(root.fingerprint()));
        }
        let intermediates = certificate.intermediates().iter();
        let intermediates = intermediates.map(Certificate::to_pem).collect();
        Ok(current.issued(certificate, intermediates))
    }
}

fn late() -> UpstreamError {
    UpstreamError::new(
        Reason::Unreachable,
        format!("it did not answer within {} s", SIGNED_WITHIN.as_secs()),
    )
}

/// When the first of those ends that signed this: nothing below may live longer.
fn signers_end(own: &Signed<ServingCertificate>) -> SystemTime {
    let above = own.certificate.chain().iter().skip(1).chain([&own.root]);
    let ends = above.map(Certificate::not_after);
    ends.min().unwrap_or_else(|| own.root.not_after())
}
