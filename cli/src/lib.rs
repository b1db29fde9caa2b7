//! The `bulkhead` command: how people meet Bulkhead from a terminal.
//!
//! ```text
//!  main ──▶ Cli (clap) ──▶ commands/<name>.rs ──▶ stdout: the result · stderr: what was done
//! ```
//!
//! - [`commands`]: one file per command; each has its arguments and a `run`.
//! - [`mesh`]: a mesh in one process, for the demo and the tests.
//! - [`check`]: what `bulkhead check` looks at.
//! - [`cluster`]: the cluster that a command is about.
//! - `admin`: what programs say on their pods' loopback.
//! - [`authority`]: what `bulkhead ca` and `bulkhead secret` are made of.
//! - [`emergency`]: what the kill switch's commands are made of.
//! - `config`: what the environment says.
//! - [`error`]: errors as people read them.
//! - `moment`: times as people say them.
//! - [`manifest`]: streams of YAML or JSON documents, edited one by one.

use clap::Parser;

mod admin;
pub mod authority;
pub mod check;
pub mod cluster;
pub mod commands;
mod config;
pub mod emergency;
pub mod error;
#[cfg(test)]
mod fake;
pub mod manifest;
pub mod mesh;
mod moment;

/// Service mesh core for Kubernetes: sidecars, identities and mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

impl Cli {
    /// Does what was asked. An error is for the person who asked, whole.
    pub fn run(self) -> anyhow::Result<()> {
        self.command.run()
    }
}
