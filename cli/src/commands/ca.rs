//! `bulkhead ca`: the certificate authority.

use clap::{Args, Subcommand};

mod log;
mod rotate_root;
mod status;

/// Look at the certificate authority, and rotate its root.
#[derive(Debug, Args)]
pub struct Ca {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::Status),
    RotateRoot(rotate_root::RotateRoot),
    Log(log::Log),
}

impl Ca {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Status(command) => command.run(),
            Command::RotateRoot(command) => command.run(),
            Command::Log(command) => command.run(),
        }
    }
}
