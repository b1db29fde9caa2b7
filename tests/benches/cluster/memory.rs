//! What a container takes of the machine's memory.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use bulkhead_inject::PROXY_CONTAINER;
use bulkhead_tests::cluster::apps::{self, APP_CONTAINER};
use bulkhead_tests::cluster::exec::exec;
use bulkhead_tests::cluster::{Cluster, SYSTEM_NAMESPACE};
use bulkhead_tests::namespace::Namespace;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;

/// Pods of which each proxy's memory is taken.
const CLIENTS: u32 = 3;

/// The largest of control's replicas, in MiB.
pub(super) async fn control(cluster: &Cluster) -> Result<f64> {
    let selector = ListParams::default().labels("app.kubernetes.io/name=bulkhead-control");
    let pods = Namespace::existing(cluster.client(), SYSTEM_NAMESPACE).api::<Pod>();
    let mut largest = None;
    for pod in pods.list(&selector).await? {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        for container in containers {
            largest = largest.max(Some(resident(&pod, &container.name)?));
        }
    }
    let bytes = largest.with_context(|| format!("{SYSTEM_NAMESPACE} has no pod of control"))?;
    Ok(mebibytes(bytes))
}

/// The median over the sidecars of fresh clients, each of which has sent
/// requests to a Service of the mesh for some seconds, in MiB.
pub(super) async fn median_of_proxies(cluster: &Cluster) -> Result<f64> {
    let namespace = cluster.meshed_namespace().await;
    let web = apps::server("web").start(&namespace).await;
    let clients = apps::client("client")
        .replicas(CLIENTS)
        .start(&namespace)
        .await;
    let mut resident_bytes = Vec::new();
    for pod in clients.pods().await {
        let url = web.url("/");
        let load = ["/workload", "load", "--rate", "100", "--seconds", "5", &url];
        let output = exec(&namespace.api(), &pod.name_any(), APP_CONTAINER, &load).await;
        ensure!(output.succeeded, "the load failed: {}", output.stderr);
        resident_bytes.push(resident(&pod, PROXY_CONTAINER)?);
    }
    resident_bytes.sort_unstable();
    let median = resident_bytes[resident_bytes.len() / 2];
    Ok(mebibytes(median))
}

/// What is resident of a container's processes, in bytes. The node is this
/// machine, so that its processes are there to look at.
fn resident(pod: &Pod, container: &str) -> Result<u64> {
    let status = pod.status.as_ref().context("the pod has no status")?;
    let statuses = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses);
    let id = statuses
        .flatten()
        .find(|status| status.name == container)
        .and_then(|status| status.container_id.as_ref()?.split_once("://"))
        .map(|(_, id)| id)
        .with_context(|| format!("{} has no running container {container}", pod.name_any()))?;
    let mut kilobytes = 0;
    for process in fs::read_dir("/proc")
        .context("listing processes")?
        .flatten()
    {
        let path = process.path();
        // Processes end while this looks at them.
        let belongs =
            fs::read_to_string(path.join("cgroup")).is_ok_and(|cgroup| cgroup.contains(id));
        if let (true, Ok(status)) = (belongs, fs::read_to_string(path.join("status"))) {
            kilobytes += resident_kilobytes(&status).unwrap_or_default();
        }
    }
    ensure!(
        kilobytes > 0,
        "no process of {container} is on this machine"
    );
    Ok(kilobytes * 1024)
}

/// `VmRSS` of proc_pid_status(5).
fn resident_kilobytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
