//! The commands, one file each. To add one, write its file and its line in
//! [`Command`].

use clap::Subcommand;

mod bypass;
mod check;
pub mod demo;
mod eject;
mod explain;
mod inject;
mod install;
mod off;
mod on;
mod uninject;

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    Check(check::Check),
    Bypass(bypass::Bypass),
    Demo(demo::Demo),
    Eject(eject::Eject),
    Explain(explain::Explain),
    Inject(inject::Inject),
    Install(install::Install),
    Off(off::Off),
    On(on::On),
    Uninject(uninject::Uninject),
}

impl Command {
    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check(command) => command.run(),
            Self::Bypass(command) => command.run(),
            Self::Demo(command) => command.run(),
            Self::Eject(command) => command.run(),
            Self::Explain(command) => command.run(),
            Self::Inject(command) => command.run(),
            Self::Install(command) => command.run(),
            Self::Off(command) => command.run(),
            Self::On(command) => command.run(),
            Self::Uninject(command) => command.run(),
        }
    }
}
