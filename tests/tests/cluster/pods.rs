//! Pods as people make them, with a sidecar that nobody wrote into them.

use std::path::{Path, PathBuf};

use bulkhead_inject::PROXY_CONTAINER;
use bulkhead_tests::cluster::apps::{self, APP_CONTAINER, Load, WORKLOAD_IMAGE, server};
use bulkhead_tests::cluster::{becomes, beside_others, is_ready, until};
use bulkhead_tests::namespace::{Namespace, is_injected};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::conditions;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

/// As `kubectl get pods` counts containers: the ready ones and all, sidecars
/// among them.
fn ready_of_all(pod: &Pod) -> (usize, usize) {
    let spec = pod.spec.as_ref().unwrap();
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .count();
    let status = pod.status.as_ref().unwrap();
    let init = status.init_container_statuses.iter().flatten();
    let ready = init
        .filter(|container| container.name == PROXY_CONTAINER)
        .chain(status.container_statuses.iter().flatten())
        .filter(|container| container.ready)
        .count();
    (ready, spec.containers.len() + sidecars)
}

async fn create<K>(namespace: &Namespace, object: Value) -> K
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).expect("the test wrote an object");
    let api: Api<K> = namespace.api();
    api.create(&PostParams::default(), &object)
        .await
        .expect("the API server takes it")
}

#[tokio::test]
async fn pods_come_out_with_two_of_two_containers_ready() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web").replicas(2).start(&namespace).await;
    for pod in web.pods().await {
        assert!(is_ready(&pod));
        assert_eq!(ready_of_all(&pod), (2, 2), "{pod:#?}");
    }
}

/// The directory of a container in the hierarchy of the memory controller.
fn memory_cgroup(container: &str) -> Option<PathBuf> {
    fn find(directory: &Path, container: &str) -> Option<PathBuf> {
        let entries = std::fs::read_dir(directory).ok()?.flatten();
        let mut directories = entries.filter(|entry| entry.path().is_dir());
        directories.find_map(|entry| {
            let path = entry.path();
            if entry.file_name().to_string_lossy().contains(container) {
                return Some(path);
            }
            find(&path, container)
        })
    }
    let version_1 = Path::new("/sys/fs/cgroup/memory");
    let root = if version_1.is_dir() {
        version_1
    } else {
        Path::new("/sys/fs/cgroup")
    };
    find(root, container)
}

fn container_id(pod: &Pod, name: &str) -> String {
    let status = pod.status.as_ref().unwrap();
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten())
        .find(|container| container.name == name)
        .and_then(|container| container.container_id.as_ref()?.rsplit_once("//"))
        .map(|(_, id)| id.to_owned())
        .expect("a container that runs has an id")
}

#[tokio::test]
async fn memory_and_cpu_annotations_are_in_the_pod_and_in_its_cgroup() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web")
        .annotations(&[
            ("bulkhead.io/proxy-memory-limit", "96Mi"),
            ("sidecar.istio.io/proxyCPU", "20m"),
        ])
        .start(&namespace)
        .await;
    let pod = web.pod().await;
    let spec = pod.spec.as_ref().unwrap();
    let proxy = spec
        .init_containers
        .iter()
        .flatten()
        .find(|container| container.name == PROXY_CONTAINER)
        .expect("the sidecar is the first of the init containers");
    let resources = proxy.resources.as_ref().unwrap();
    assert_eq!(resources.limits.as_ref().unwrap()["memory"].0, "96Mi");
    assert_eq!(resources.requests.as_ref().unwrap()["cpu"].0, "20m");

    let cgroup = memory_cgroup(&container_id(&pod, PROXY_CONTAINER)).expect("kubelet made it");
    let limit = ["memory.limit_in_bytes", "memory.max"]
        .iter()
        .find_map(|file| std::fs::read_to_string(cgroup.join(file)).ok())
        .expect("the controller shows the limit");
    assert_eq!(limit.trim(), (96 * 1024 * 1024).to_string());
}

