use super::*;

/// The word of a decision about a pod and a namespace.
fn word(pod: &Value, namespace: &Namespace, defaults: &Defaults) -> &'static str {
    match inject(pod, namespace, defaults) {
        Decision::Inject(injection) => injection.reason.as_str(),
        Decision::Skip(reason) => reason.as_str(),
        Decision::Refuse(refusal) => refusal.reason.as_str(),
    }
}

fn labelled(label: &str, value: &str) -> Value {
    let mut pod = pod();
    pod["metadata"]["labels"] = json!({label: value});
    pod
}

#[test]
fn a_pod_about_which_nobody_says_anything_follows_the_installation() {
    assert_eq!(word(&pod(), &namespace(""), &defaults()), "not_requested");
    let on = Defaults {
        inject_by_default: true,
        ..defaults()
    };
    assert_eq!(word(&pod(), &namespace(""), &on), "enabled_by_default");
}

#[test]
fn whoever_is_nearest_to_the_pod_decides() {
    let defaults = defaults();
    let plain = namespace("");
    let off = namespace("bulkhead.io/inject=disabled");
    let on = enabled();
    let label_on = labelled("bulkhead.io/inject", "enabled");
    let label_off = labelled("bulkhead.io/inject", "false");
    let annotation_on = annotated(json!({"bulkhead.io/inject": "true"}));
    let annotation_off = annotated(json!({"bulkhead.io/inject": "disabled"}));
    let mut both = labelled("bulkhead.io/inject", "enabled");
    both["metadata"]["annotations"] = json!({"bulkhead.io/inject": "disabled"});
    for (pod, namespace, expected) in [
        (&label_on, &plain, "enabled_by_pod_label"),
        (&label_on, &off, "enabled_by_pod_label"),
        (&label_off, &on, "disabled_by_pod_label"),
        (&both, &off, "enabled_by_pod_label"),
        (&annotation_on, &off, "enabled_by_pod_annotation"),
        (&annotation_off, &on, "disabled_by_pod_annotation"),
        (&pod(), &on, "enabled_by_namespace_label"),
        (&pod(), &off, "disabled_by_namespace_label"),
    ] {
        assert_eq!(word(pod, namespace, &defaults), expected);
    }
}

#[test]
fn the_other_meshes_words_are_understood_where_ours_is_absent() {
    let defaults = defaults();
    let plain = namespace("");
    for (pod, expected) in [
        (
            labelled("sidecar.istio.io/inject", "true"),
            "enabled_by_pod_label",
        ),
        (
            labelled("sidecar.istio.io/inject", "false"),
            "disabled_by_pod_label",
        ),
        (
            annotated(json!({"sidecar.istio.io/inject": "true"})),
            "enabled_by_pod_annotation",
        ),
        (
            annotated(json!({"linkerd.io/inject": "enabled"})),
            "enabled_by_pod_annotation",
        ),
        (
            annotated(json!({"linkerd.io/inject": "ingress"})),
            "enabled_by_pod_annotation",
        ),
        (
            annotated(json!({"linkerd.io/inject": "disabled"})),
            "disabled_by_pod_annotation",
        ),
        (
            annotated(json!({"linkerd.io/inject": "enabled", "bulkhead.io/inject": "disabled"})),
            "disabled_by_pod_annotation",
        ),
    ] {
        assert_eq!(
            word(&pod, &plain, &defaults),
            expected,
            "{}",
            pod["metadata"]
        );
    }
    for (label, expected) in [
        ("istio-injection=enabled", "enabled_by_namespace_label"),
        ("istio-injection=disabled", "disabled_by_namespace_label"),
        ("linkerd.io/inject=enabled", "enabled_by_namespace_label"),
    ] {
        assert_eq!(
            word(&pod(), &namespace(label), &defaults),
            expected,
            "{label}"
        );
    }
    let mut linkerd = namespace("");
    linkerd
        .annotations
        .insert("linkerd.io/inject".into(), "enabled".into());
    assert_eq!(
        word(&pod(), &linkerd, &defaults),
        "enabled_by_namespace_annotation"
    );
    linkerd
        .labels
        .insert("bulkhead.io/inject".into(), "disabled".into());
    assert_eq!(
        word(&pod(), &linkerd, &defaults),
        "disabled_by_namespace_label"
    );
}

