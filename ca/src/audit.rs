//! A record of each call: who asked, from where, for what, and what came of it.
//!
//! Records are log lines on a target of their own, which no log level turns off.
//! They hold no token and no key, so that they may be kept and shown.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::jwt::Audiences;

use crate::authenticate::Caller;
use crate::claims::Claims;
use crate::issuer::Issued;
use crate::metrics::Metrics;
use crate::service::Refusal;

/// The target of the records, for filters.
pub const TARGET: &str = "bulkhead_ca::audit";

/// The record of one call, written when the call ends; however it ends.
pub struct Record {
    id: RequestId,
    from: SocketAddr,
    claims: Claims,
    caller: Option<Caller>,
    /// The identity that it may ask for and does, once that is known.
    identity: Option<SpiffeId>,
    began: Instant,
    /// How long it waited for its turns.
    waited: Duration,
    metrics: Metrics,
    written: bool,
}

/// Names a call, in the log and to the caller, who may ask about it.
#[derive(Clone, Copy, Debug)]
pub struct RequestId(u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Record {
    pub fn begin(from: SocketAddr, claims: Claims, metrics: &Metrics) -> Self {
        let mut id = [0; 8];
        // Without randomness there is no signing either; the name of the call
        // is then the least of all worries.
        let _ = rand::fill(&mut id);
        Self {
            id: RequestId(u64::from_ne_bytes(id)),
            from,
            claims,
            caller: None,
            identity: None,
            began: Instant::now(),
            waited: Duration::ZERO,
            metrics: metrics.clone(),
            written: false,
        }
    }

    pub fn id(&self) -> RequestId {
        self.id
    }

    /// What the caller says of itself.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Notes that the call waited for a turn.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Notes who it is, once that is known.
    pub fn caller(&mut self, caller: &Caller) {
        self.caller = Some(caller.clone());
    }

    /// Notes for whom it asks: a node's proxy does so for others.
    pub fn asks_for(&mut self, identity: &SpiffeId) {
        self.identity = Some(identity.clone());
    }

    pub fn issued(mut self, issued: &Issued) {
        let svid = &issued.svid;
        let authority = svid.intermediates().first().map(Certificate::serial);
        self.written = true;
        self.metrics.issued.inc();
        let seconds = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH);
            since.unwrap_or_default().as_secs()
        };
        tracing::info!(
            target: TARGET,
            outcome = "issued",
            request = %self.id,
            from = %self.from,
            caller = self.caller_id(),
            pod = self.pod(),
            node = self.node(),
            trust_bundle = self.claims.trust_bundle.as_deref(),
            waited_ms = self.waited_ms(),
            authenticated_by = self.source(),
            renewed_serial = self.renewed_serial(),
            identity = svid.id().as_str(),
            serial = svid.serial(),
            authority,
            not_before = seconds(svid.not_before()),
            not_after = seconds(svid.not_after()),
            "a certificate was issued"
        );
    }

    /// Notes a token, by what can be told of it without showing it.
    pub fn token_issued(mut self, key_id: &str, audiences: &Audiences, not_after: SystemTime) {
        self.written = true;
        self.metrics.tokens_issued.inc();
        let since = not_after.duration_since(UNIX_EPOCH);
        tracing::info!(
            target: TARGET,
            outcome = "token_issued",
            request = %self.id,
            from = %self.from,
            caller = self.caller_id(),
            pod = self.pod(),
            authenticated_by = self.source(),
            identity = self.caller_id(),
            key_id,
            audiences = audiences.as_slice().join(" "),
            not_after = since.unwrap_or_default().as_secs(),
            "a token was issued"
        );
    }

    /// Ends a call that was about nothing secret and leaves nothing to note.
    pub fn told(mut self) {
        self.written = true;
    }

    pub fn refused(mut self, refusal: &Refusal) {
        self.written = true;
        self.metrics.refused(refusal.reason());
        tracing::info!(
            target: TARGET,
            outcome = "refused",
            request = %self.id,
            from = %self.from,
            caller = self.caller_id(),
            pod = self.pod(),
            node = self.node(),
            trust_bundle = self.claims.trust_bundle.as_deref(),
            waited_ms = self.waited_ms(),
            authenticated_by = self.source(),
            renewed_serial = self.renewed_serial(),
            identity = self.identity.as_ref().map(SpiffeId::as_str),
            reason = refusal.reason(),
            detail = %refusal,
            "a certificate or token was refused"
        );
    }

    fn caller_id(&self) -> Option<&str> {
        self.caller.as_ref().map(|caller| caller.id().as_str())
    }

    fn source(&self) -> Option<&'static str> {
        let caller = self.caller.as_ref()?;
        Some(caller.source().as_str())
    }

    /// Of the certificate that stood for a token.
    fn renewed_serial(&self) -> Option<&str> {
        let succession = self.caller.as_ref()?.succession()?;
        Some(&succession.serial)
    }

    fn pod(&self) -> Option<&str> {
        let pod = self.caller.as_ref()?.pod()?;
        Some(&pod.name)
    }

    fn node(&self) -> Option<&str> {
        self.caller.as_ref()?.node()
    }

    fn waited_ms(&self) -> u64 {
        u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Record {
    /// A call that was cut short, by its caller or by its deadline, has a record
    /// too.
    fn drop(&mut self) {
        self.metrics.call_took(self.began.elapsed());
        if self.written {
            return;
        }
        self.metrics.refused("abandoned");
        tracing::info!(
            target: TARGET,
            outcome = "abandoned",
            request = %self.id,
            from = %self.from,
            caller = self.caller_id(),
            pod = self.pod(),
            node = self.node(),
            identity = self.identity.as_ref().map(SpiffeId::as_str),
            waited_ms = self.waited_ms(),
            "a call ended before its answer: its caller went away, or it took too long"
        );
    }
}
