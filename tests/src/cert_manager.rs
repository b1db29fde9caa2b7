//! cert-manager's own controllers (`tests/cluster/cert-manager`) beside the API
//! server of the tests, with cert-manager's own kinds.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::runtime::{conditions, wait::await_condition};
use kube::{Api, ResourceExt as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::api_server::ApiServer;
use crate::config;

/// Builds may be running beside the tests.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Running controllers. They end when this is dropped, and with this process.
pub struct CertManager {
    _process: Child,
}

impl CertManager {
    /// Installs the kinds and starts the controllers; `approve` is whether each
    /// request is approved, as cert-manager does by default.
    pub async fn start(server: &ApiServer, approve: bool) -> Result<Self> {
        let program = config::cert_manager()?;
        install_kinds(server, &program).await?;
        let mut process = Command::new(&program)
            .arg("-kubeconfig")
            .arg(server.admin_kubeconfig())
            .arg(format!("-approve={approve}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting cert-manager")?;
        let output = process.stdout.take().context("its output is a pipe")?;
        let mut lines = BufReader::new(output).lines();
        match timeout(READY_WITHIN, lines.next_line()).await {
            Ok(Ok(Some(_))) => Ok(Self { _process: process }),
            _ => bail!("cert-manager did not start within {READY_WITHIN:?}"),
        }
    }
}

async fn install_kinds(server: &ApiServer, program: &std::path::Path) -> Result<()> {
    let kinds: Api<CustomResourceDefinition> = Api::all(server.client().await);
    let directory = program.parent().context("a program is in a directory")?;
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let kind: CustomResourceDefinition =
            serde_saphyr::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        let name = kind.name_any();
        let apply = PatchParams::apply("bulkhead-tests").force();
        kinds.patch(&name, &apply, &Patch::Apply(&kind)).await?;
        let established = conditions::is_crd_established();
        timeout(
            READY_WITHIN,
            await_condition(kinds.clone(), &name, established),
        )
        .await??;
    }
    Ok(())
}