#[tokio::test]
async fn a_bad_annotation_shows_as_an_event_on_the_replica_set() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    server("web")
        .annotations(&[("bulkhead.io/proxy-memory-limit", "lots")])
        .create(&namespace)
        .await;
    let events: Api<Event> = namespace.api();
    let event = until("the webhook tells of the refused pod", async || {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        all.into_iter()
            .find(|event| event.reason.as_deref() == Some("InjectionRefused"))
    })
    .await;
    let regarding = event.regarding.unwrap();
    assert_eq!(regarding.kind.as_deref(), Some("ReplicaSet"));
    let note = event.note.unwrap();
    assert!(
        note.contains("bulkhead.io/proxy-memory-limit") && note.contains("lots"),
        "{note}"
    );
}

#[tokio::test]
async fn a_label_or_an_annotation_keeps_a_pod_out() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let labelled = server("labelled").labels(&[("bulkhead.io/inject", "disabled")]);
    let annotated = server("annotated").annotations(&[("bulkhead.io/inject", "false")]);
    let (labelled, annotated) =
        tokio::join!(labelled.start(&namespace), annotated.start(&namespace));
    for app in [labelled, annotated] {
        let pod = app.pod().await;
        assert_eq!(ready_of_all(&pod), (1, 1), "{}", app.name());
    }
}

#[tokio::test]
async fn a_pod_opts_in_where_nobody_labelled_the_namespace() {
    let cluster = beside_others().await;
    let namespace = cluster.plain_namespace().await;
    let inside = server("inside").labels(&[("bulkhead.io/inject", "enabled")]);
    let outside = server("outside");
    let (inside, outside) = tokio::join!(inside.start(&namespace), outside.start(&namespace));
    assert_eq!(ready_of_all(&inside.pod().await), (2, 2));
    assert_eq!(ready_of_all(&outside.pod().await), (1, 1));
}

#[tokio::test]
async fn a_job_finishes_and_its_pod_completes() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web").start(&namespace).await;
    let job = json!({
        "metadata": {"name": "report"},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": APP_CONTAINER, "image": WORKLOAD_IMAGE,
                "args": ["get", web.url("/")],
            }],
        }}},
    });
    create::<Job>(&namespace, job).await;
    let jobs: Api<Job> = namespace.api();
    becomes(&jobs, "report", "complete", conditions::is_job_completed()).await;

    let pods: Api<Pod> = namespace.api();
    let of_job = ListParams::default().labels("job-name=report");
    let pods = pods.list(&of_job).await.unwrap().items;
    let [pod] = pods.as_slice() else {
        panic!("one pod was enough: {pods:#?}")
    };
    assert!(is_injected(pod));
    let status = pod.status.as_ref().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
}

#[tokio::test]
async fn an_init_container_reaches_the_network_through_the_mesh() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    // Who is not in the mesh is refused, so an answer tells of a sidecar.
    let web = server("web")
        .annotations(&[("bulkhead.io/mtls-mode", "STRICT")])
        .start(&namespace)
        .await;
    let waits = server("waits")
        .spec(json!({"initContainers": [{
            "name": "ask-first", "image": WORKLOAD_IMAGE, "args": ["get", web.url("/")],
        }]}))
        .start(&namespace)
        .await;
    assert_eq!(ready_of_all(&waits.pod().await), (2, 2));
}

/// Every kind of probe that comes over the network.
fn probes() -> [(&'static str, Value); 4] {
    [
        (
            "http-by-name",
            json!({"httpGet": {"path": "/health", "port": "http"}}),
        ),
        (
            "http-by-number",
            json!({"httpGet": {"path": "/health", "port": apps::HTTP_PORT}}),
        ),
        ("tcp", json!({"tcpSocket": {"port": apps::TCP_ECHO_PORT}})),
        ("grpc", json!({"grpc": {"port": apps::GRPC_PORT}})),
    ]
}

#[tokio::test]
async fn kubelets_probes_pass_under_strict_also_at_startup() {
    let cluster = beside_others().await;
    let strict = [("bulkhead.io/mtls-mode", "STRICT")];
    let namespace = cluster.meshed_namespace_with(&strict).await;
    let mut apps = Vec::new();
    for (name, probe) in probes() {
        let container = json!({
            "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe,
        });
        apps.push(server(name).container(container).create(&namespace).await);
    }
    for app in &apps {
        app.ready().await;
        let pod = app.pod().await;
        let restarts = pod
            .status
            .as_ref()
            .unwrap()
            .container_statuses
            .iter()
            .flatten();
        let restarts: i32 = restarts.map(|container| container.restart_count).sum();
        assert_eq!(restarts, 0, "{}", app.name());
    }
}

#[tokio::test]
async fn a_probe_that_the_application_fails_fails_through_the_sidecar_too() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web")
        .container(json!({"readinessProbe": {
            "httpGet": {"path": "/status/503", "port": "http"}, "periodSeconds": 1,
        }}))
        .create(&namespace)
        .await;
    let events: Api<Event> = namespace.api();
    // Before the application listens, the probe fails in another way.
    until("kubelet tells what the application answers", async || {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let mut notes = all.into_iter().filter_map(|event| event.note);
        notes
            .any(|note| note.contains("Readiness probe failed") && note.contains("503"))
            .then_some(())
    })
    .await;
    let pod = web.pod().await;
    assert!(!is_ready(&pod), "{}", pod.name_any());
}

