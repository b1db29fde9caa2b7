//! Pod Security Standards: what the sidecar asks of a namespace.

use bulkhead_tests::namespace::{Namespace, a_pod};
use serde_json::json;

use crate::cluster::Cluster;

/// Redirecting a pod's traffic needs NET_ADMIN, in the init container alone;
/// everything else is as the strictest standard wants it.
#[tokio::test]
async fn net_admin_is_all_that_keeps_an_injected_pod_from_restricted() {
    let client = Cluster::shared().await.client().await;
    let labels = [
        ("bulkhead.io/inject", "enabled"),
        ("pod-security.kubernetes.io/enforce", "restricted"),
    ];
    let namespace = Namespace::create(&client, &labels, &[]).await;
    let restricted = json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "app",
            "image": "registry.example/app:1",
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
            },
        }],
    });
    let alone = a_pod("alone")
        .labels(&[("bulkhead.io/inject", "disabled")])
        .spec(restricted.clone())
        .build();
    namespace.create_pod(&alone).await.unwrap();

    let injected = a_pod("injected").spec(restricted).build();
    let refused = namespace
        .create_pod(&injected)
        .await
        .unwrap_err()
        .to_string();
    let (_, violations) = refused.split_once("restricted:latest\": ").unwrap();
    assert!(violations.contains("bulkhead-init"), "{violations}");
    assert!(violations.contains("NET_ADMIN"), "{violations}");
    for other in [
        "bulkhead-proxy",
        "runAsNonRoot",
        "runAsUser",
        "seccomp",
        "Privilege",
        "volume",
    ] {
        assert!(!violations.contains(other), "{other} in: {violations}");
    }
}