#[test]
fn pods_that_cannot_have_a_sidecar_are_skipped_whatever_they_ask_for() {
    let changed = |pointer: &str, value: Value| {
        let mut pod = labelled("bulkhead.io/inject", "enabled");
        pod["spec"][pointer] = value;
        pod
    };
    for (pod, expected) in [
        (changed("hostNetwork", json!(true)), "host_network"),
        (changed("os", json!({"name": "windows"})), "windows"),
        (
            changed("nodeSelector", json!({"kubernetes.io/os": "windows"})),
            "windows",
        ),
        (
            changed("nodeSelector", json!({"beta.kubernetes.io/os": "windows"})),
            "windows",
        ),
        (changed("hostNetwork", json!(false)), "enabled_by_pod_label"),
        (
            changed("os", json!({"name": "linux"})),
            "enabled_by_pod_label",
        ),
        (
            changed("nodeSelector", json!({"kubernetes.io/os": "linux"})),
            "enabled_by_pod_label",
        ),
    ] {
        assert_eq!(
            word(&pod, &enabled(), &defaults()),
            expected,
            "{}",
            pod["spec"]
        );
    }
}

#[test]
fn the_namespaces_of_kubernetes_are_left_alone() {
    for name in SYSTEM_NAMESPACES {
        let system = Namespace {
            name: name.to_owned(),
            ..enabled()
        };
        let pod = labelled("bulkhead.io/inject", "enabled");
        assert_eq!(word(&pod, &system, &defaults()), "system_namespace");
    }
}

#[test]
fn only_in_bulkheads_own_namespace_does_its_label_mean_anything() {
    let pod = labelled("app.kubernetes.io/part-of", "bulkhead");
    let own = Namespace {
        name: DEFAULT_SYSTEM_NAMESPACE.to_owned(),
        ..enabled()
    };
    assert_eq!(word(&pod, &own, &defaults()), "own_pod");
    assert_eq!(
        word(&pod, &enabled(), &defaults()),
        "enabled_by_namespace_label"
    );
}

#[test]
fn a_pod_of_another_mesh_is_left_to_it() {
    for (list, name) in [
        ("containers", "istio-proxy"),
        ("initContainers", "linkerd-proxy"),
    ] {
        let mut pod = pod();
        let sidecar = json!({"name": name, "image": "x"});
        match pod["spec"][list].as_array_mut() {
            Some(containers) => containers.push(sidecar),
            None => pod["spec"][list] = json!([sidecar]),
        }
        assert_eq!(word(&pod, &enabled(), &defaults()), "other_mesh");
        assert_eq!(word(&pod, &namespace(""), &defaults()), "not_requested");
    }
    assert!(SkipReason::OtherMesh.is_surprising());
    assert!(!SkipReason::PodLabel.is_surprising());
}

#[test]
fn a_word_that_means_nothing_is_refused_and_says_what_would() {
    let mut odd_namespace = namespace("");
    odd_namespace
        .labels
        .insert("istio-injection".into(), "yes".into());
    for (pod, namespace, parts) in [
        (
            labelled("bulkhead.io/inject", "on"),
            namespace(""),
            [
                "pod's label bulkhead.io/inject",
                "\"on\"",
                "enabled or disabled",
            ],
        ),
        (
            annotated(json!({"linkerd.io/inject": "Enabled"})),
            enabled(),
            [
                "pod's annotation linkerd.io/inject",
                "\"Enabled\"",
                "enabled or disabled",
            ],
        ),
        (
            pod(),
            odd_namespace,
            [
                "namespace's label istio-injection",
                "\"yes\"",
                "enabled or disabled",
            ],
        ),
    ] {
        let Decision::Refuse(refusal) = inject(&pod, &namespace, &defaults()) else {
            panic!("to be refused");
        };
        assert_eq!(refusal.reason, RefuseReason::InvalidAnnotation);
        for part in parts {
            assert!(refusal.message.contains(part), "{}", refusal.message);
        }
    }
}
