use bulkhead_core::sidecar::ProbeHandler;

use super::*;

fn probed(probe: Value) -> Value {
    pod_with(json!({
        "ports": [{"name": "web", "containerPort": 8080}],
        "readinessProbe": probe,
    }))
}

#[test]
fn http_tcp_and_grpc_probes_of_all_kinds_go_through_the_proxy() {
    let pod = pod_with(json!({
        "ports": [{"name": "web", "containerPort": 8080}],
        "readinessProbe": {
            "httpGet": {"path": "/ready?full=1", "port": "web", "scheme": "HTTPS",
                        "httpHeaders": [{"name": "Host", "value": "cart"}]},
            "timeoutSeconds": 7, "periodSeconds": 3,
        },
        "livenessProbe": {"tcpSocket": {"port": 8081}},
        "startupProbe": {"grpc": {"port": 9090, "service": "cart.Health"}, "failureThreshold": 30},
        "lifecycle": {
            "preStop": {"httpGet": {"path": "/stop", "port": 8080}},
            "postStart": {"exec": {"command": ["true"]}},
        },
    }));
    let injected = injected(&pod);
    let app = container(&injected, "app");
    for (pointer, path) in [
        ("/readinessProbe", "/app-health/app/readyz"),
        ("/livenessProbe", "/app-health/app/livez"),
        ("/startupProbe", "/app-health/app/startupz"),
        ("/lifecycle/preStop", "/app-lifecycle/app/prestopz"),
    ] {
        let expected = json!({"path": path, "port": 15020, "scheme": "HTTP"});
        assert_eq!(
            app.pointer(pointer).unwrap()["httpGet"],
            expected,
            "{pointer}"
        );
    }
    assert_eq!(app["readinessProbe"]["timeoutSeconds"], 7);
    assert_eq!(app["readinessProbe"]["periodSeconds"], 3);
    assert!(app["livenessProbe"].get("tcpSocket").is_none());
    assert!(app["startupProbe"].get("grpc").is_none());
    assert_eq!(
        app["lifecycle"]["postStart"],
        json!({"exec": {"command": ["true"]}})
    );

    let probes = sidecar_config(&injected).probes;
    assert_eq!(probes.len(), 4);
    let ready = &probes["/app-health/app/readyz"];
    assert_eq!(
        (
            ready.port,
            ready.port_name.as_deref(),
            ready.timeout_seconds
        ),
        (8080, Some("web"), 7)
    );
    let ProbeHandler::HttpGet {
        path,
        scheme,
        http_headers,
        ..
    } = &ready.handler
    else {
        panic!("an HTTP probe");
    };
    assert_eq!(path.as_deref(), Some("/ready?full=1"));
    assert_eq!(scheme.as_deref(), Some("HTTPS"));
    assert_eq!(
        (
            http_headers[0].name.as_str(),
            http_headers[0].value.as_str()
        ),
        ("Host", "cart")
    );
    let live = &probes["/app-health/app/livez"];
    assert_eq!(
        (&live.handler, live.port, live.timeout_seconds),
        (&ProbeHandler::TcpSocket { host: None }, 8081, 1)
    );
    let grpc = ProbeHandler::Grpc {
        service: Some("cart.Health".into()),
    };
    assert_eq!(probes["/app-health/app/startupz"].handler, grpc);
    // A hook may take as long as the pod may take to stop.
    assert_eq!(probes["/app-lifecycle/app/prestopz"].timeout_seconds, 30);
}

#[test]
fn sidecars_of_the_user_have_their_probes_rewritten_too() {
    let mut pod = pod();
    pod["spec"]["initContainers"] = json!([{
        "name": "cache", "restartPolicy": "Always",
        "startupProbe": {"tcpSocket": {"port": 6379}},
    }]);
    let probes = sidecar_config(&injected(&pod)).probes;
    assert_eq!(
        probes.keys().collect::<Vec<_>>(),
        ["/app-health/cache/startupz"]
    );
}

#[test]
fn a_probe_that_never_meets_the_proxy_stays_as_it_is() {
    for probe in [
        json!({"exec": {"command": ["true"]}}),
        json!({"httpGet": {"host": "example.org", "port": 80}}),
        json!({"httpGet": {"port": "no-such-port"}}),
        json!({"tcpSocket": {"port": 0}}),
        json!({"tcpSocket": {}}),
        json!({"httpGet": {"port": 80}, "tcpSocket": {"port": 80}}),
        json!(null),
        json!([]),
    ] {
        let pod = probed(probe.clone());
        let injected = injected(&pod);
        assert_eq!(container(&injected, "app")["readinessProbe"], probe);
        assert!(sidecar_config(&injected).probes.is_empty());
    }
}

#[test]
fn a_probe_of_a_port_that_passes_the_proxy_by_stays_as_it_is() {
    for annotation in [
        json!({"bulkhead.io/exclude-inbound-ports": "8080"}),
        json!({"traffic.sidecar.istio.io/includeInboundPorts": "9090"}),
        json!({"bulkhead.io/rewrite-probes": "disabled"}),
    ] {
        let mut pod = probed(json!({"httpGet": {"port": "web"}}));
        pod["metadata"]["annotations"] = annotation;
        let injected = injected(&pod);
        assert_eq!(container(&injected, "app"), &pod["spec"]["containers"][0]);
    }
}

#[test]
fn a_port_name_counts_in_its_own_container_only() {
    let mut pod = probed(json!({"httpGet": {"port": "admin"}}));
    let other = json!({"name": "other", "ports": [{"name": "admin", "containerPort": 9}]});
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(other);
    assert!(sidecar_config(&injected(&pod)).probes.is_empty());
}

#[test]
fn the_first_word_about_a_port_that_is_a_number_in_quotes_is_understood() {
    let probes = sidecar_config(&injected(&probed(json!({"httpGet": {"port": "8080"}})))).probes;
    assert_eq!(probes["/app-health/app/readyz"].port, 8080);
}

#[test]
fn what_kubernetes_would_expand_in_a_variable_stays_as_it_is() {
    let path = "/$(BULKHEAD_POD_NAME)/$$/$";
    let injected = injected(&probed(json!({"httpGet": {"path": path, "port": 8080}})));
    let env = container(&injected, PROXY_CONTAINER)["env"]
        .as_array()
        .unwrap();
    let raw = env
        .iter()
        .find(|item| item["name"] == "BULKHEAD_APP_PROBES")
        .unwrap();
    assert!(
        raw["value"]
            .as_str()
            .unwrap()
            .contains("/$$(BULKHEAD_POD_NAME)/$$$$/$$")
    );
    let ProbeHandler::HttpGet { path: read, .. } =
        &sidecar_config(&injected).probes["/app-health/app/readyz"].handler
    else {
        panic!("an HTTP probe");
    };
    assert_eq!(read.as_deref(), Some(path));
}
