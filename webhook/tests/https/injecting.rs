//! What pods come out like, and what people are told.

use bulkhead_inject::{Decision, Defaults, inject};
use hyper::Version;
use serde_json::json;

use crate::client::{Client, monitoring, namespaces, settings, start};
use crate::pods::{patched, pod, review};

#[tokio::test]
async fn a_pod_of_an_opted_in_namespace_gets_its_sidecar_and_a_second_time_changes_nothing() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let response = client.review(&review("mesh", &pod())).await;
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!(response["auditAnnotations"]["decision"], "inject");
    assert_eq!(
        response["auditAnnotations"]["reason"],
        "enabled_by_namespace_label"
    );
    let injected = patched(&pod(), &response);

    let decision = inject(&pod(), &namespaces()[0], &Defaults::new(settings()));
    let Decision::Inject(expected) = decision else {
        panic!("{decision:?}");
    };
    let ca = "bulkhead-ca.bulkhead-system.svc:15012";
    assert_eq!(
        settings().sidecar.ca_address,
        ca,
        "both use the same defaults"
    );
    let mut by_hand = pod();
    json_patch::patch(&mut by_hand, &expected.patch).unwrap();
    assert_eq!(injected, by_hand, "the webhook's pod is injection's");

    let again = client.review(&review("mesh", &injected)).await;
    assert_eq!(again["allowed"], true);
    assert_eq!(patched(&injected, &again), injected);
}

#[tokio::test]
async fn http_1_and_http_2_give_the_same_answers_on_kept_connections() {
    let app = start().await;
    let roots = app.ca_bundle().await;
    let mut answers = Vec::new();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect_as(app.address(), &roots, version)
            .await
            .unwrap();
        for _ in 0..3 {
            answers.push(client.review(&review("mesh", &pod())).await);
        }
    }
    assert!(answers[0]["patch"].is_string());
    assert!(answers.iter().all(|answer| *answer == answers[0]));
}

#[tokio::test]
async fn a_pod_that_is_skipped_is_allowed_as_it_is_with_the_reason_in_the_audit() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let response = client.review(&review("plain", &pod())).await;
    assert_eq!(
        response,
        json!({
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "allowed": true,
            "auditAnnotations": {"decision": "skip", "reason": "not_requested"},
        })
    );
}

#[tokio::test]
async fn a_pod_that_nobody_opted_out_and_that_is_skipped_all_the_same_brings_a_warning() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let mut meshed = pod();
    let istio = json!({"name": "istio-proxy", "image": "istio/proxyv2:1"});
    meshed["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(istio);
    let response = client.review(&review("mesh", &meshed)).await;
    assert_eq!(response["allowed"], true);
    assert_eq!(response["auditAnnotations"]["reason"], "other_mesh");
    assert!(response.get("patch").is_none());
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("another mesh") && warning.contains("cart-6d4cf56db6-"),
        "{warning}"
    );
}

#[tokio::test]
async fn a_bad_annotation_refuses_the_pod_with_a_message_that_names_it() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    let mut bad = pod();
    bad["metadata"]["annotations"] = json!({"bulkhead.io/proxy-cpu-limit": "lots"});
    let response = client.review(&review("mesh", &bad)).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 422);
    assert_eq!(response["auditAnnotations"]["decision"], "refuse");
    let message = response["status"]["message"].as_str().unwrap();
    for part in ["bulkhead.io/proxy-cpu-limit", "lots", "allowed"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(response.get("patch").is_none());

    // Where nobody asks for injection, it is nobody's business.
    assert_eq!(client.review(&review("plain", &bad)).await["allowed"], true);
}

#[tokio::test]
async fn every_decision_is_counted_by_its_reason() {
    let app = start().await;
    let mut client = Client::of(&app).await;
    for (namespace, times) in [("mesh", 3), ("plain", 2)] {
        for _ in 0..times {
            client.review(&review(namespace, &pod())).await;
        }
    }
    let (_, metrics) = monitoring(&app, "/metrics").await;
    for line in [
        r#"bulkhead_webhook_decisions_total{decision="inject",reason="enabled_by_namespace_label"} 3"#,
        r#"bulkhead_webhook_decisions_total{decision="skip",reason="not_requested"} 2"#,
        "bulkhead_webhook_request_duration_seconds_count 5",
        "bulkhead_webhook_connections 1",
        r#"bulkhead_webhook_certificate_expiry_timestamp_seconds{certificate="serving"}"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}
