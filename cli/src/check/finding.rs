//! What a look found, for people and for programs.

use serde::Serialize;

use crate::error;

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// Which look found it.
    pub check: &'static str,
    pub status: Status,
    /// What is so.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How good it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Worth knowing, and nothing is broken.
    Notice,
    Problem,
    /// It could not be looked at.
    Skipped,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Notice => "notice",
            Self::Problem => "PROBLEM",
            Self::Skipped => "skipped",
        }
    }
}

impl Finding {
    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Status::Ok, message)
    }

    pub(super) fn notice(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Status::Notice, message)
    }

    pub(super) fn failed(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Status::Problem, message)
    }

    pub(super) fn skipped(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Status::Skipped, message)
    }

    /// A look that the API server did not let us have is not a problem of
    /// Bulkhead's.
    pub(super) fn of_error(check: &'static str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => {
                Self::skipped(check, format!("you may not look: {}", status.message))
            }
            error => Self::failed(
                check,
                format!("asking the API server failed: {}", error::of_kube(error)),
            ),
        }
    }

    fn new(check: &'static str, status: Status, message: impl Into<String>) -> Self {
        Self {
            check,
            status,
            message: message.into(),
            remedy: None,
        }
    }

    pub(super) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }

    pub fn is_problem(&self) -> bool {
        self.status == Status::Problem
    }
}
