//! Why the CA gave no certificate.

use std::io;
use std::time::{Duration, SystemTime};

use bulkhead_pki::bundle::BundleError;
use bulkhead_pki::serving::TlsError;
use bulkhead_proto::ca::AnswerError;
use bulkhead_proto::retry;
use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    #[error("reading the token from {0} failed: {1}")]
    Token(String, io::Error),
    #[error(
        "the token in {0} has {1} bytes, and none is like that: was the disk full when it was written?"
    )]
    TokenLength(String, usize),
    #[error("the token in {0} has characters that no token has")]
    TokenCharacters(String),
    #[error("reading the CA's roots from {0} failed: {1}")]
    Roots(String, io::Error),
    #[error("the roots that the CA is verified by are unusable: {0}")]
    UnusableRoots(#[from] BundleError),
    #[error("the CA's address {0:?} is not host:port")]
    Address(String),
    #[error("setting up TLS to the CA failed: {0}")]
    Tls(#[from] TlsError),
    #[error("connecting to the CA failed: {0}; is it up?")]
    Connect(io::Error),
    #[error(
        "the CA did not prove to be the CA: {0}; does its certificate have this name, are the roots its own, and is the clock right?"
    )]
    Handshake(io::Error),
    #[error("the CA broke the connection off: {}", chain(.0))]
    Transport(#[from] tonic::transport::Error),
    #[error("the CA refused: {} ({}); its log says why", .0.message(), .0.code())]
    Call(#[from] Status),
    #[error("the CA did not answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

impl AuthorityError {
    /// The metric's label.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Token(..) | Self::TokenLength(..) | Self::TokenCharacters(_) => "token_unusable",
            Self::Roots(..) | Self::UnusableRoots(_) => "roots_unusable",
            Self::Address(_) | Self::Tls(_) => "local_failure",
            Self::Connect(_) | Self::Transport(_) => "authority_unreachable",
            Self::Handshake(error) if is_tls(error) => "authority_unverified",
            Self::Handshake(_) => "authority_unreachable",
            Self::Call(status) => match status.code() {
                Code::ResourceExhausted => "authority_busy",
                Code::Unavailable | Code::Unknown => "authority_unavailable",
                // This side of the call cancels one that takes too long.
                Code::DeadlineExceeded | Code::Cancelled => "authority_timeout",
                // This side of the call says so of an answer that it cannot read.
                Code::Internal | Code::OutOfRange => "malformed_answer",
                _ => "authority_refused",
            },
            Self::Timeout(_) => "authority_timeout",
            Self::Answer(_) => "malformed_answer",
        }
    }

    /// How long the CA asks to be left alone.
    pub(crate) fn delay(&self) -> Option<Duration> {
        match self {
            Self::Call(status) => retry::delay(status),
            _ => None,
        }
    }

    /// The CA's time, where it answered at all.
    pub(crate) fn authority_now(&self) -> Option<SystemTime> {
        match self {
            Self::Call(status) => super::date(status.metadata()),
            _ => None,
        }
    }
}

/// Whether TLS itself failed, and not the connection under it.
fn is_tls(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner.is_some_and(|inner| inner.is::<rustls::Error>())
}

/// An error with all of its causes; tonic's own text stops at the first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