#[tokio::test]
async fn a_stateful_set_rolls_out_under_load_without_a_failed_request() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let template = server("db").template();
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http"}]);
    let selector = json!({"app": "db"});
    let service = json!({
        "metadata": {"name": "db"},
        "spec": {"selector": selector, "ports": ports},
    });
    create::<Service>(&namespace, service).await;
    let set = json!({
        "metadata": {"name": "db"},
        "spec": {
            "serviceName": "db", "replicas": 2, "template": template,
            "selector": {"matchLabels": selector},
        },
    });
    create::<StatefulSet>(&namespace, set).await;
    let sets: Api<StatefulSet> = namespace.api();
    let rolled_out = |set: Option<&StatefulSet>| {
        set.and_then(|set| Some((set.metadata.generation?, set.status.as_ref()?)))
            .is_some_and(|(generation, status)| {
                status.observed_generation == Some(generation)
                    && status.updated_replicas == Some(2)
                    && status.ready_replicas == Some(2)
                    && status.current_revision == status.update_revision
            })
    };
    becomes(&sets, "db", "ready", rolled_out).await;

    let url = format!("http://db.{}.svc.cluster.local/", namespace.name());
    let load = Load::start(&namespace, "load", &url).await;
    let restart = json!({"spec": {"template": {"metadata": {"annotations": {"restart": "1"}}}}});
    sets.patch("db", &PatchParams::default(), &Patch::Merge(restart))
        .await
        .unwrap();
    becomes(&sets, "db", "rolled out again", rolled_out).await;
    load.goes_on(100).await;
    load.has_not_failed().await;
}

#[tokio::test]
async fn a_deployment_rolls_out_under_load_without_a_failed_request() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web").replicas(2).start(&namespace).await;
    let load = Load::start(&namespace, "load", &web.url("/")).await;
    web.restart().await;
    load.goes_on(100).await;
    load.has_not_failed().await;
}

#[tokio::test]
async fn kube_system_is_untouched() {
    let cluster = beside_others().await;
    let kube_system = Namespace::existing(cluster.client(), "kube-system");
    let pods: Api<Pod> = kube_system.api();
    let pods = pods.list(&ListParams::default()).await.unwrap().items;
    assert!(!pods.is_empty(), "CoreDNS runs there");
    assert!(!pods.iter().any(is_injected));
    // Also where somebody asks for it.
    let labelled = server("labelled").labels(&[("bulkhead.io/inject", "enabled")]);
    let template = labelled.template();
    let mut pod = template.clone();
    pod["metadata"]["name"] = json!("asks-for-it");
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let api: Api<Pod> = kube_system.api();
    let stored = api.create(&dry_run, &pod).await.unwrap();
    assert!(!is_injected(&stored));
    let deployments: Api<Deployment> = kube_system.api();
    let deployments = deployments.list(&ListParams::default()).await.unwrap();
    let config_maps: Api<k8s_openapi::api::core::v1::ConfigMap> = kube_system.api();
    let config_maps = config_maps.list(&ListParams::default()).await.unwrap();
    let names = deployments.iter().map(|it| it.name_any());
    let names = names.chain(config_maps.iter().map(|it| it.name_any()));
    for name in names {
        assert!(!name.contains("bulkhead"), "{name} is in kube-system");
    }
}
