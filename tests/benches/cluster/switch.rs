//! `bulkhead off`, from pressing Enter until a pod comes without a sidecar.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use bulkhead_tests::cluster::Cluster;
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use tokio::process::Command;
use tokio::time::Instant;

use crate::settings::Settings;

/// In milliseconds. Pods are created one after the other, as a dry run: the API
/// server admits each as it would admit any.
pub(super) async fn off(settings: &Settings, cluster: &Cluster) -> Result<f64> {
    let namespace = cluster.meshed_namespace().await;
    ensure!(
        is_given_a_sidecar(&namespace).await?,
        "injection is off before `bulkhead off`"
    );
    let program = settings.programs.join("bulkhead");
    let began = Instant::now();
    let mut command = Command::new(&program)
        .args(["off", "--for", "10m", "--reason", "a benchmark"])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    while is_given_a_sidecar(&namespace).await? {}
    let took = began.elapsed();
    ensure!(command.wait().await?.success(), "`bulkhead off` failed");
    let on = Command::new(&program)
        .arg("on")
        .stdout(Stdio::null())
        .status()
        .await?;
    ensure!(on.success(), "`bulkhead on` failed");
    while !is_given_a_sidecar(&namespace).await? {}
    Ok(took.as_secs_f64() * 1e3)
}

async fn is_given_a_sidecar(namespace: &Namespace) -> Result<bool> {
    let parameters = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = namespace
        .api::<Pod>()
        .create(&parameters, &a_pod("probe").build())
        .await;
    Ok(is_injected(&pod.context("creating a pod as a dry run")?))
}
