//! `bulkhead-webhook`: answers the API server's admission reviews. Its settings
//! are environment variables, listed in [`bulkhead_webhook::config`].
//! `bulkhead-webhook unregister` takes its registration away, for whoever
//! uninstalls it.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use bulkhead_core::sidecar::LogFormat;
use bulkhead_runtime::shutdown::Signals;
use bulkhead_runtime::{custody, log};
use bulkhead_webhook::app::{App, Deps};
use bulkhead_webhook::config::{self, Config};
use bulkhead_webhook::{namespaces, registration};
use kube::Client;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may be what did not start")]
            {
                eprintln!("bulkhead-webhook: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    custody::forbid_memory_copies().context(custody::FAILED)?;
    match std::env::args().nth(1).as_deref() {
        None => serve(Config::from_environment()?).await,
        Some("unregister") => unregister(&config::configuration_from_environment()).await,
        Some(other) => bail!("{other:?} is no command; there is only unregister"),
    }
}

async fn api_server() -> Result<Client> {
    bulkhead_crds::client::connect()
        .await
        .context("finding the API server: neither in a pod, nor is there a kubeconfig")
}

async fn unregister(configuration: &str) -> Result<()> {
    log::init("info", log::Format::Text)?;
    registration::unregister(configuration, api_server().await?)
        .await
        .with_context(|| format!("deleting the MutatingWebhookConfiguration {configuration}"))
}

async fn serve(config: Config) -> Result<()> {
    let format = match config.log_format {
        LogFormat::Json => log::Format::Json,
        LogFormat::Text => log::Format::Text,
    };
    log::init(&config.log_level, format)?;
    let mut signals = Signals::catch().context("catching SIGTERM and SIGINT")?;
    let deps = match &config.namespaces {
        Some(path) => Deps::fixed(namespaces::file::read(path)?),
        None => Deps::cluster(api_server().await?),
    };
    let app = App::start(config, deps).await?;
    let failure = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "shutting down");
            None
        }
        ended = app.task_ended() => {
            tracing::error!("{ended}");
            Some(ended)
        }
    };
    tokio::select! {
        outcome = app.shutdown() => tracing::info!(?outcome, "finished"),
        signal = signals.next() => tracing::warn!(signal, "ended before the drain did"),
    }
    failure.map_or(Ok(()), |ended| Err(ended.into()))
}
