//! A pod that asks for a sidecar, created through the API server as a dry run.

use std::collections::BTreeMap;

use bulkhead_crds::emergency::{Emergency as _, InjectionStop};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, ResourceExt as _};

use super::finding::Finding;
use super::{Look, pods};
use crate::error;

const CHECK: &str = "self-test";
const INJECT: &str = "bulkhead.io/inject";

/// Creates it where users do: in a namespace of the mesh, if there is one.
pub(super) async fn self_test(look: &Look<'_>) -> kube::Result<Vec<Finding>> {
    let own = &look.cluster.system_namespace;
    let namespace = look
        .served()
        .filter(|namespace| namespace.name_any() != *own)
        .find(|namespace| {
            namespace
                .labels()
                .get(INJECT)
                .is_some_and(|says| says == "enabled")
        })
        .map_or_else(|| "default".to_owned(), |namespace| namespace.name_any());
    let client = &look.cluster.client;
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let parameters = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = pod();
    Ok(vec![match api.create(&parameters, &pod).await {
        Ok(created) if pods::is_injected(&created) => Finding::ok(
            CHECK,
            format!("a pod created in {namespace} (as a dry run) gets its sidecar"),
        ),
        Ok(_) if is_stopped(look, &namespace, &pod).await => Finding::notice(
            CHECK,
            format!("a pod created in {namespace} gets no sidecar: injection is off"),
        ),
        Ok(_) => Finding::failed(
            CHECK,
            format!("a pod created in {namespace} gets no sidecar"),
        )
        .remedy("look at what else is found here, and at other admission webhooks"),
        Err(error) if error.to_string().contains(".inject.bulkhead.io") => Finding::failed(
            CHECK,
            format!(
                "a pod that asks for a sidecar is refused in {namespace}: {}",
                error::of_kube(&error)
            ),
        )
        .remedy(
            "see that the API server reaches the webhook; `bulkhead off` lets pods in meanwhile",
        ),
        Err(error) => Finding::skipped(
            CHECK,
            format!(
                "the API server refuses the pod of the test in {namespace}: {}",
                error::of_kube(&error)
            ),
        ),
    }])
}

async fn is_stopped(look: &Look<'_>, namespace: &str, pod: &Pod) -> bool {
    let api: Api<InjectionStop> = Api::all(look.cluster.client.clone());
    let stops = api.list(&ListParams::default()).await;
    let stops = stops.map(|found| found.items).unwrap_or_default();
    stops.iter().any(|stop| {
        let system = &look.cluster.system_namespace;
        stop.is_on(look.now) && stop.covers(system, namespace, pod.labels())
    })
}

/// A pod that passes Pod Security `restricted`, as far as it goes.
fn pod() -> Pod {
    let labels = BTreeMap::from([(INJECT.to_owned(), "enabled".to_owned())]);
    Pod {
        metadata: ObjectMeta {
            name: Some("bulkhead-check".to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            containers: vec![Container {
                name: "never-runs".to_owned(),
                image: Some("self-test.bulkhead.io/none".to_owned()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}
