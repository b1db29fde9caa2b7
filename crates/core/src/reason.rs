//! The stable code of each answer that the proxy makes by itself.
//!
//! The code is the value of the `bulkhead-reason` response header, a field of
//! the log line and a metric label. Codes never change meaning: people write
//! alerts on them.

use std::fmt;

/// Why the proxy refused or failed something.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Reason {
    PlaintextRefused,
    MtlsDisabled,
    TlsHandshakeFailed,
    PeerIdentityMismatch,
    UpstreamConnectFailed,
    NoReadyEndpoint,
    UpstreamClosed,
    RequestMalformed,
    RequestHeadTooLarge,
    ResponseMalformed,
    NoCertificate,
    DestinationIsSelf,
    DetectionTimeout,
    Overloaded,
}

impl Reason {
    /// The table of the docs, in its order.
    pub const ALL: [Self; 14] = [
        Self::PlaintextRefused,
        Self::MtlsDisabled,
        Self::TlsHandshakeFailed,
        Self::PeerIdentityMismatch,
        Self::UpstreamConnectFailed,
        Self::NoReadyEndpoint,
        Self::UpstreamClosed,
        Self::RequestMalformed,
        Self::RequestHeadTooLarge,
        Self::ResponseMalformed,
        Self::NoCertificate,
        Self::DestinationIsSelf,
        Self::DetectionTimeout,
        Self::Overloaded,
    ];

    /// The code, as it stands in headers, logs and metrics.
    pub fn code(self) -> &'static str {
        self.row().0
    }

    /// What happened, for the person who reads the answer.
    pub fn cause(self) -> &'static str {
        self.row().1
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        self.row().2
    }

    /// `docs/reasons.md`.
    pub fn markdown() -> String {
        let mut text = String::from(
            "# Why the proxy refused something\n\n\
             Each answer that the proxy makes by itself carries a code: in the \
             `bulkhead-reason`\nresponse header, in the log line's `reason`, and in the \
             label of `bulkhead_refusals_total`.\nCodes never change meaning.\n\n\
             | code | what happened | what to do |\n|---|---|---|\n",
        );
        for reason in Self::ALL {
            let (code, cause, remedy) = reason.row();
            text.push_str(&format!("| `{code}` | {cause} | {remedy} |\n"));
        }
        text.push_str("\nThis page is made from `crates/core/src/reason.rs`.\n");
        text
    }

    fn row(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::PlaintextRefused => (
                "plaintext_refused",
                "the port accepts mesh mTLS only (STRICT) and the client spoke plaintext",
                "give the client a sidecar, or set the port or workload to PERMISSIVE",
            ),
            Self::MtlsDisabled => (
                "mtls_disabled",
                "the port accepts plaintext only (DISABLE) and the client spoke mesh mTLS",
                "set the port to PERMISSIVE, or tell the client that it is not meshed",
            ),
            Self::TlsHandshakeFailed => (
                "tls_handshake_failed",
                "mutual TLS could not be agreed on",
                "compare both sides' trust bundles, certificates and clocks; the log has the alert",
            ),
            Self::PeerIdentityMismatch => (
                "peer_identity_mismatch",
                "the server proved another SPIFFE ID than the one expected of it",
                "check which workload listens at that address, and the expected identity",
            ),
            Self::UpstreamConnectFailed => (
                "upstream_connect_failed",
                "the destination did not accept a connection",
                "check that it listens there and that no network policy is in between",
            ),
            Self::NoReadyEndpoint => (
                "no_ready_endpoint",
                "no pod of the Service that was dialled is ready",
                "look at the Service's pods and their readiness probes, and at its selector",
            ),
            Self::UpstreamClosed => (
                "upstream_closed",
                "the destination closed the connection before a whole response",
                "look for a crash or an idle timeout at the destination",
            ),
            Self::RequestMalformed => (
                "request_malformed",
                "the request could be read in more than one way, or not at all",
                "mend the client; the log says which rule of RFC 9112 it broke",
            ),
            Self::RequestHeadTooLarge => (
                "request_head_too_large",
                "the request line and headers are longer than the limit",
                "send smaller headers; cookies are the usual cause",
            ),
            Self::ResponseMalformed => (
                "response_malformed",
                "the application's response could not be read",
                "mend the application; the log says which rule of RFC 9112 it broke",
            ),
            Self::NoCertificate => (
                "no_certificate",
                "the proxy has no valid certificate of its own yet",
                "look at its log for why the CA does not answer",
            ),
            Self::DestinationIsSelf => (
                "destination_is_self",
                "the connection was not redirected but made to the proxy's own port",
                "dial the application's port, not the proxy's",
            ),
            Self::DetectionTimeout => (
                "detection_timeout",
                "the port accepts mesh mTLS only (STRICT) and the client said nothing",
                "if the server is meant to speak first there, the client needs a sidecar too",
            ),
            Self::Overloaded => (
                "overloaded",
                "the proxy has nearly used up the memory that it may use",
                "try again later; give the proxy a higher memory limit, or the workload more pods",
            ),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_page_for_people_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reasons.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == Reason::markdown(),
            "docs/reasons.md is out of date; run: \
             cargo run -p bulkhead-core --example reasons > docs/reasons.md"
        );
    }

    #[test]
    fn codes_are_unique_and_fit_a_metric_label() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert!(codes.iter().all(|code| {
            code.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        }));
    }
}
