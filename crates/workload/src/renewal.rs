//! Getting the workload's certificate, renewing it before it is due, and taking
//! over new trust roots in between.
//!
//! ```text
//!  new key ─▶ CSR ─▶ CA ─▶ verified as a peer would ─▶ published ─▶ wait ─▶ again
//!                    └──▶ failed: the old one serves on; wait longer each time
//!
//!  bundle file ─▶ later? ─▶ present chain verified by it ─▶ published
//!                    └──▶ failed: the old bundle holds, and the file is looked at again
//! ```
//!
//! A new key each time; the old certificate serves until the new one has passed
//! the peer's own verifier. A CA that does not answer costs nothing but a metric
//! and a log line until the old certificate expires.
//!
//! A new root reaches workloads by the file before anything is signed by it, and
//! they take it with the certificate that they have. Once another root signs than
//! the one that their certificate ends in, they renew early. So they do with each
//! change of the roots where no control reports what they hold: the CA hears it
//! with the request.

mod task;

use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::readiness::Condition;
use tokio::sync::{mpsc, watch};

use crate::authority::Remote;
use crate::credentials::Publisher;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::state::State;
use task::{Task, Told};

/// The task that keeps certificate and trust bundle fresh.
pub struct Renewal(Task<Remote>);

/// Asks for a renewal now; it happens soon, or there is one under way.
#[derive(Clone, Debug)]
pub struct RenewalRequests(mpsc::Sender<()>);

impl RenewalRequests {
    pub fn renew(&self) {
        // Full means that one is asked for already.
        let _ = self.0.try_send(());
    }
}

impl Renewal {
    /// Publishes to `publisher`, and sets `has_certificate` while there is one
    /// that is valid.
    pub fn new(
        settings: Settings,
        clock: Clock,
        publisher: Publisher,
        metrics: Metrics,
        has_certificate: Condition,
    ) -> (Self, RenewalRequests) {
        let (sender, requests) = mpsc::channel(1);
        let authority = Remote::new(settings.clone());
        let told = Told {
            publisher,
            metrics,
            has_certificate,
        };
        let task = Task::new(&settings, authority, clock, told, requests);
        (Self(task), RenewalRequests(sender))
    }

    /// How it goes, now and from now on.
    pub fn state(&self) -> watch::Receiver<State> {
        self.0.state()
    }

    /// Runs for ever.
    pub async fn run(self) {
        self.0.run().await;
    }
}
