//! Results as lines of JSON, which a test reads from the pod's log.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Prints one line.
///
/// # Errors
/// Nobody reads any more.
pub fn line(value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value).context("writing a result as JSON")?;
    line.push(b'\n');
    io::stdout()
        .write_all(&line)
        .context("writing a result to standard output")
}
