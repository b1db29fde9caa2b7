use super::*;

#[test]
fn a_native_sidecar_comes_before_every_other_init_container() {
    let mut pod = pod();
    pod["spec"]["initContainers"] = json!([{"name": "migrate"}]);
    let injected = injected(&pod);
    assert_eq!(
        names(&injected, "initContainers"),
        [INIT_CONTAINER, PROXY_CONTAINER, "migrate"]
    );
    assert_eq!(names(&injected, "containers"), ["app"]);
    let proxy = container(&injected, PROXY_CONTAINER);
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(proxy["startupProbe"]["httpGet"]["path"], "/ready");
    assert!(proxy.get("lifecycle").is_none());
}

#[test]
fn a_classic_proxy_holds_the_application_or_stands_behind_it() {
    for (hold, expected) in [
        ("enabled", [PROXY_CONTAINER, "app"]),
        ("disabled", ["app", PROXY_CONTAINER]),
    ] {
        let mut pod = annotated(json!({
            "bulkhead.io/native-sidecar": "disabled",
            "bulkhead.io/hold-application": hold,
        }));
        pod["spec"]["initContainers"] = json!([{"name": "migrate"}]);
        let injected = injected(&pod);
        assert_eq!(names(&injected, "containers"), expected);
        assert_eq!(
            names(&injected, "initContainers"),
            ["migrate", INIT_CONTAINER]
        );
        let proxy = container(&injected, PROXY_CONTAINER);
        assert!(proxy.get("restartPolicy").is_none() && proxy.get("startupProbe").is_none());
        let hook = proxy.pointer("/lifecycle/postStart/exec/command");
        let wait = json!(["bulkhead-proxy", "wait"]);
        assert_eq!(hook, (hold == "enabled").then_some(&wait));
    }
}

