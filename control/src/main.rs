//! `bulkhead-control`: tells proxies what they need to know; its settings are in
//! the environment (`BULKHEAD_CONTROL_*`).

use anyhow::Context as _;
use bulkhead_control::app::{App, Dependencies, Limits};
use bulkhead_control::audit;
use bulkhead_control::config::{Config, Source};
use bulkhead_core::sidecar::LogFormat;
use bulkhead_runtime::shutdown::Signals;
use bulkhead_runtime::{custody, descriptors, log};

fn main() -> anyhow::Result<()> {
    custody::forbid_memory_copies().context(custody::FAILED)?;
    let config = Config::from_process_env()?;
    let format = match config.log_format {
        LogFormat::Json => log::Format::Json,
        LogFormat::Text => log::Format::Text,
    };
    // Audit records are not for the log level to turn off.
    let filter = format!("{},{}=info", config.log_level, audit::TARGET);
    log::init(&filter, format)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::catch()?;
    let kube =
        if config.source == Source::Kubernetes {
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
        limits: Limits::default().within(descriptors::raise_limit()),
        ..Dependencies::default()
    };
    let app = App::start(config, given).await?;
    let failure = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "ending the streams");
            None
        }
        ended = app.task_ended() => {
            tracing::error!("{ended}");
            Some(ended)
        }
    };
    tokio::select! {
        outcome = app.drain(drain_duration) => tracing::info!(?outcome, "control ends"),
        signal = signals.next() => tracing::warn!(signal, "control ends at once"),
    }
    failure.map_or(Ok(()), |ended| Err(ended.into()))
}
