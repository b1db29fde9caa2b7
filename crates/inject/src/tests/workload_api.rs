//! The application's way to the Workload API.

use super::*;

const ADDRESS: &str = "unix:///run/bulkhead/workload-api/api.sock";

fn pod() -> Value {
    json!({
        "metadata": {"annotations": {"bulkhead.io/workload-api": "enabled"}},
        "spec": {
            "initContainers": [{"name": "migrate"}],
            "containers": [
                {"name": "app", "env": [{"name": "A", "value": "b"}]},
                {"name": "agent", "env": [
                    {"name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///spire/agent.sock"},
                ]},
            ],
        },
    })
}

fn injected(pod: &Value) -> Value {
    injected_by(pod, &namespace(""), &enabled_defaults()).0
}

fn enabled_defaults() -> Defaults {
    Defaults {
        inject_by_default: true,
        ..defaults()
    }
}

fn mounts(pod: &Value, container_name: &str) -> Vec<Value> {
    let container = container(pod, container_name).as_object().unwrap();
    pod::list(container, "volumeMounts")
        .iter()
        .filter(|mount| mount["name"] == "bulkhead-workload-api")
        .cloned()
        .collect()
}

#[test]
fn every_container_of_the_application_finds_the_socket() {
    let pod = injected(&pod());
    for name in ["migrate", "app"] {
        assert_eq!(
            variable(&pod, name, "SPIFFE_ENDPOINT_SOCKET").as_deref(),
            Some(ADDRESS)
        );
        let mount = json!({
            "name": "bulkhead-workload-api",
            "mountPath": "/run/bulkhead/workload-api",
            "readOnly": true,
        });
        assert_eq!(mounts(&pod, name), [mount], "{name}");
    }
    let config = sidecar_config(&pod);
    let path = config.workload_api_path.unwrap();
    assert_eq!(format!("unix://{path}"), ADDRESS);
    let mount = mounts(&pod, PROXY_CONTAINER);
    assert_eq!(mount.len(), 1);
    assert!(
        mount[0].get("readOnly").is_none(),
        "the proxy makes the socket"
    );
    assert!(mounts(&pod, "bulkhead-init").is_empty());
}

#[test]
fn nothing_on_disk_and_nothing_that_restricted_forbids_holds_the_socket() {
    let pod = injected(&pod());
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let volume = volumes
        .iter()
        .find(|volume| volume["name"] == "bulkhead-workload-api");
    let expected = json!({"medium": "Memory", "sizeLimit": "1Mi"});
    assert_eq!(volume.unwrap()["emptyDir"], expected);
}

#[test]
fn a_container_that_asks_elsewhere_goes_on_to_and_the_person_is_told() {
    let decision = inject(&pod(), &namespace(""), &enabled_defaults());
    let Decision::Inject(injection) = decision else {
        panic!("{decision:?}");
    };
    assert_eq!(injection.warnings.len(), 1, "{:?}", injection.warnings);
    assert!(injection.warnings[0].contains("agent"));
    let pod = injected(&pod());
    let kept = variable(&pod, "agent", "SPIFFE_ENDPOINT_SOCKET");
    assert_eq!(kept.as_deref(), Some("unix:///spire/agent.sock"));
}

#[test]
fn without_the_annotation_there_is_none_of_it() {
    let mut plain = pod();
    plain["metadata"] = json!({});
    let text = injected(&plain).to_string();
    assert!(!text.contains("bulkhead-workload-api"));
    assert!(!text.contains(ADDRESS));
}

#[test]
fn what_is_switched_off_again_leaves_nothing_behind() {
    let mut pod = injected(&pod());
    pod["metadata"]["annotations"]["bulkhead.io/workload-api"] = json!("disabled");
    let text = injected(&pod).to_string();
    assert!(!text.contains("bulkhead-workload-api"), "{text}");
    assert!(!text.contains(ADDRESS), "{text}");
}

#[test]
fn a_container_that_another_webhook_added_finds_the_socket_too() {
    let mut pod = injected(&pod());
    let late = json!({"name": "late", "env": null});
    pod["spec"]["containers"].as_array_mut().unwrap().push(late);
    let app = pod["spec"]["containers"].as_array_mut().unwrap();
    let app = app
        .iter_mut()
        .find(|container| container["name"] == "app")
        .unwrap();
    let other = json!({"name": "LATER", "value": "1"});
    app["env"].as_array_mut().unwrap().push(other);
    let again = injected(&pod);
    assert_eq!(
        variable(&again, "late", "SPIFFE_ENDPOINT_SOCKET").as_deref(),
        Some(ADDRESS)
    );
    // What others wrote after us stays after us.
    let variables = container(&again, "app")["env"].as_array().unwrap().iter();
    let names: Vec<_> = variables
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["A", "SPIFFE_ENDPOINT_SOCKET", "LATER"]);
    let (_, is_changed) = injected_by(&again, &namespace(""), &enabled_defaults());
    assert!(!is_changed);
}
