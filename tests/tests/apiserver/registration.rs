//! What the API server is told of the webhook, and what becomes of pods when
//! the webhook is away, comes back, or is one of several.

use bulkhead_runtime::drain::Outcome;
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use bulkhead_webhook::registration::unregister;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cluster::{
    CONFIGURATION, Cluster, SYSTEM_NAMESPACE, decisions, injects_into, is_ready, until,
};
use crate::stream::Stream;

const ON: &[(&str, &str)] = &[("bulkhead.io/inject", "enabled")];
const OFF: &[(&str, &str)] = &[("bulkhead.io/inject", "disabled")];

/// Pods that injection would skip, each in its namespace.
async fn skipped_pods(cluster: &Cluster) -> Vec<(Namespace, Pod)> {
    let client = cluster.client().await;
    let silent = || Namespace::create(&client, &[], &[]);
    let asking = || Namespace::create(&client, ON, &[]);
    let system = Namespace::existing(&client, "kube-system");
    let own = Namespace::existing(&client, SYSTEM_NAMESPACE);
    let own_pod = &[("app.kubernetes.io/part-of", "bulkhead")];
    system.ready().await;
    vec![
        (silent().await, a_pod("silent").build()),
        (silent().await, a_pod("annotated").annotations(OFF).build()),
        (asking().await, a_pod("labelled").labels(OFF).build()),
        (asking().await, a_pod("annotated").annotations(OFF).build()),
        (
            asking().await,
            a_pod("host").spec(json!({"hostNetwork": true})).build(),
        ),
        (
            asking().await,
            a_pod("windows")
                .spec(json!({"os": {"name": "windows"}}))
                .build(),
        ),
        (system, a_pod("system").labels(ON).build()),
        (own, a_pod("own").labels(own_pod).build()),
        (
            Namespace::create(&client, OFF, &[]).await,
            a_pod("off").build(),
        ),
    ]
}

#[tokio::test]
async fn pods_that_would_be_skipped_never_reach_the_webhook() {
    let cluster = Cluster::start().await;
    let webhook = cluster.start_webhook(&[]).await;
    let before = decisions(&webhook);
    for (namespace, pod) in skipped_pods(&cluster).await {
        let stored = namespace.create_pod(&pod).await.unwrap();
        assert!(!is_injected(&stored), "{}", stored.name_any());
    }
    assert_eq!(decisions(&webhook), before);

    // The counters do count.
    let namespace = Namespace::create(&cluster.client().await, ON, &[]).await;
    namespace.create_pod(&a_pod("pod").build()).await.unwrap();
    assert_ne!(decisions(&webhook), before);
}

#[tokio::test]
async fn a_dead_webhook_stops_the_pods_that_asked_for_it_and_no_others() {
    let cluster = Cluster::start().await;
    let webhook = cluster.start_webhook(&[]).await;
    let client = cluster.client().await;
    let asking = Namespace::create(&client, ON, &[]).await;
    let others = skipped_pods(&cluster).await;

    cluster.serve_by([]);
    webhook.shutdown().await;
    let refused = asking.create_pod(&a_pod("pod").build()).await;
    let refused = refused
        .expect_err("better no pod than one in plaintext")
        .to_string();
    assert!(refused.contains("inject.bulkhead.io"), "{refused}");
    for (namespace, pod) in others {
        let stored = namespace.create_pod(&pod).await;
        assert!(!is_injected(&stored.unwrap()));
    }

    let webhook = cluster.start_replica(&[]).await;
    cluster.serve_by([webhook.address()]);
    is_ready(&webhook).await;
    let stored = asking.create_pod(&a_pod("pod").build()).await.unwrap();
    assert!(is_injected(&stored), "the webhook is back");
}

#[tokio::test]
async fn where_injection_is_the_default_a_dead_webhook_stops_nobody_who_did_not_ask() {
    let cluster = Cluster::start().await;
    let by_default = [("BULKHEAD_WEBHOOK_INJECT_BY_DEFAULT", "true")];
    let webhook = cluster.start_webhook(&by_default).await;
    let client = cluster.client().await;
    let silent = Namespace::create(&client, &[], &[]).await;
    let asking = Namespace::create(&client, ON, &[]).await;
    let refusing = Namespace::create(&client, OFF, &[]).await;
    let system = Namespace::existing(&client, "kube-system");
    system.ready().await;

    for (namespace, injected) in [(&silent, true), (&refusing, false), (&system, false)] {
        let stored = namespace
            .create_pod(&a_pod("before").build())
            .await
            .unwrap();
        assert_eq!(is_injected(&stored), injected, "{}", namespace.name());
    }

    cluster.serve_by([]);
    webhook.shutdown().await;
    for namespace in [&silent, &refusing, &system] {
        let stored = namespace.create_pod(&a_pod("after").build()).await.unwrap();
        assert!(!is_injected(&stored), "{}", namespace.name());
    }
    assert!(asking.create_pod(&a_pod("after").build()).await.is_err());
}

