//! The cluster that a command is about.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_inject::DEFAULT_SYSTEM_NAMESPACE;
use clap::Args;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

/// How long the API server may take to accept a connection. Whoever types a
/// command in an emergency wants to know soon that it is away.
const CONNECT: Duration = Duration::from_secs(5);

/// Which cluster, and where Bulkhead is in it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// The kubeconfig; where there is none, what kubectl would take
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, where it is not the current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Bulkhead's own namespace
    #[arg(long, visible_alias = "bulkhead-namespace", value_name = "NAME", default_value = DEFAULT_SYSTEM_NAMESPACE)]
    system_namespace: String,
}

/// A cluster that can be asked.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    pub system_namespace: String,
}

impl ClusterArgs {
    /// Reads the kubeconfig. Nothing is sent yet.
    pub async fn connect(&self) -> anyhow::Result<Cluster> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT);
        let client = Client::try_from(config)
            .context("making a client of the kubeconfig failed; can kubectl use it?")?;
        Ok(Cluster {
            client,
            system_namespace: self.system_namespace.clone(),
        })
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("reading {} failed", path.display()))?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .with_context(|| format!("using {} failed", path.display()))
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await.context(
                "using the kubeconfig failed; `kubectl config get-contexts` lists what it has",
            ),
            None => Config::infer()
                .await
                .context("finding a cluster failed; name a file with --kubeconfig"),
        }
    }
}

/// Runs what a command does with a cluster to its end, on this thread.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime failed")?
        .block_on(work)
}
