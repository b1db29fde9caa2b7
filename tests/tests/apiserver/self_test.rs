//! A replica is ready when the API server gets sidecars from it.

use bulkhead_crds::emergency::{InjectionStop, InjectionStopSpec, Terms};
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use bulkhead_webhook::app::App;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, CustomResourceExt as _, ResourceExt as _};

use crate::cluster::{
    CONFIGURATION, Cluster, SYSTEM_NAMESPACE, decisions, dry_run, is_ready, until,
};

const SELF_TEST: (&str, &str) = ("BULKHEAD_WEBHOOK_SELF_TEST", "true");
const ON: &[(&str, &str)] = &[("bulkhead.io/inject", "enabled")];

/// Waits until nothing but the self-test holds the replica up, and it has failed.
async fn fails_the_self_test(webhook: &App) {
    let failed = until(async || {
        let missing = webhook.monitoring().readiness.missing();
        let metrics = webhook.monitoring().metrics();
        let is_failing = metrics.contains("bulkhead_webhook_self_test_failing 1");
        (missing == ["self_test"] && is_failing).then_some(())
    });
    failed.await.expect("the self-test fails and says so");
}

#[tokio::test]
async fn a_replica_that_the_api_server_does_not_reach_is_not_ready_until_it_does() {
    let cluster = Cluster::start().await;
    let webhook = cluster.start_replica(&[SELF_TEST]).await;
    fails_the_self_test(&webhook).await;
    cluster.serve_by([webhook.address()]);
    is_ready(&webhook).await;
    assert!(!decisions(&webhook).is_empty(), "it was asked");

    let pods: Api<Pod> = Api::namespaced(cluster.client().await, SYSTEM_NAMESPACE);
    let stored = pods.list(&ListParams::default()).await.unwrap();
    assert!(stored.items.is_empty(), "the test leaves nothing behind");
}

#[tokio::test]
async fn a_replica_that_may_not_test_itself_is_ready_all_the_same() {
    let cluster = Cluster::start().await;
    // As after an upgrade from a chart that did not grant it.
    let namespace = Namespace::existing(&cluster.client().await, SYSTEM_NAMESPACE);
    let roles: Api<Role> = namespace.api();
    let mut role = roles.get("bulkhead-webhook").await.unwrap();
    role.rules.as_mut().unwrap().retain(|rule| {
        let resources = rule.resources.iter().flatten();
        resources.into_iter().all(|resource| resource != "pods")
    });
    let parameters = PostParams::default();
    roles
        .replace("bulkhead-webhook", &parameters, &role)
        .await
        .unwrap();
    let webhook = cluster.start_replica(&[SELF_TEST]).await;
    is_ready(&webhook).await;
}

async fn stop_injection(client: &Client) -> InjectionStop {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = InjectionStop::crd();
    let name = definition.name_any();
    let parameters = PostParams::default();
    definitions
        .create(&parameters, &definition)
        .await
        .expect("the administrator may define kinds");
    let served = await_condition(definitions, &name, conditions::is_crd_established());
    served.await.expect("the administrator may define kinds");
    let terms = Terms {
        reason: "checkout is down".to_owned(),
        ..Terms::default()
    };
    let stop = InjectionStop::new("incident", InjectionStopSpec { terms });
    let stops: Api<InjectionStop> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let stored = until(async || stops.create(&parameters, &stop).await.ok());
    stored.await.expect("the kind is served")
}

#[tokio::test]
async fn while_injection_is_stopped_replicas_become_ready_and_show_it() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    stop_injection(&client).await;
    let webhook = cluster.start_replica(&[SELF_TEST]).await;
    cluster.serve_by([webhook.address()]);
    is_ready(&webhook).await;
    let shown = until(async || {
        let line = "bulkhead_emergency_active{level=\"injection\",namespace=\"bulkhead-system\"} 1";
        webhook.monitoring().metrics().contains(line).then_some(())
    });
    shown.await.expect("the switch is in the metrics");
}

#[tokio::test]
async fn what_the_webhook_made_goes_with_the_installation() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let owner = ClusterRole {
        metadata: ObjectMeta {
            name: Some("bulkhead-webhook".to_owned()),
            ..ObjectMeta::default()
        },
        ..ClusterRole::default()
    };
    roles.create(&PostParams::default(), &owner).await.unwrap();
    let owned = ("BULKHEAD_WEBHOOK_OWNER", "bulkhead-webhook");
    let webhook = cluster.start_webhook(&[owned]).await;
    let namespace = Namespace::create(&client, ON, &[]).await;

    // The replica runs on, and must not put back what is collected.
    roles
        .delete("bulkhead-webhook", &DeleteParams::default())
        .await
        .unwrap();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    let (pod, dry_run) = (a_pod("pod").build(), dry_run());
    let gone = until(async || {
        let secret = secrets.get_opt("bulkhead-webhook-tls").await.unwrap();
        let configuration = configurations.get_opt(CONFIGURATION).await.unwrap();
        let pod = namespace.api().create(&dry_run, &pod).await.ok()?;
        let is_gone = secret.is_none() && configuration.is_none() && !is_injected(&pod);
        is_gone.then_some(())
    });
    gone.await.expect(
        "Kubernetes collects what the ClusterRole owned, and pods are created as if Bulkhead had \
         never been",
    );
    drop(webhook);
}
