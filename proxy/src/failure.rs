//! What went wrong with one connection or request, as the proxy tells it: a
//! stable reason, and the particulars for the log.

use std::fmt;
use std::io;

use bulkhead_core::reason::Reason;

/// A refusal or failure of the proxy's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    pub reason: Reason,
    /// What was attempted, to what, and what the other side or kernel said.
    pub detail: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
        }
    }
}

impl Failure {
    /// A server that cannot be reached behind its proxy, where there is no other.
    pub(crate) fn undelivered() -> Self {
        let detail = "the server's proxy could not connect to its application";
        Self::new(Reason::UpstreamConnectFailed, detail)
    }

    /// What a broken connection to a server means. In TLS 1.3 a server refuses
    /// a client's certificate only after the client is done with the handshake,
    /// so the refusal arrives where a response was expected.
    pub(crate) fn of_upstream(error: &io::Error) -> Self {
        let alert = error
            .get_ref()
            .and_then(|error| error.downcast_ref::<rustls::Error>())
            .is_some_and(|error| matches!(error, rustls::Error::AlertReceived(_)));
        let reason = if alert {
            Reason::TlsHandshakeFailed
        } else if error.kind() == io::ErrorKind::OutOfMemory {
            // It was not the server: there was nothing to read its answer into.
            Reason::Overloaded
        } else {
            Reason::UpstreamClosed
        };
        Self::new(reason, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({})",
            self.reason,
            self.reason.cause(),
            self.detail
        )
    }
}

impl std::error::Error for Failure {}

/// The status of the answer that an HTTP client gets.
pub(crate) fn http_status(reason: Reason) -> u16 {
    match reason {
        Reason::PlaintextRefused | Reason::MtlsDisabled => 403,
        Reason::RequestMalformed => 400,
        Reason::RequestHeadTooLarge => 431,
        Reason::ResponseMalformed => 502,
        Reason::DestinationIsSelf => 508,
        Reason::DetectionTimeout => 408,
        Reason::TlsHandshakeFailed
        | Reason::PeerIdentityMismatch
        | Reason::UpstreamConnectFailed
        | Reason::NoReadyEndpoint
        | Reason::UpstreamClosed
        | Reason::NoCertificate
        | Reason::Overloaded => 503,
    }
}

/// The body of that answer: for whoever reads it in a terminal.
pub(crate) fn explanation(failure: &Failure, policy: Option<&str>) -> String {
    let reason = failure.reason;
    let mut text = format!(
        "bulkhead: {reason}: {}.\nWhat to do: {}.\n",
        reason.cause(),
        reason.remedy()
    );
    if let Some(policy) = policy {
        text.push_str(&format!("The rule: {policy}.\n"));
    }
    text
}

/// The header that carries the reason's code.
pub(crate) const REASON_HEADER: &str = "bulkhead-reason";

/// The header by which a proxy that is about to go tells another why it closes the
/// connection.
pub(crate) const DRAINING_HEADER: &str = "bulkhead-draining";