/// The rules of the Pod Security Standard, as Kubernetes states them.
#[test]
fn everything_added_is_restricted_but_for_net_admin() {
    let injected = injected(&pod());
    for (name, added) in [
        (PROXY_CONTAINER, None),
        (INIT_CONTAINER, Some(json!(["NET_ADMIN"]))),
    ] {
        let context = &container(&injected, name)["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["runAsNonRoot"], true);
        assert!(context["runAsUser"].as_i64().unwrap() > 0);
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(context["capabilities"].get("add").cloned(), added);
        assert!(context.get("privileged").is_none());
    }
    for volume in injected["spec"]["volumes"].as_array().unwrap() {
        assert!(volume.get("projected").is_some());
    }
}

#[test]
fn the_token_is_bound_to_the_ca_and_lies_where_the_proxy_looks() {
    let injected = injected(&pod());
    let token = &injected["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], bulkhead_core::sidecar::TOKEN_AUDIENCE);
    let mounts = &container(&injected, PROXY_CONTAINER)["volumeMounts"];
    let path = |mount: usize, file: &str| {
        format!("{}/{file}", mounts[mount]["mountPath"].as_str().unwrap())
    };
    assert_eq!(
        path(0, token["path"].as_str().unwrap()),
        bulkhead_core::sidecar::TOKEN_PATH
    );
    let roots = &injected["spec"]["volumes"][1]["projected"]["sources"][0]["configMap"];
    assert_eq!(
        path(1, roots["items"][0]["path"].as_str().unwrap()),
        bulkhead_core::sidecar::CA_ROOTS_PATH
    );
    assert!(
        roots.get("optional").is_none(),
        "without roots there is no mesh"
    );
}

#[test]
fn a_pod_starts_without_the_switch_and_sees_it_beside_the_roots_once_it_is_there() {
    let injected = injected(&pod());
    let switch = &injected["spec"]["volumes"][1]["projected"]["sources"][1]["configMap"];
    assert_eq!(switch["name"], crate::BYPASS_CONFIG_MAP);
    assert_eq!(switch["optional"], true);
    assert_eq!(switch["items"][0]["path"], crate::BYPASS_KEY);
}

#[test]
fn a_pod_sees_which_version_of_the_trust_bundle_it_has_where_the_ca_says_so() {
    let injected = injected(&pod());
    let document = &injected["spec"]["volumes"][1]["projected"]["sources"][2]["configMap"];
    assert_eq!(document["name"], crate::TRUST_BUNDLE_CONFIG_MAP);
    assert_eq!(document["items"][0]["key"], "bundle.json");
    assert_eq!(document["items"][0]["path"], "bundle.json");
    assert_eq!(
        document["optional"], true,
        "an earlier CA's ConfigMap has none"
    );
}

#[test]
fn the_proxy_and_the_init_container_read_what_was_said() {
    let injected = injected(&annotated(json!({
        "bulkhead.io/mtls-mode": "STRICT",
        "bulkhead.io/log-level": "debug",
        "bulkhead.io/exclude-outbound-ports": "3306",
        "sidecar.istio.io/proxyCPU": "50m",
    })));
    let config = sidecar_config(&injected);
    assert_eq!(config.mode, bulkhead_core::policy::MtlsMode::Strict);
    assert_eq!(config.log_level, "debug");
    assert_eq!(config.workload, "cart");
    let redirect = bulkhead_core::redirect::RedirectConfig::from_env(&|name| {
        variable(&injected, INIT_CONTAINER, name)
    });
    assert_eq!(redirect.unwrap().exclude_outbound_ports.to_string(), "3306");
    assert_eq!(
        container(&injected, PROXY_CONTAINER)["resources"]["requests"]["cpu"],
        "50m"
    );
}

#[test]
fn each_resource_is_merged_alone_over_namespace_and_installation() {
    let mut namespace = enabled();
    let annotations = &mut namespace.annotations;
    annotations.insert("bulkhead.io/proxy-memory-limit".into(), "300Mi".into());
    annotations.insert("bulkhead.io/proxy-cpu-limit".into(), "1".into());
    let pod = annotated(json!({
        "bulkhead.io/proxy-cpu-limit": "none",
        "config.linkerd.io/proxy-memory-request": "400Mi",
    }));
    let injected = injected_by(&pod, &namespace, &defaults()).0;
    assert_eq!(
        container(&injected, PROXY_CONTAINER)["resources"],
        json!({
            "requests": {"cpu": "10m", "memory": "400Mi"},
            // The pod's request is above its namespace's limit, which gives way.
            "limits": {"memory": "400Mi"},
        })
    );
}

#[test]
fn no_resources_at_all_leave_no_empty_object() {
    let injected = injected(&annotated(json!({
        "bulkhead.io/proxy-cpu-request": "none",
        "bulkhead.io/proxy-memory-request": "none",
        "bulkhead.io/proxy-memory-limit": "none",
    })));
    assert!(
        container(&injected, PROXY_CONTAINER)
            .get("resources")
            .is_none()
    );
    assert!(!injected.to_string().contains("null"), "{injected}");
}

#[test]
fn ports_speak_what_their_names_say() {
    use bulkhead_core::protocol::Protocol;
    let ports = json!({"ports": [
        {"name": "grpc-api", "containerPort": 9000},
        {"name": "http", "containerPort": 3306},
        {"name": "http-web", "containerPort": 8080},
        {"name": "tcp-raw", "containerPort": 7000},
        {"name": "redis", "containerPort": 6379},
        {"name": "grpc-udp", "containerPort": 9001, "protocol": "UDP"},
        {"name": "metrics", "containerPort": 9090},
    ]});
    let config = sidecar_config(&injected(&pod_with(ports.clone())));
    assert_eq!(
        config.port_protocols.into_iter().collect::<Vec<_>>(),
        [
            (3306, Protocol::Auto),
            (7000, Protocol::Opaque),
            (9000, Protocol::Grpc)
        ]
    );
    // What a person wrote wins over a name.
    let mut pod = pod_with(ports);
    pod["metadata"]["annotations"] = json!({"bulkhead.io/opaque-ports": "9000,3306"});
    let config = sidecar_config(&injected(&pod));
    assert_eq!(config.protocol(9000), Protocol::Opaque);
    assert_eq!(config.protocol(3306), Protocol::Opaque);
    assert_eq!(config.protocol(6379), Protocol::Opaque);
}

#[test]
fn labels_and_annotations_of_the_user_are_kept() {
    let mut pod = annotated(json!({"kubectl.kubernetes.io/default-container": "other"}));
    pod["metadata"]["labels"] = json!({"security.istio.io/tlsMode": "disabled"});
    let metadata = &injected(&pod)["metadata"];
    assert_eq!(
        metadata["annotations"]["kubectl.kubernetes.io/default-container"],
        "other"
    );
    assert_eq!(metadata["labels"]["security.istio.io/tlsMode"], "disabled");
    let metadata = &injected(&super::pod())["metadata"];
    assert_eq!(
        metadata["annotations"]["kubectl.kubernetes.io/default-container"],
        "app"
    );
    assert_eq!(metadata["labels"]["security.istio.io/tlsMode"], "istio");
}

#[test]
fn fields_that_nobody_knows_pass_through() {
    let mut pod = pod_with(json!({"fromTheFuture": {"a~/b": [1.0, null, {}]}}));
    pod["spec"]["alsoNew"] = json!([[], {}]);
    pod["x"] = json!(18_446_744_073_709_551_615_u64);
    let injected = injected(&pod);
    assert_eq!(injected["spec"]["alsoNew"], pod["spec"]["alsoNew"]);
    assert_eq!(injected["spec"]["containers"], pod["spec"]["containers"]);
    assert_eq!(injected["x"], pod["x"]);
}

#[test]
fn people_are_warned_of_what_does_nothing_and_of_what_escapes() {
    let mut pod = annotated(json!({
        "proxy.istio.io/config": "concurrency: 2",
        "bulkhead.io/native-sidecar": "disabled",
    }));
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["securityContext"] = json!({"runAsUser": 1337});
    let warnings = injection(&pod, &enabled()).warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, part) in warnings
        .iter()
        .zip(["proxy.istio.io/config", "app", "keeps it running"])
    {
        assert!(warning.contains(part), "{warning}");
    }
    assert!(injection(&super::pod(), &enabled()).warnings.is_empty());
}