#[tokio::test]
async fn once_unregistered_pods_are_created_as_if_bulkhead_had_never_been() {
    let cluster = Cluster::start().await;
    let webhook = cluster.start_webhook(&[]).await;
    let client = cluster.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    cluster.serve_by([]);
    webhook.shutdown().await;

    unregister(CONFIGURATION, client.clone()).await.unwrap();
    // The API server hears of it by its own watch, and refuses until then.
    let stored = until(async || namespace.create_pod(&a_pod("pod").build()).await.ok());
    assert!(!is_injected(
        &stored.await.expect("a pod without a sidecar")
    ));
    let again = unregister(CONFIGURATION, client).await;
    assert!(again.is_ok(), "nothing to take away is no failure");
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let cluster = Cluster::start().await;
    let namespace = Namespace::create(&cluster.client().await, ON, &[]).await;
    let webhook = cluster.start_webhook(&[]).await;
    let registered = cluster.registration().await;
    let before = namespace.create_pod(&a_pod("pod").build()).await.unwrap();
    namespace.delete_pod(&before).await;

    cluster.serve_by([]);
    assert_eq!(webhook.shutdown().await, Outcome::Finished);
    assert_eq!(cluster.registration().await, registered, "shut down");

    let webhook = cluster.start_replica(&[]).await;
    cluster.serve_by([webhook.address()]);
    is_ready(&webhook).await;
    assert_eq!(cluster.registration().await, registered, "started again");
    let after = namespace.create_pod(&a_pod("pod").build()).await.unwrap();
    assert_eq!(
        without_what_is_random(&after),
        without_what_is_random(&before)
    );
}

/// The spec without the name that the API server invents for the volume of the
/// ServiceAccount's own token.
fn without_what_is_random(pod: &Pod) -> String {
    let spec = serde_json::to_string(&pod.spec).expect("a pod can be written");
    let at = "kube-api-access-";
    let mut parts = spec.split(at);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + at + &part[5..])
}

#[tokio::test]
async fn replicas_are_replaced_under_a_stream_of_pods_with_none_failing() {
    let cluster = Cluster::start().await;
    let namespace = Namespace::create(&cluster.client().await, ON, &[]).await;
    // Both at once, so that they race for the first Secret and registration.
    let (first, second) = tokio::join!(cluster.start_replica(&[]), cluster.start_replica(&[]));
    cluster.serve_by([first.address(), second.address()]);
    is_ready(&first).await;
    is_ready(&second).await;
    injects_into(&namespace).await;
    assert_eq!(first.ca_bundle().await, second.ca_bundle().await);

    let mut stream = Stream::start(namespace);
    stream.more(50).await;
    let mut replicas = vec![first, second];
    for _ in 0..2 {
        let new = cluster.start_replica(&[]).await;
        is_ready(&new).await;
        let old = replicas.remove(0);
        replicas.push(new);
        cluster.serve_by(replicas.iter().map(|replica| replica.address()));
        assert_eq!(old.shutdown().await, Outcome::Finished);
        stream.more(50).await;
    }
    assert!(stream.stop().await >= 150);
    let answered = replicas
        .iter()
        .filter(|replica| !decisions(replica).is_empty());
    assert!(answered.count() >= 1, "the new replicas answer");
}

#[tokio::test]
async fn a_registration_that_somebody_changed_or_deleted_is_put_right() {
    let cluster = Cluster::start().await;
    let webhook = cluster.start_webhook(&[]).await;
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(cluster.client().await);
    let registered = cluster.registration().await.webhooks;

    let emptied = Patch::Merge(json!({"webhooks": []}));
    let parameters = PatchParams::default();
    configurations
        .patch(CONFIGURATION, &parameters, &emptied)
        .await
        .unwrap();
    let is_right = async || {
        let current = configurations.get_opt(CONFIGURATION).await.unwrap();
        (current?.webhooks == registered).then_some(())
    };
    assert!(until(is_right).await.is_some(), "after a change");

    let parameters = DeleteParams::default();
    configurations
        .delete(CONFIGURATION, &parameters)
        .await
        .unwrap();
    assert!(until(is_right).await.is_some(), "after a deletion");
    drop(webhook);
}
