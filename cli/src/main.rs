//! The process: what was asked for, and how it ends. The rest is in the library.

use std::io::Write;
use std::process::ExitCode;

use bulkhead::commands::demo::Interrupted;
use bulkhead::{Cli, error};
use clap::Parser;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        // Where stderr is gone too there is nobody left to tell.
        Err(error) => match error.downcast_ref::<Interrupted>() {
            Some(interrupted) => {
                let _ = writeln!(std::io::stderr(), "\n{interrupted}");
                interrupted.exit_code().into()
            }
            None => {
                let _ = writeln!(std::io::stderr(), "error: {}", error::describe(&error));
                let ended = error.downcast_ref::<error::Ended>();
                ended.map_or(ExitCode::FAILURE, |ended| ended.code.into())
            }
        },
    }
}

/// Whoever reads our output, `head` say, has read enough. That is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
