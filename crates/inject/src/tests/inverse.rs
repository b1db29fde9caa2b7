//! Injecting twice is injecting once, and undoing it gives back what went in:
//! for pods of every shape, empty lists and nulls included.

use proptest::prelude::*;

use serde_json::Map;

use super::*;

fn any_port() -> impl Strategy<Value = Value> {
    prop_oneof![
        (1..14_999_u16).prop_map(Value::from),
        Just(json!("web")),
        Just(json!("nobody")),
        Just(json!("8080")),
    ]
}

/// Nothing, or something that a field may hold.
fn maybe(
    field: &'static str,
    value: impl Strategy<Value = Value> + 'static,
) -> BoxedStrategy<Value> {
    prop::option::of(value)
        .prop_map(move |value| match value {
            Some(value) => json!({field: value}),
            None => json!({}),
        })
        .boxed()
}

fn joined(parts: Vec<Value>) -> Value {
    let mut joined = Map::new();
    for part in parts {
        joined.extend(part.as_object().cloned().unwrap_or_default());
    }
    Value::Object(joined)
}

fn any_handler() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just(json!("")),
        Just(json!("/x$(A)$$")),
        Just(json!("\"quoted\"\n")),
        Just(json!(null))
    ];
    let host = prop_oneof![Just(json!("")), Just(json!("example.org"))];
    let headers = prop_oneof![
        Just(json!([])),
        Just(json!(null)),
        Just(json!([{"name": "A", "value": "b"}])),
        Just(json!([{"name": "A"}])),
        Just(json!([{"name": "A", "value": "b", "more": 1}])),
    ];
    let http = (
        any_port(),
        maybe("path", text),
        maybe("host", host.clone()),
        maybe("scheme", Just(json!("HTTPS"))),
        maybe("httpHeaders", headers),
        maybe("unknown", Just(json!({"a": []}))),
    )
        .prop_map(|(port, a, b, c, d, e)| {
            json!({"httpGet": joined(vec![json!({"port": port}), a, b, c, d, e])})
        });
    let tcp = (any_port(), maybe("host", host))
        .prop_map(|(port, host)| json!({"tcpSocket": joined(vec![json!({"port": port}), host])}));
    let service = prop_oneof![Just(json!("")), Just(json!("a.B")), Just(json!(null))];
    let grpc = (any_port(), maybe("service", service))
        .prop_map(|(port, service)| json!({"grpc": joined(vec![json!({"port": port}), service])}));
    let other = prop_oneof![
        Just(json!({"exec": {"command": ["true"]}})),
        Just(json!({})),
        Just(json!(null))
    ];
    prop_oneof![4 => http, 2 => tcp, 2 => grpc, 1 => other]
}

fn any_probe() -> impl Strategy<Value = Value> {
    (
        any_handler(),
        maybe("timeoutSeconds", Just(json!(3))),
        maybe("periodSeconds", Just(json!(5))),
    )
        .prop_map(|(handler, timeout, period)| {
            if handler.is_null() {
                return handler;
            }
            joined(vec![timeout, handler, period])
        })
}

fn any_container() -> impl Strategy<Value = Value> {
    let ports = prop_oneof![
        Just(json!([])),
        Just(json!([{"name": "web", "containerPort": 8080}])),
        Just(
            json!([{"containerPort": 9090, "protocol": "UDP"}, {"name": "grpc", "containerPort": 9091}])
        ),
    ];
    let hooks = (
        maybe("preStop", any_handler()),
        maybe("postStart", any_handler()),
    )
        .prop_map(|(stop, start)| joined(vec![stop, start]));
    let env = prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!([{"name": "A", "value": "b"}])),
        Just(json!([{"name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///elsewhere"}])),
        Just(json!([{
            "name": "SPIFFE_ENDPOINT_SOCKET",
            "value": "unix:///run/bulkhead/workload-api/api.sock",
        }])),
    ];
    let mounts = prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!([{"name": "data", "mountPath": "/data"}])),
    ];
    (
        maybe("ports", ports),
        maybe("readinessProbe", any_probe()),
        maybe("livenessProbe", any_probe()),
        maybe("startupProbe", any_probe()),
        maybe("lifecycle", hooks),
        maybe("env", env),
        maybe("volumeMounts", mounts),
    )
        .prop_map(|(a, b, c, d, e, f, g)| joined(vec![a, b, c, d, e, f, g]))
}

