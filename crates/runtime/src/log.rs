//! Log lines: a sentence that reads alone, with fields that can be queried.
//!
//! A failure is logged once, at the boundary where it is handled. Tokens, keys
//! and whole requests are never logged.

use std::sync::Arc;

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, fmt, reload};

/// How lines are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// An object a line.
    Json,
    /// For people at a terminal.
    Text,
}

/// Changes the level of a running process. Cheap to clone.
#[derive(Clone)]
pub struct Level {
    handle: Arc<reload::Handle<Targets, Registry>>,
}

impl Level {
    /// Sets the filter, such as `info` or `warn,bulkhead_proxy=debug`.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.handle
            .reload(parse(filter)?)
            .map_err(|error| LogError::Reload(error.to_string()))
    }
}

impl std::fmt::Debug for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Level")
    }
}

/// Starts logging to standard error, once a process.
pub fn init(filter: &str, format: Format) -> Result<Level, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Json => lines.json().flatten_event(true).boxed(),
        Format::Text => lines.boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|_| LogError::Twice)?;
    Ok(Level {
        handle: Arc::new(handle),
    })
}

/// By target and level alone: what chooses lines by their spans' fields too is built
/// on regular expressions, which would be a tenth of each program.
fn parse(filter: &str) -> Result<Targets, LogError> {
    let parts: Vec<_> = filter.split(',').filter(|part| !part.is_empty()).collect();
    let refused = |problem| LogError::Filter {
        filter: filter.chars().take(64).collect(),
        problem,
    };
    if parts.is_empty() {
        return Err(refused("it is empty".to_owned()));
    }
    let parsed = parts.join(",").parse();
    parsed.map_err(|error: ParseError| refused(error.to_string()))
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "log filter {filter:?} is not usable: {problem}; write a level such as info, or warn,bulkhead_proxy=debug"
    )]
    Filter { filter: String, problem: String },
    #[error("logging was started twice in one process")]
    Twice,
    #[error("changing the log level failed: {0}")]
    Reload(String),
}
