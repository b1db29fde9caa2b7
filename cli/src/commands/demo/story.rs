//! What a step is, and what comes of it.

use std::fmt::Display;
use std::time::Duration;

use anyhow::bail;
use futures::future::BoxFuture;

use super::stage::Stage;

/// One scene: something happens, and is proved by looking.
pub(super) struct Step {
    /// Stable: scripts read it.
    pub(super) name: &'static str,
    /// What happens.
    pub(super) title: &'static str,
    /// Why it matters to somebody who runs services.
    pub(super) why: &'static str,
    pub(super) prove: fn(&mut Stage) -> BoxFuture<'_, anyhow::Result<Proof>>,
}

/// What was seen. There is one only where everything was as it should be.
#[derive(Debug)]
pub(super) struct Proof {
    /// One line, for the table and for programs.
    summary: String,
    /// What a person would want to see with their own eyes.
    evidence: Vec<String>,
}

impl Proof {
    pub(super) fn new(summary: impl Into<String>) -> Self {
        Self {
            summary: summary.into(),
            evidence: Vec::new(),
        }
    }

    pub(super) fn with(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }
}

/// A step that is over.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) step: &'static str,
    pub(super) ok: bool,
    /// What was proved, or what was expected and seen instead.
    pub(super) detail: String,
    pub(super) evidence: Vec<String>,
    pub(super) took: Duration,
}

impl Told {
    pub(super) fn new(step: &'static str, outcome: anyhow::Result<Proof>, took: Duration) -> Self {
        let (ok, detail, evidence) = match outcome {
            Ok(proof) => (true, proof.summary, proof.evidence),
            Err(error) => (false, format!("{error:#}"), Vec::new()),
        };
        Self {
            step,
            ok,
            detail,
            evidence,
            took,
        }
    }

    /// Whole milliseconds, for tables and programs.
    pub(super) fn milliseconds(&self) -> u64 {
        u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Fails the proof where something does not hold, with what was seen instead.
pub(super) fn expect(holds: bool, expected: &str, seen: impl Display) -> anyhow::Result<()> {
    if !holds {
        bail!("expected {expected}; saw {seen}");
    }
    Ok(())
}
