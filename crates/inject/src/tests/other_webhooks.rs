//! A second call for the same pod, after others have changed it.

use super::*;

fn patch_is_empty(pod: &Value) -> bool {
    injection(pod, &enabled()).patch.0.is_empty()
}

#[test]
fn a_container_that_came_in_between_gets_its_probes_rewritten_and_the_others_keep_theirs() {
    let mut pod = injected(&pod_with(
        json!({"readinessProbe": {"tcpSocket": {"port": 80}}}),
    ));
    let added = json!({"name": "agent", "livenessProbe": {"httpGet": {"port": 8125}}});
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(added);
    let again = injected(&pod);
    let probes = sidecar_config(&again).probes;
    assert_eq!(
        probes.keys().collect::<Vec<_>>(),
        ["/app-health/agent/livez", "/app-health/app/readyz"]
    );
    assert_eq!(probes["/app-health/app/readyz"].port, 80);
    assert!(patch_is_empty(&again));
}

#[test]
fn an_init_container_put_before_ours_comes_after_it_again() {
    let mut pod = injected(&pod());
    pod["spec"]["initContainers"]
        .as_array_mut()
        .unwrap()
        .insert(0, json!({"name": "vault"}));
    let again = injected(&pod);
    assert_eq!(
        names(&again, "initContainers"),
        [INIT_CONTAINER, PROXY_CONTAINER, "vault"]
    );
    assert!(patch_is_empty(&again));
}

/// What the API server fills in, what its ServiceAccount and LimitRanger plugins
/// add when they run again, and a registry mirror.
#[test]
fn what_others_did_to_our_containers_survives_a_second_call() {
    let mut pod = injected(&pod());
    for place in [0, 1] {
        let ours = &mut pod["spec"]["initContainers"][place];
        ours["image"] = json!("mirror.internal/bulkhead@sha256:abc");
        ours["terminationMessagePath"] = json!("/dev/termination-log");
        ours["resources"]["limits"]["cpu"] = json!("500m");
        let mount = json!({"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
        match ours["volumeMounts"].as_array_mut() {
            Some(mounts) => mounts.push(mount),
            None => ours["volumeMounts"] = json!([mount]),
        }
    }
    let proxy = &mut pod["spec"]["initContainers"][1];
    proxy["startupProbe"]["successThreshold"] = json!(1);
    proxy["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
    proxy["env"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "HTTP_PROXY", "value": "x"}));
    let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
    volumes[0]["projected"]["defaultMode"] = json!(420);
    volumes[1]["projected"]["defaultMode"] = json!(420);
    volumes.push(json!({"name": "kube-api-access-x"}));
    assert!(
        patch_is_empty(&pod),
        "{:#?}",
        injection(&pod, &enabled()).patch
    );
}

#[test]
fn what_we_wrote_and_would_not_write_now_goes() {
    let mut pod = injected(&annotated(json!({
        "bulkhead.io/mtls-mode": "STRICT",
        "bulkhead.io/proxy-cpu-limit": "1",
        "bulkhead.io/proxy-image": "registry.example/other:2",
    })));
    let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.retain(|name, _| !name.starts_with("bulkhead.io/") || name == annotation::STATUS);
    let again = injected(&pod);
    let without_status = |mut pod: Value| {
        pod["metadata"]["annotations"]
            .as_object_mut()
            .unwrap()
            .remove(annotation::STATUS);
        pod
    };
    assert_eq!(
        without_status(again),
        without_status(injected(&super::pod()))
    );
}

/// As in a manifest that was exported from a cluster with an older Bulkhead.
#[test]
fn a_volume_of_an_older_version_is_replaced_and_not_mixed_with_ours() {
    let mut pod = injected(&pod());
    pod["spec"]["volumes"][1] = json!({
        "name": "bulkhead-trust-bundle",
        "configMap": {"name": "bulkhead-trust-bundle", "defaultMode": 420},
    });
    assert_eq!(injected(&pod), injected(&super::pod()));
}

#[test]
fn a_pod_changes_between_native_and_classic_without_a_trace() {
    let native = annotated(json!({}));
    let classic = annotated(json!({"bulkhead.io/native-sidecar": "disabled"}));
    for (from, to) in [(&native, &classic), (&classic, &native)] {
        let mut pod = injected(from);
        let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.remove("bulkhead.io/native-sidecar");
        for (name, value) in to["metadata"]["annotations"].as_object().unwrap() {
            annotations.insert(name.clone(), value.clone());
        }
        let mut expected = injected(to);
        // The parents were there or not in the one or the other, which only the
        // status tells.
        let mut again = injected(&pod);
        for pod in [&mut expected, &mut again] {
            pod["metadata"]["annotations"]
                .as_object_mut()
                .unwrap()
                .remove(annotation::STATUS);
        }
        assert_eq!(again, expected);
    }
}

#[test]
fn a_forged_status_removes_nothing_of_the_users() {
    let status = json!({
        "containers": ["app"], "volumes": ["data"], "imagePullSecrets": ["mine"],
        "labels": {"app": "cart"}, "absent": ["volumes"],
    });
    let mut pod = annotated(json!({annotation::STATUS: status.to_string()}));
    pod["metadata"]["labels"] = json!({"app": "cart"});
    pod["spec"]["volumes"] = json!([{"name": "data"}]);
    pod["spec"]["imagePullSecrets"] = json!([{"name": "mine"}]);
    assert_eq!(uninject(pod.clone()), pod);
    let injected = injected(&pod);
    assert_eq!(names(&injected, "containers"), ["app"]);
    assert_eq!(injected["metadata"]["labels"]["app"], "cart");
    assert_eq!(names(&injected, "volumes")[0], "data");
    assert_eq!(names(&injected, "imagePullSecrets"), ["mine"]);
}

#[test]
fn pull_secrets_are_added_once_and_taken_back() {
    let defaults = Defaults {
        image_pull_secrets: vec!["ours".to_owned(), "mine".to_owned()],
        inject_by_default: true,
        ..defaults()
    };
    let mut pod = pod();
    pod["spec"]["imagePullSecrets"] = json!([{"name": "mine"}]);
    let (first, _) = injected_by(&pod, &namespace(""), &defaults);
    assert_eq!(names(&first, "imagePullSecrets"), ["mine", "ours"]);
    let (_, is_changed) = injected_by(&first, &namespace(""), &defaults);
    assert!(!is_changed);
    assert_eq!(uninject(first), pod);
}
