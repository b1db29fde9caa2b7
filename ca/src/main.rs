//! `bulkhead-ca`: the certificate authority, and a token issuer for meshes
//! without a cluster.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_ca::app::{App, Dependencies};
use bulkhead_ca::authenticate::Pod;
use bulkhead_ca::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use bulkhead_ca::config::{Config, StoreLocation, name};
use bulkhead_ca::limits::Limits;
use bulkhead_ca::steer::{Wish, steer};
use bulkhead_core::duration;
use bulkhead_core::sidecar::{LogFormat, TOKEN_AUDIENCE};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::shutdown::Signals;
use bulkhead_runtime::{custody, descriptors, log};
use clap::{Args, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

/// Gives back to the kernel what a storm took; with the system's allocator some of it
/// stays for ever. Set up in `.cargo/config.toml`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Issues certificates to workloads; its settings are in the environment
/// (BULKHEAD_CA_*).
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Signs a token for a workload outside Kubernetes, and prints it.
    Token(TokenArguments),
    /// Rotates the root of a CA that keeps its keys in a directory.
    Root(RootArguments),
}

#[derive(Args)]
struct RootArguments {
    /// Where the CA keeps its keys, as in BULKHEAD_CA_STORE: directory:PATH.
    #[arg(long, env = name::STORE)]
    store: StoreLocation,
    #[command(subcommand)]
    wish: RootWish,
}

#[derive(Clone, Copy, Subcommand)]
enum RootWish {
    /// Begins a rotation to a new root, unless one is under way.
    Rotate,
    /// Goes back to the old root, as long as that is not retired.
    Undo,
    /// Goes on although workloads lack the new root; they are cut off.
    Force,
    /// Shows all roots, intermediates and token keys.
    Status,
}

#[derive(Args)]
struct TokenArguments {
    /// Where the issuer's key is kept; made at first use. Give the file
    /// jwks.json in it to the CA (BULKHEAD_CA_AUTHENTICATION=jwks:FILE).
    #[arg(long)]
    directory: PathBuf,
    /// What the token says its issuer is (BULKHEAD_CA_TOKEN_ISSUER).
    #[arg(long)]
    issuer: String,
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    service_account: String,
    /// The machine or process that will hold the token.
    #[arg(long)]
    instance: String,
    #[arg(long, default_value = TOKEN_AUDIENCE)]
    audience: String,
    /// How long the token is good, such as 1h.
    #[arg(long, default_value = "1h", value_parser = duration::parse)]
    lifetime: Duration,
}

fn main() -> anyhow::Result<()> {
    custody::forbid_memory_copies().context(custody::FAILED)?;
    match CommandLine::parse().command {
        Some(Command::Token(arguments)) => token(arguments),
        Some(Command::Root(arguments)) => root(&arguments),
        None => serve(),
    }
}

fn serve() -> anyhow::Result<()> {
    let config = Config::from_process_env()?;
    let format = match config.log_format {
        LogFormat::Json => log::Format::Json,
        LogFormat::Text => log::Format::Text,
    };
    // Audit records are not for the log level to turn off.
    let filter = format!("{},{}=info", config.log_level, bulkhead_ca::audit::TARGET);
    log::init(&filter, format)?;
    let limits = Limits::default().within(descriptors::raise_limit());
    runtime()?.block_on(run(config, limits))
}

/// Where there is one core, threads would only take it from each other.
fn runtime() -> std::io::Result<Runtime> {
    let one_core = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
    if one_core {
        Builder::new_current_thread().enable_all().build()
    } else {
        Builder::new_multi_thread().enable_all().build()
    }
}

async fn run(config: Config, limits: Limits) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let kube =
        if config.needs_api_server() {
            let client = bulkhead_crds::client::connect().await;
            Some(client.context(
                "finding the API server failed: is this a pod, or is there a kubeconfig?",
            )?)
        } else {
            None
        };
    let drain_duration = config.drain_duration;
    let given = Dependencies {
        kube,
        limits,
        ..Dependencies::default()
    };
    let app = App::start(config, given).await?;
    let failure = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "finishing the calls in hand");
            None
        }
        ended = app.task_ended() => {
            tracing::error!("{ended}");
            Some(ended)
        }
    };
    tokio::select! {
        outcome = app.drain(drain_duration) => tracing::info!(?outcome, "the CA ends"),
        signal = signals.next() => tracing::warn!(signal, "the CA ends at once"),
    }
    failure.map_or(Ok(()), |ended| Err(ended.into()))
}

#[expect(clippy::print_stdout, reason = "the token is this command's output")]
fn token(arguments: TokenArguments) -> anyhow::Result<()> {
    let issuer = LocalIssuer::open(&arguments.directory, &arguments.issuer)?;
    let request = TokenRequest {
        namespace: arguments.namespace,
        service_account: arguments.service_account,
        pod: Some(Pod {
            uid: arguments.instance.clone(),
            name: arguments.instance,
        }),
        audience: arguments.audience,
        lifetime: arguments.lifetime,
    };
    println!("{}", issuer.mint(&request, Clock::system().now())?);
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "what was ordered is this command's output"
)]
fn root(arguments: &RootArguments) -> anyhow::Result<()> {
    let wish = match arguments.wish {
        RootWish::Rotate => Wish::Rotate,
        RootWish::Undo => Wish::Undo,
        RootWish::Force => Wish::Force,
        RootWish::Status => Wish::Status,
    };
    let now = Clock::system().now();
    let said = runtime()?.block_on(steer(&arguments.store, wish, now))?;
    print!("{said}");
    Ok(())
}
