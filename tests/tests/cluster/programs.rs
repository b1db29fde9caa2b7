//! Bulkhead's own programs, which some tests end.

use bulkhead_tests::cluster::commands::kubectl;
use bulkhead_tests::cluster::{Cluster, SYSTEM_NAMESPACE, becomes, until};
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::afterwards::afterwards;

pub(crate) const WEBHOOK: &str = "bulkhead-webhook";
pub(crate) const CA: &str = "bulkhead-ca";
pub(crate) const CONTROL: &str = "bulkhead-control";
pub(crate) const ALL: &[&str] = &[WEBHOOK, CA, CONTROL];

/// The pods of a program, those on their way out among them.
pub(crate) async fn pods_of(cluster: &Cluster, program: &str) -> Vec<Pod> {
    let label = format!("app.kubernetes.io/name={program}");
    let pods: Api<Pod> = cluster.system().api();
    let found = pods.list(&ListParams::default().labels(&label)).await;
    found.expect("the administrator may list pods").items
}

/// Ends every replica of a program at once; its Deployment makes new ones.
pub(crate) async fn kill(cluster: &Cluster, program: &str) {
    let killed: Vec<_> = pods_of(cluster, program).await;
    let label = format!("app.kubernetes.io/name={program}");
    kubectl(&[
        "delete",
        "pod",
        "-n",
        SYSTEM_NAMESPACE,
        "-l",
        &label,
        "--force",
        "--grace-period=0",
    ])
    .await;
    until("other pods are there", async || {
        let pods = pods_of(cluster, program).await;
        let are_other = pods
            .iter()
            .all(|pod| killed.iter().all(|old| old.uid() != pod.uid()));
        (are_other && pods.len() == killed.len()).then_some(())
    })
    .await;
    are_ready(cluster, &[program]).await;
}

/// Waits until each of these programs has all its replicas, and the API server
/// reaches the webhook: its node may learn of a replica after the Deployment does.
pub(crate) async fn are_ready(cluster: &Cluster, programs: &[&str]) {
    let deployments: Api<Deployment> = cluster.system().api();
    let is_ready = |deployment: Option<&Deployment>| {
        let Some((spec, status)) =
            deployment.and_then(|it| Some((it.spec.as_ref()?, it.status.as_ref()?)))
        else {
            return false;
        };
        status.observed_generation >= deployment.and_then(|it| it.metadata.generation)
            && status.updated_replicas == spec.replicas
            && status.ready_replicas == spec.replicas
            && status.replicas == spec.replicas
    };
    for program in programs {
        becomes(&deployments, program, "ready with all replicas", is_ready).await;
    }
    if programs.contains(&WEBHOOK) {
        let namespace = Namespace::existing(cluster.client(), "default");
        until("the webhook is reached", async || {
            would_store(&namespace).await.ok()
        })
        .await;
    }
}

/// Has no replica of these programs for as long as `test` takes.
pub(crate) async fn without<T>(
    cluster: &Cluster,
    programs: &[&str],
    test: impl Future<Output = T>,
) -> T {
    let deployments: Api<Deployment> = cluster.system().api();
    let mut replicas = Vec::new();
    for program in programs {
        let deployment = deployments.get(program).await.expect("the chart makes it");
        let wanted = deployment.spec.and_then(|spec| spec.replicas);
        replicas.push(wanted.expect("the API server fills it in"));
    }
    let without = async {
        for program in programs {
            scale(&deployments, program, 0).await;
            let label = format!("app.kubernetes.io/name={program}");
            kubectl(&[
                "delete",
                "pod",
                "-n",
                SYSTEM_NAMESPACE,
                "-l",
                &label,
                "--force",
                "--grace-period=0",
            ])
            .await;
        }
        for program in programs {
            until("its pods are gone", async || {
                pods_of(cluster, program).await.is_empty().then_some(())
            })
            .await;
        }
        test.await
    };
    let put_back = async {
        for (program, wanted) in programs.iter().zip(replicas) {
            scale(&deployments, program, wanted).await;
        }
        are_ready(cluster, programs).await;
    };
    afterwards(without, put_back).await
}

async fn scale(deployments: &Api<Deployment>, name: &str, replicas: i32) {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments
        .patch(name, &PatchParams::default(), &patch)
        .await
        .expect("the administrator may scale");
}

/// Waits until a pod that asks for a sidecar is stored with one.
pub(crate) async fn injects(cluster: &Cluster) {
    let namespace = Namespace::existing(cluster.client(), "default");
    until("pods get sidecars", async || {
        let stored = would_store(&namespace).await.ok()?;
        is_injected(&stored).then_some(())
    })
    .await;
}

/// What the API server would store of a pod that asks for a sidecar.
pub(crate) async fn would_store(namespace: &Namespace) -> kube::Result<Pod> {
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = a_pod("asks").labels(&[("bulkhead.io/inject", "enabled")]);
    namespace.api::<Pod>().create(&dry_run, &pod.build()).await
}
