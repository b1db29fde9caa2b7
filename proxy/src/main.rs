//! The sidecar. Settings come from the environment; `bulkhead-proxy wait` waits
//! for another `bulkhead-proxy` in the same pod to be ready.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_core::sidecar::LogFormat;
use bulkhead_proxy::app::{Dependencies, Proxy};
use bulkhead_proxy::{config, wait};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain::Outcome;
use bulkhead_runtime::shutdown::Signals;
use bulkhead_runtime::{custody, descriptors, log};

/// Gives freed memory back to the kernel, and counts for each thread what it gave
/// out: the proxy's budget rests on both. Set up in `.cargo/config.toml`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long `wait` waits: beyond it, whatever is wrong will not mend itself.
const WAIT_LIMIT: Duration = Duration::from_secs(120);

/// The exit code of a program that was set up wrongly (sysexits, EX_USAGE).
const USAGE: u8 = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run().await,
        ["wait"] => wait().await,
        _ => Err((USAGE, anyhow::anyhow!("usage: bulkhead-proxy [wait]"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            // The log may not be there yet.
            #[expect(clippy::print_stderr, reason = "this is the program's last word")]
            {
                eprintln!("bulkhead-proxy: {error:#}");
            }
            ExitCode::from(code)
        }
    }
}

type Failed = (u8, anyhow::Error);

async fn run() -> Result<(), Failed> {
    let forbidden = custody::forbid_memory_copies().context(custody::FAILED);
    forbidden.map_err(|error| (1, error))?;
    let config = config::from_environment().map_err(|error| (USAGE, error.into()))?;
    let format = match config.log_format {
        LogFormat::Json => log::Format::Json,
        LogFormat::Text => log::Format::Text,
    };
    let level = log::init(&config.log_level, format).map_err(|error| (USAGE, error.into()))?;
    descriptors::raise_limit();
    let mut signals = Signals::catch().map_err(|error| (1, error.into()))?;
    let dependencies = Dependencies {
        clock: Clock::system(),
        log_level: Some(level),
        ..Dependencies::default()
    };
    let mut proxy = Proxy::start(config, dependencies).map_err(|error| (1, error.into()))?;
    tracing::info!(addresses = ?proxy.addresses, "started");

    let mut failure = None;
    let task_ended = proxy.task_ended();
    let why = tokio::select! {
        signal = signals.next() => signal,
        () = proxy.drain_requested() => "a request on the admin port",
        ended = task_ended => {
            failure = Some(ended);
            "a failure"
        }
    };
    tracing::info!(why, "draining");
    tokio::select! {
        outcome = proxy.drain() => match outcome {
            Outcome::Finished => tracing::info!("everything in hand was finished"),
            Outcome::DeadlinePassed => tracing::warn!("open connections are cut: the drain took too long"),
        },
        signal = impatience(&mut signals) => tracing::warn!(signal, "stopping at once"),
    }
    failure.map_or(Ok(()), |ended| Err((1, ended.into())))
}

/// Waits for somebody at a terminal who does not want to wait. A pod's end can ask for
/// a drain more than once, by a hook and then by SIGTERM, and means the same each time.
async fn impatience(signals: &mut Signals) -> &'static str {
    loop {
        match signals.next().await {
            "SIGTERM" => tracing::info!("draining already"),
            signal => return signal,
        }
    }
}

async fn wait() -> Result<(), Failed> {
    let config = config::from_environment().map_err(|error| (USAGE, error.into()))?;
    wait::until_ready(config.status_address, WAIT_LIMIT)
        .await
        .map_err(|error| (1, anyhow::anyhow!(error)))
}