fn any_containers(prefix: &'static str, least: usize) -> impl Strategy<Value = Value> {
    prop::collection::vec(any_container(), least..4).prop_map(move |containers| {
        containers
            .into_iter()
            .enumerate()
            .map(|(index, container)| {
                joined(vec![json!({"name": format!("{prefix}{index}")}), container])
            })
            .collect()
    })
}

fn any_annotations() -> impl Strategy<Value = Value> {
    let native = maybe("bulkhead.io/native-sidecar", Just(json!("disabled")));
    let hold = maybe("bulkhead.io/hold-application", Just(json!("disabled")));
    let exclude = maybe("bulkhead.io/exclude-inbound-ports", Just(json!("1-9999")));
    let api = maybe("bulkhead.io/workload-api", Just(json!("enabled")));
    let container = maybe("kubectl.kubernetes.io/default-container", Just(json!("x")));
    let other = maybe("example.com/a~b", Just(json!("$$(X)")));
    let some = (native, hold, exclude, api, container, other)
        .prop_map(|(a, b, c, d, e, f)| joined(vec![a, b, c, d, e, f]));
    prop_oneof![1 => Just(json!(null)), 4 => some]
}

fn any_pod() -> impl Strategy<Value = Value> {
    let labels = prop_oneof![
        Just(json!(null)),
        Just(json!({})),
        Just(json!({"app": "x"})),
        Just(json!({"security.istio.io/tlsMode": "istio"})),
    ];
    let metadata = prop_oneof![
        1 => Just(json!(null)),
        6 => (maybe("labels", labels), maybe("annotations", any_annotations()), maybe("name", Just(json!("x"))))
            .prop_map(|(a, b, c)| joined(vec![a, b, c])),
    ];
    let init = prop_oneof![1 => Just(json!(null)), 3 => any_containers("init", 0)];
    let volumes = prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!([{"name": "data", "emptyDir": {}}]))
    ];
    let secrets = prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!([{"name": "mine"}]))
    ];
    let spec = (
        maybe("initContainers", init),
        any_containers("app", 1).prop_map(|containers| json!({"containers": containers})),
        maybe("volumes", volumes),
        maybe("imagePullSecrets", secrets),
        maybe("terminationGracePeriodSeconds", Just(json!(5))),
    )
        .prop_map(|(a, b, c, d, e)| joined(vec![a, b, c, d, e]));
    (maybe("metadata", metadata), spec)
        .prop_map(|(metadata, spec)| joined(vec![metadata, json!({"spec": spec})]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn undoing_gives_back_what_went_in_and_twice_is_once(pod in any_pod()) {
        let defaults = Defaults {
            inject_by_default: true,
            image_pull_secrets: vec!["ours".to_owned()],
            ..defaults()
        };
        let (first, _) = injected_by(&pod, &namespace(""), &defaults);
        // As text, so that the order of fields counts.
        prop_assert_eq!(uninject(first.clone()).to_string(), pod.to_string());
        let (second, is_changed) = injected_by(&first, &namespace(""), &defaults);
        prop_assert_eq!(second, first);
        prop_assert!(!is_changed);
    }

    #[test]
    fn no_document_makes_it_panic(
        text in "[ -~]{0,40}",
        pod in any_pod(),
        field in prop_oneof![Just("metadata"), Just("spec")],
    ) {
        let mut odd = pod;
        odd[field] = json!(text);
        let _ = inject(&odd, &enabled(), &defaults());
        prop_assert_eq!(uninject(odd.clone()), odd);
    }
}
