//! The CA's pods, and what each says of itself on its admin port.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bulkhead_core::ports;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::{admin, error};

/// The label that says which program a pod is of, and what it says.
const LABEL: &str = "app.kubernetes.io/name";
pub(crate) const CA: &str = "bulkhead-ca";
pub(crate) const CONTROL: &str = "bulkhead-control";

/// One of the CA's pods.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    pub pod: String,
    pub node: Option<String>,
    pub is_ready: bool,
    /// What it says; none where it could not be asked.
    pub load: Option<Load>,
    /// Why it could not be asked.
    pub problem: Option<String>,
}

/// What a replica does, as it says. A field that it does not say is absent.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all(serialize = "camelCase"))]
pub struct Load {
    /// When it started, in seconds since 1970.
    pub since: Option<u64>,
    /// Certificates that it issued since.
    pub issued_total: Option<u64>,
    /// JWT-SVIDs that it issued since.
    pub tokens_issued_total: Option<u64>,
    /// Over the last minute.
    pub issued_per_second: Option<f64>,
    /// Refusals since it started, by reason.
    pub refused: BTreeMap<String, u64>,
    pub queue: Queue,
}

/// Who waits for a certificate.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all(serialize = "camelCase"))]
pub struct Queue {
    pub length: Option<u64>,
    pub waiting: Vec<Waiting>,
}

/// One caller's calls that wait.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all(serialize = "camelCase"))]
pub struct Waiting {
    pub caller: String,
    /// The line that it waits in.
    pub class: Option<String>,
    pub waiting: Option<u64>,
}

/// The CA's pods, by name.
pub(crate) async fn pods(cluster: &Cluster) -> anyhow::Result<Vec<Pod>> {
    pods_of(cluster, CA).await
}

/// The pods of one of Bulkhead's programs, by name.
pub(crate) async fn pods_of(cluster: &Cluster, program: &str) -> anyhow::Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.system_namespace);
    let ours = ListParams::default().labels(&format!("{LABEL}={program}"));
    let namespace = &cluster.system_namespace;
    let found = api.list(&ours).await;
    let found =
        found.with_context(|| format!("listing the pods of {program} in {namespace} failed"))?;
    let mut pods = found.items;
    pods.sort_by_key(ResourceExt::name_any);
    Ok(pods)
}

/// Asks each of them.
pub(crate) async fn replicas(cluster: &Cluster) -> anyhow::Result<Vec<Replica>> {
    let pods = pods(cluster).await?;
    let asked = pods.into_iter().map(|pod| replica(cluster, pod));
    let answers = futures::stream::iter(asked).buffered(admin::AT_ONCE);
    Ok(answers.collect().await)
}

async fn replica(cluster: &Cluster, pod: Pod) -> Replica {
    let name = pod.name_any();
    let of = (cluster.system_namespace.as_str(), name.as_str());
    let answer = admin::get::<Load>(cluster, of, ports::PROXY_ADMIN, "/status").await;
    let (load, problem) = match answer {
        Ok(load) => (Some(load), None),
        Err(error) => (None, Some(error::describe(&error))),
    };
    Replica {
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        is_ready: is_ready(&pod),
        pod: name,
        load,
        problem,
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_of_another_version_may_say_less_and_more() {
        let load: Load = serde_json::from_str(r#"{"issued_total": 3, "new": {}}"#).unwrap();
        assert_eq!(load.issued_total, Some(3));
        assert_eq!(load.issued_per_second, None);
        assert!(load.queue.waiting.is_empty());
    }
}
