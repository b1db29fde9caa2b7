//! What a person should know of an injection that nothing is refused for.

use bulkhead_core::annotation;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::ports;
use bulkhead_core::sidecar::WORKLOAD_API_VARIABLE;
use serde_json::Value;

use crate::pod::Pod;
use crate::sidecar::PROXY_CONTAINER;
use crate::workload_api;

/// The most containers that one warning names.
const MAX_NAMED: usize = 5;

pub(crate) fn warnings(pod: Pod<'_>, settings: &PodSettings) -> Vec<String> {
    let mut warnings: Vec<_> = annotation::unhonoured(pod.annotations().map(|(name, _)| name))
        .into_iter()
        .map(|name| {
            format!("annotation {name} of another mesh has no counterpart here and does nothing")
        })
        .collect();
    if let Some(names) = same_user(pod) {
        warnings.push(format!(
            "container {names} runs as user {}, which is the proxy's: its connections are not \
             redirected and carry no mTLS",
            ports::PROXY_UID
        ));
    }
    let elsewhere = workload_api::elsewhere(pod.containers());
    if settings.sidecar.workload_api_path.is_some() && !elsewhere.is_empty() {
        warnings.push(format!(
            "container {} sets {WORKLOAD_API_VARIABLE} itself and keeps what it says: it does not \
             ask the sidecar for SVIDs",
            elsewhere[..elsewhere.len().min(MAX_NAMED)].join(", ")
        ));
    }
    let ends = matches!(
        pod.spec.get("restartPolicy").and_then(Value::as_str),
        Some("Never" | "OnFailure")
    );
    if ends && !settings.native_sidecar {
        warnings.push(
            "the pod is meant to end, and a proxy that is no native sidecar keeps it running; \
             leave out bulkhead.io/native-sidecar, or end the proxy from the application"
                .to_owned(),
        );
    }
    warnings
}

/// The containers that run as the proxy's user.
fn same_user(pod: Pod<'_>) -> Option<String> {
    let user = |owner: Option<&Value>| owner?.get("runAsUser")?.as_i64();
    let of_pod = user(pod.spec.get("securityContext"));
    let names: Vec<_> = pod
        .containers()
        .filter(|container| {
            user(container.get("securityContext")).or(of_pod) == Some(ports::PROXY_UID)
        })
        .filter_map(|container| container.get("name")?.as_str())
        .filter(|name| *name != PROXY_CONTAINER)
        .take(MAX_NAMED)
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}
