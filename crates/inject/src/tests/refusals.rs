use super::*;

#[test]
fn a_bad_annotation_is_refused_by_name_value_and_what_is_allowed() {
    let refusal = refusal(&annotated(
        json!({"bulkhead.io/proxy-memory-limit": "128 MB"}),
    ));
    assert_eq!(refusal.reason, RefuseReason::InvalidAnnotation);
    for part in ["bulkhead.io/proxy-memory-limit", "\"128 MB\"", "64Mi"] {
        assert!(refusal.message.contains(part), "{}", refusal.message);
    }
}

#[test]
fn a_bad_annotation_of_the_namespace_is_refused_and_says_so() {
    let mut namespace = enabled();
    namespace
        .annotations
        .insert("bulkhead.io/mtls-mode".into(), "on".into());
    let Decision::Refuse(refusal) = inject(&pod(), &namespace, &defaults()) else {
        panic!("to be refused");
    };
    assert!(refusal.message.contains("namespace"), "{}", refusal.message);
}

#[test]
fn a_slip_in_an_annotations_name_is_refused() {
    let refusal = refusal(&annotated(json!({"bulkhead.io/mtls-mod": "STRICT"})));
    assert_eq!(refusal.reason, RefuseReason::UnknownAnnotation);
    assert!(
        refusal
            .message
            .contains("did you mean bulkhead.io/mtls-mode?")
    );
}

#[test]
fn a_request_above_its_own_limit_is_refused() {
    let refusal = refusal(&annotated(json!({
        "bulkhead.io/proxy-cpu-request": "2",
        "bulkhead.io/proxy-cpu-limit": "1",
    })));
    assert!(
        refusal.message.contains("cpu request of 2"),
        "{}",
        refusal.message
    );
}

#[test]
fn a_pod_that_is_skipped_is_not_asked_about_its_annotations() {
    let pod = annotated(json!({"bulkhead.io/inject": "disabled", "bulkhead.io/nonsense": ""}));
    assert!(matches!(
        inject(&pod, &enabled(), &defaults()),
        Decision::Skip(_)
    ));
}

#[test]
fn the_sidecars_ports_belong_to_the_sidecar() {
    let refused = refusal(&pod_with(json!({"ports": [{"containerPort": 15006}]})));
    assert_eq!(refused.reason, RefuseReason::ReservedPort);
    for part in ["\"app\"", "15006"] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }
    let refused = refusal(&pod_with(
        json!({"livenessProbe": {"tcpSocket": {"port": 15020}}}),
    ));
    assert_eq!(refused.reason, RefuseReason::ReservedPort);
    // UDP has ports of its own.
    injected(&pod_with(
        json!({"ports": [{"containerPort": 15006, "protocol": "UDP"}]}),
    ));
}

#[test]
fn a_rewritten_probe_without_its_sidecar_cannot_be_guessed_back() {
    let mut pod = injected(&pod_with(
        json!({"readinessProbe": {"tcpSocket": {"port": 80}}}),
    ));
    pod["spec"]["initContainers"] = json!([]);
    pod["spec"]["volumes"] = json!([]);
    assert_eq!(refusal(&pod).reason, RefuseReason::LostProbe);
}

#[test]
fn what_only_happens_to_have_our_names_is_not_taken_for_ours() {
    for (list, name) in [
        ("containers", PROXY_CONTAINER),
        ("containers", INIT_CONTAINER),
        ("initContainers", PROXY_CONTAINER),
        ("volumes", TOKEN_VOLUME),
        ("volumes", TRUST_BUNDLE_VOLUME),
    ] {
        let mut pod = pod();
        let item = json!({"name": name, "image": "shop/mine:1"});
        match pod["spec"][list].as_array_mut() {
            Some(items) => items.push(item),
            None => pod["spec"][list] = json!([item]),
        }
        let refusal = refusal(&pod);
        assert_eq!(refusal.reason, RefuseReason::ReservedName);
        assert!(refusal.message.contains(name), "{}", refusal.message);
        assert_eq!(uninject(pod.clone()), pod);
    }
}

#[test]
fn what_is_no_pod_is_refused_and_never_panics() {
    let mut odd_containers = pod();
    odd_containers["spec"]["containers"] = json!([{"image": "x"}]);
    let mut only_sidecar = injected(&pod());
    only_sidecar["spec"]["containers"] = only_sidecar["spec"]["initContainers"].take();
    let mut odd_label = pod();
    odd_label["metadata"]["labels"] = json!({"bulkhead.io/inject": true});
    for document in [
        json!(null),
        json!("pod"),
        json!([]),
        json!({}),
        json!({"spec": null}),
        json!({"spec": {}}),
        json!({"spec": {"containers": null}}),
        json!({"spec": {"containers": {}}}),
        json!({"spec": {"containers": []}}),
        json!({"spec": {"containers": ["app"]}}),
        json!({"spec": {"containers": [{"name": 1}]}}),
        json!({"spec": {"containers": [{"name": ""}]}}),
        json!({"spec": {"containers": [{"name": "a"}], "volumes": {}}}),
        json!({"spec": {"containers": [{"name": "a"}], "initContainers": "x"}}),
        json!({"metadata": [], "spec": {"containers": [{"name": "a"}]}}),
        json!({"metadata": {"labels": "x"}, "spec": {"containers": [{"name": "a"}]}}),
        json!({"metadata": {"annotations": []}, "spec": {"containers": [{"name": "a"}]}}),
        odd_containers,
        only_sidecar,
        odd_label,
        annotated(json!({"bulkhead.io/concurrency": 2})),
    ] {
        let refusal = refusal(&document);
        assert_eq!(refusal.reason, RefuseReason::MalformedPod, "{document}");
        assert!(
            refusal.message.contains("the document is not a pod"),
            "{document}"
        );
        assert_eq!(
            uninject(document.clone())["spec"].is_null(),
            document["spec"].is_null()
        );
    }
}

#[test]
fn ten_thousand_containers_are_refused_at_once() {
    let mut pod = pod();
    let containers: Vec<_> = (0..10_000)
        .map(|index| json!({"name": format!("c{index}"), "readinessProbe": {"httpGet": {"port": 80}}}))
        .collect();
    pod["spec"]["containers"] = json!(containers);
    assert_eq!(refusal(&pod).reason, RefuseReason::TooLarge);
}

#[test]
fn probes_that_no_variable_holds_are_refused() {
    let path = "/".repeat(MAX_PROBE_PATH);
    let refusal = refusal(&pod_with(
        json!({"readinessProbe": {"httpGet": {"path": path, "port": 80}}}),
    ));
    assert_eq!(refusal.reason, RefuseReason::TooLarge);
    assert!(refusal.message.contains("BULKHEAD_APP_PROBES"));
}

/// Longer than what Linux lets a variable be.
const MAX_PROBE_PATH: usize = 128 * 1024;
