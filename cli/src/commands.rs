//! The commands, one file each. To add one, write its file and its line in
//! [`Command`].

use clap::Subcommand;

mod explain;
mod inject;
mod uninject;

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    Explain(explain::Explain),
    Inject(inject::Inject),
    Uninject(uninject::Uninject),
}

impl Command {
    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Explain(command) => command.run(),
            Self::Inject(command) => command.run(),
            Self::Uninject(command) => command.run(),
        }
    }
}
