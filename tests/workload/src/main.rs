//! `workload`: see the library beside it.

use std::process::ExitCode;

use anyhow::Result;
use bulkhead_test_workload::{load, once, serve};
use clap::{Parser, Subcommand};

/// An application, its clients and its load, for tests of a cluster.
#[derive(Debug, Parser)]
#[command(name = "workload", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Listen, and answer with what was seen, until SIGTERM.
    Serve(serve::Options),
    /// Send requests at a steady rate, and count what becomes of them.
    Load(load::Options),
    /// Send one HTTP request; the exit code is 0 where the answer is 2xx.
    Get(once::Get),
    /// Have one conversation of lines over TCP.
    Tcp(once::Tcp),
    /// Wait until a file is there.
    WaitFile(once::WaitFile),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "this is the program's last word")]
            {
                eprintln!("workload: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(options) => serve::serve(&options).await.map(|()| ExitCode::SUCCESS),
        Command::Load(options) => load::load(options).await.map(|()| ExitCode::SUCCESS),
        Command::Get(options) => once::get(&options).await,
        Command::Tcp(options) => once::tcp(&options).await,
        Command::WaitFile(options) => once::wait_file(&options).await,
    }
}
