//! The commands, one file each. To add one, write its file and its line in
//! [`Command`].

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

mod bypass;
mod ca;
mod check;
pub mod demo;
mod eject;
mod explain;
mod inject;
mod install;
mod off;
mod on;
mod secret;
mod uninject;

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    Check(check::Check),
    Bypass(bypass::Bypass),
    Ca(ca::Ca),
    Demo(demo::Demo),
    Eject(eject::Eject),
    Explain(explain::Explain),
    Inject(inject::Inject),
    Install(install::Install),
    Off(off::Off),
    On(on::On),
    Secret(secret::Secret),
    Uninject(uninject::Uninject),
}

impl Command {
    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check(command) => command.run(),
            Self::Bypass(command) => command.run(),
            Self::Ca(command) => command.run(),
            Self::Demo(command) => command.run(),
            Self::Eject(command) => command.run(),
            Self::Explain(command) => command.run(),
            Self::Inject(command) => command.run(),
            Self::Install(command) => command.run(),
            Self::Off(command) => command.run(),
            Self::On(command) => command.run(),
            Self::Secret(command) => command.run(),
            Self::Uninject(command) => command.run(),
        }
    }
}

/// How an answer is written: for people, or for programs.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
    Yaml,
}

impl Output {
    /// The answer for programs; `None` where it is to be for people.
    fn structured(self, answer: &impl Serialize) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Text => None,
            Self::Json => Some(serde_json::to_string_pretty(answer)? + "\n"),
            Self::Yaml => Some(serde_saphyr::to_string(answer)?),
        })
    }
}
