//! Reviews and the pods in them.

use serde_json::{Value, json};

/// A pod with three containers and probes, as applications have them.
pub(crate) fn pod() -> Value {
    let probe = |path: &str| {
        json!({
            "httpGet": {"path": path, "port": "http", "scheme": "HTTP"},
            "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3, "successThreshold": 1,
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "cart-6d4cf56db6-",
            "labels": {"app": "cart", "pod-template-hash": "6d4cf56db6"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-6d4cf56db6",
                "uid": "5f3c7d0e-7b5b-4f43-8a59-0b3d7b3f6b11", "controller": true,
            }],
        },
        "spec": {
            "serviceAccountName": "cart",
            "containers": [
                {
                    "name": "app", "image": "registry.example/cart:7",
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                    "env": [{"name": "REDIS", "value": "redis:6379"}],
                    "readinessProbe": probe("/ready"), "livenessProbe": probe("/live"),
                },
                {
                    "name": "cache", "image": "registry.example/cache:2",
                    "ports": [{"name": "cache", "containerPort": 6380, "protocol": "TCP"}],
                    "livenessProbe": {"tcpSocket": {"port": 6380}, "periodSeconds": 10},
                },
                {"name": "log", "image": "registry.example/log:1"},
            ],
        },
    })
}

/// The review of a pod that is created in a namespace.
pub(crate) fn review(namespace: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

/// The pod with what the answer's patch does to it.
pub(crate) fn patched(pod: &Value, response: &Value) -> Value {
    use base64::Engine as _;
    let mut pod = pod.clone();
    assert_eq!(response["allowed"], true, "{response}");
    let Some(patch) = response["patch"].as_str() else {
        return pod;
    };
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = base64::engine::general_purpose::STANDARD
        .decode(patch)
        .unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}
