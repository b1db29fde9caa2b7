//! What people write in annotations, as `kubectl` tells them of it.

use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cluster::Cluster;

const ON: &[(&str, &str)] = &[("bulkhead.io/inject", "enabled")];

/// What the API server answers when the pod is refused.
async fn refusal(annotation: (&str, &str)) -> String {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let pod = a_pod("pod").annotations(&[annotation]).build();
    match namespace.create_pod(&pod).await {
        Err(kube::Error::Api(status)) => status.message,
        Err(error) => panic!("{annotation:?} was answered with {error}"),
        Ok(_) => panic!("{annotation:?} was accepted"),
    }
}

#[tokio::test]
async fn a_bad_value_refuses_the_pod_and_says_what_is_allowed() {
    for (name, value) in [
        ("bulkhead.io/proxy-cpu-limit", "lots"),
        ("bulkhead.io/mtls-mode", "STRIKT"),
        ("bulkhead.io/opaque-ports", "70000"),
        ("bulkhead.io/drain-duration", "soon"),
        ("sidecar.istio.io/proxyMemory", "64 megabytes"),
    ] {
        let message = refusal((name, value)).await;
        for expected in [name, value, "allowed"] {
            assert!(message.contains(expected), "{expected} in: {message}");
        }
    }
}

#[tokio::test]
async fn a_misspelt_annotation_refuses_the_pod_and_names_the_right_one() {
    let message = refusal(("bulkhead.io/proxy-cpu-limits", "1")).await;
    assert!(
        message.contains("bulkhead.io/proxy-cpu-limits"),
        "{message}"
    );
    assert!(message.contains("bulkhead.io/proxy-cpu-limit"), "{message}");
}

#[tokio::test]
async fn a_switch_that_is_neither_on_nor_off_refuses_the_pod() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, &[], &[]).await;
    let pod = a_pod("pod")
        .labels(&[("bulkhead.io/inject", "yes")])
        .build();
    let error = namespace.create_pod(&pod).await.unwrap_err().to_string();
    for expected in ["bulkhead.io/inject", "yes", "enabled or disabled"] {
        assert!(error.contains(expected), "{expected} in: {error}");
    }
}

#[tokio::test]
async fn resources_come_from_the_pod_then_the_namespace_then_the_installation() {
    let client = Cluster::shared().await.client().await;
    let defaults = [
        ("bulkhead.io/proxy-cpu-limit", "750m"),
        ("bulkhead.io/proxy-memory-limit", "333Mi"),
    ];
    let namespace = Namespace::create(&client, ON, &defaults).await;
    let own = [
        ("sidecar.istio.io/proxyMemoryLimit", "444Mi"),
        ("bulkhead.io/proxy-cpu-request", "none"),
    ];
    let pod = a_pod("pod").annotations(&own).build();
    let stored = namespace.create_pod(&pod).await.unwrap();

    let resources = proxy(&stored).resources.clone().unwrap();
    let limits = resources.limits.unwrap();
    assert_eq!(limits["memory"].0, "444Mi", "of the pod, by Istio's name");
    assert_eq!(limits["cpu"].0, "750m", "of the namespace");
    let requests = resources.requests.unwrap();
    assert!(requests.contains_key("memory"), "of the installation");
}

#[tokio::test]
async fn a_pod_can_ask_for_a_classic_sidecar() {
    let client = Cluster::shared().await.client().await;
    let namespace = Namespace::create(&client, ON, &[]).await;
    let classic = [("bulkhead.io/native-sidecar", "disabled")];
    let native = namespace.create_pod(&a_pod("native").build()).await;
    let classic = a_pod("classic").annotations(&classic).build();
    let classic = namespace.create_pod(&classic).await;
    let (native, classic) = (native.unwrap(), classic.unwrap());

    assert!(is_injected(&native) && is_injected(&classic));
    assert_eq!(proxy(&native).restart_policy.as_deref(), Some("Always"));
    assert_eq!(proxy(&classic).restart_policy, None);
    let is_proxy = |container: &Container| container.name == bulkhead_inject::PROXY_CONTAINER;
    let beside_the_application = |pod: &Pod| {
        let spec = pod.spec.as_ref().unwrap();
        spec.containers.iter().any(is_proxy)
    };
    assert!(!beside_the_application(&native));
    assert!(beside_the_application(&classic));
}

fn proxy(pod: &Pod) -> &Container {
    let spec = pod.spec.as_ref().expect("a stored pod has a spec");
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers)
        .find(|container| container.name == bulkhead_inject::PROXY_CONTAINER)
        .expect("an injected pod has a proxy")
}
