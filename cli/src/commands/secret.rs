//! `bulkhead secret`: what a workload holds.

use std::io::Write;

use bulkhead_runtime::clock::Clock;
use clap::{Args, ValueEnum};

use super::Output;
use crate::authority::holding;
use crate::cluster::{ClusterArgs, block_on};
use crate::emergency::banner;

/// Show what a workload holds: certificate, trust bundle, renewal. Never a key.
///
/// Its sidecar is asked over the API server; the fields of JSON and YAML are
/// stable, and docs/authority.md names them.
#[derive(Debug, Args)]
pub struct Secret {
    /// The pod
    #[arg(value_name = "POD")]
    pod: String,
    /// Its namespace; that of the kubeconfig's context where it is left out
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How it is written; pem is the chain and then the roots
    #[arg(long, short, value_enum, default_value_t = Form::Text)]
    output: Form,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Text,
    Json,
    Yaml,
    Pem,
}

impl Secret {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let now = Clock::system().now();
        let holding = block_on(async {
            let cluster = self.cluster.connect().await?;
            banner::show(&cluster, now).await?;
            let namespace = self.namespace.as_deref();
            let namespace = namespace.unwrap_or(cluster.client.default_namespace());
            holding::ask(&cluster, namespace, &self.pod).await
        })?;
        let text = match self.output {
            Form::Text => holding.to_text(now),
            Form::Pem => holding.to_pem().to_owned(),
            Form::Json => Output::Json.structured(&holding)?.unwrap_or_default(),
            Form::Yaml => Output::Yaml.structured(&holding)?.unwrap_or_default(),
        };
        Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
    }
}
