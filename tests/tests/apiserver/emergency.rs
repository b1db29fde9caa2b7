//! The kill switch's first level on a real API server, with every pod of ours
//! dead: the webhook registered itself with failurePolicy Fail, and is gone.

use bulkhead::Cli;
use bulkhead::manifest::Stream;
use bulkhead_crds::emergency::{Bypass, InjectionStop};
use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::namespace::{Namespace, a_pod, is_injected};
use clap::Parser as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use kube::api::{
    ApiResource, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams,
};
use kube::client::Body;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::cluster::{Cluster, SOON, SYSTEM_NAMESPACE, dry_run, until};

/// What `bulkhead install` prints, which is the chart as Helm renders it.
const MANIFESTS: &str = include_str!("../../../cli/manifests/install.yaml");
const STOPPED: &str = "bulkhead.io/injection-stopped";
const INJECT: (&str, &str) = ("bulkhead.io/inject", "enabled");

/// A cluster whose webhook was registered and is dead. All tests here share it,
/// each with a namespace of its own.
async fn without_its_webhook() -> &'static Cluster {
    static SHARED: OnceCell<Cluster> = OnceCell::const_new();
    let start = async || {
        let cluster = Cluster::start().await;
        install(&cluster.client().await).await;
        drop(cluster.start_webhook(&[]).await);
        cluster.serve_by([]);
        cluster
    };
    SHARED.get_or_init(start).await
}

/// Applies the kill switch's part of the chart: its kinds, policies and roles.
async fn install(client: &Client) {
    let stream = Stream::parse(MANIFESTS).expect("the chart renders YAML");
    let mut objects: Vec<&Value> = stream
        .values()
        .filter(|object| is_of_switch(object))
        .collect();
    objects.sort_by_key(|object| object["kind"] != "CustomResourceDefinition");
    assert!(objects.len() > 10, "the chart has the kill switch");
    for object in objects {
        apply(client, object).await;
    }
    // The API server serves a kind, and obeys policies about it, a moment after
    // it has taken the definition.
    let stops: Api<InjectionStop> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let stop = InjectionStop::new("is-it-served", object(json!({"reason": "a question"})));
    let stamped = until(async || {
        let stored = stops.create(&dry_run(), &stop).await.ok()?;
        stored.spec.terms.by
    });
    assert_eq!(
        stamped.await.as_deref(),
        Some("admin"),
        "switches are stamped"
    );
}

fn is_of_switch(object: &Value) -> bool {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let prefixes = [
        "bulkhead-emergency-",
        "bulkhead-injection-stop",
        "bulkhead-missing-sidecar",
    ];
    name.ends_with(".emergency.bulkhead.io")
        || name == "bulkhead-time-limits"
        || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

async fn apply(client: &Client, object: &Value) {
    let (api_version, kind) = (&object["apiVersion"], &object["kind"]);
    let (group, version) = api_version
        .as_str()
        .and_then(|text| text.split_once('/'))
        .expect("none of these kinds is of the core group");
    let kind = kind.as_str().expect("an object has a kind");
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let name = object["metadata"]["name"].as_str().expect("it has a name");
    api.patch(
        name,
        &PatchParams::apply("the-tests"),
        &Patch::Apply(object),
    )
    .await
    .unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
}

/// Runs the command as the administrator.
async fn bulkhead(server: &ApiServer, arguments: &[&str]) -> anyhow::Result<()> {
    let kubeconfig = server.admin_kubeconfig();
    let mut words = vec!["bulkhead".to_owned()];
    words.extend(arguments.iter().map(|&word| word.to_owned()));
    words.extend(["--kubeconfig".to_owned(), kubeconfig.display().to_string()]);
    // It runs to its end on a thread of its own, as a process would.
    tokio::task::spawn_blocking(move || Cli::try_parse_from(words)?.run())
        .await
        .expect("the command does not panic")
}

/// A namespace whose pods ask for a sidecar, and cannot be created.
async fn stuck_namespace(cluster: &Cluster) -> Namespace {
    let namespace = Namespace::create(&cluster.client().await, &[INJECT], &[]).await;
    let refused = namespace.create_pod(&a_pod("stuck").build()).await;
    let error = refused.expect_err("the webhook is dead, and its failurePolicy is Fail");
    assert!(
        error.to_string().contains("failed calling webhook"),
        "{error}"
    );
    namespace
}

/// Creates a pod, and expects it to be stored without a sidecar and to say why.
async fn is_stored_without(namespace: &Namespace, pod: &Pod) -> String {
    let stored = namespace.create_pod(pod).await;
    let stored = stored.expect("a pod is created while injection is stopped");
    assert!(!is_injected(&stored));
    assert_eq!(stored.labels()["bulkhead.io/inject"], "disabled");
    stored.annotations()[STOPPED].clone()
}

#[tokio::test]
async fn with_the_webhook_dead_off_lets_pods_be_created_and_on_is_the_way_back() {
    let cluster = without_its_webhook().await;
    let namespace = stuck_namespace(cluster).await;
    let off = [
        "off",
        "--reason",
        "the webhook is dead",
        "-n",
        namespace.name(),
    ];
    bulkhead(cluster.server(), &off).await.unwrap();
    let notice = is_stored_without(&namespace, &a_pod("first").build()).await;
    assert_eq!(notice, "admin: the webhook is dead");

    bulkhead(cluster.server(), &["on", "-n", namespace.name()])
        .await
        .unwrap();
    let refused = until(async || namespace.create_pod(&a_pod("x").build()).await.err()).await;
    assert!(refused.is_some(), "pods ask for the webhook again");
}

#[tokio::test]
async fn pods_that_ask_for_a_sidecar_in_any_way_are_let_through() {
    let cluster = without_its_webhook().await;
    let namespace = stuck_namespace(cluster).await;
    bulkhead(cluster.server(), &["off", "-n", namespace.name()])
        .await
        .unwrap();
    let pods = [
        a_pod("by-label").labels(&[INJECT]),
        a_pod("by-a-word-that-nobody-knows").labels(&[("bulkhead.io/inject", "perhaps")]),
        a_pod("by-istios-label").labels(&[("sidecar.istio.io/inject", "true")]),
        a_pod("by-annotation").annotations(&[("linkerd.io/inject", "ingress")]),
        // Kubernetes takes these, and no apply configuration would.
        a_pod("with-everything-twice").spec(json!({"containers": [{
            "name": "app", "image": "registry.example/app:1",
            "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
            "ports": [{"containerPort": 80}, {"containerPort": 80}],
        }]})),
    ];
    for pod in pods {
        is_stored_without(&namespace, &pod.build()).await;
    }
    let own_word = a_pod("that-opted-out").labels(&[("bulkhead.io/inject", "disabled")]);
    let stored = namespace.create_pod(&own_word.build()).await.unwrap();
    assert!(
        !stored.annotations().contains_key(STOPPED),
        "it had asked for nothing"
    );
}

#[tokio::test]
async fn a_switch_for_a_workload_is_for_its_pods_only() {
    let cluster = without_its_webhook().await;
    let namespace = stuck_namespace(cluster).await;
    let labels = json!({"app": "checkout"});
    let deployment: Deployment = object(json!({
        "metadata": {"name": "checkout"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": a_pod("x").build().spec},
        },
    }));
    let api = namespace.api::<Deployment>();
    api.create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    let off = [
        "off",
        "-n",
        namespace.name(),
        "--workload",
        "deploy/checkout",
    ];
    bulkhead(cluster.server(), &off).await.unwrap();

    let meant = a_pod("meant").labels(&[("app", "checkout"), ("version", "2")]);
    is_stored_without(&namespace, &meant.build()).await;
    for other in [a_pod("a").labels(&[("app", "cart")]), a_pod("b")] {
        let refused = namespace.create_pod(&other.build()).await;
        assert!(refused.is_err(), "the switch is not for this pod");
    }
}

#[tokio::test]
async fn a_switch_that_kubectl_applies_works_as_well() {
    let cluster = without_its_webhook().await;
    let namespace = stuck_namespace(cluster).await;
    let stop = InjectionStop::new("by-hand", object(json!({"reason": "typed at night"})));
    let api = namespace.api::<InjectionStop>();
    let apply = PatchParams::apply("kubectl");
    api.patch("by-hand", &apply, &Patch::Apply(&stop))
        .await
        .unwrap();
    let stored = until(async || namespace.create_pod(&a_pod("cart").build()).await.ok()).await;
    let stored = stored.expect("a pod is created while injection is stopped");
    assert_eq!(stored.annotations()[STOPPED], "admin: typed at night");
}

#[tokio::test]
async fn a_switch_ends_at_its_time_though_everything_of_ours_is_dead() {
    let cluster = without_its_webhook().await;
    let namespace = stuck_namespace(cluster).await;
    // Long enough for a busy machine to create the pod meanwhile.
    let off = ["off", "--for", "15s", "-n", namespace.name()];
    bulkhead(cluster.server(), &off).await.unwrap();
    is_stored_without(&namespace, &a_pod("first").build()).await;

    let api = namespace.api::<InjectionStop>();
    let stops = api.list(&Default::default()).await.unwrap();
    let (name, uid) = (stops.items[0].name_any(), stops.items[0].uid().unwrap());
    let gone = await_condition(api, &name, conditions::is_deleted(&uid));
    timeout(SOON, gone)
        .await
        .expect("Kubernetes deletes it")
        .unwrap();
    let jobs = namespace.api::<Job>();
    let gone = until(async || {
        let jobs = jobs.list(&Default::default()).await.unwrap();
        jobs.items.is_empty().then_some(())
    });
    gone.await.expect("the time limit goes with it");
    let refused = until(async || namespace.create_pod(&a_pod("x").build()).await.err()).await;
    assert!(refused.is_some(), "pods ask for the webhook again");
}

#[tokio::test]
async fn who_turned_a_switch_is_stamped_and_cannot_be_forged() {
    let cluster = without_its_webhook().await;
    let namespace = Namespace::create(&cluster.client().await, &[], &[]).await;
    let ada = on_call(cluster, &namespace, "ada", "bulkhead-emergency-injection").await;
    let api: Api<InjectionStop> = Api::namespaced(ada, namespace.name());
    let forged = json!({"reason": "I was not here", "by": "somebody-else"});
    let stop = InjectionStop::new("forged", object(forged));
    let stored = api.create(&PostParams::default(), &stop).await.unwrap();
    let ada = format!("system:serviceaccount:{}:ada", namespace.name());
    assert_eq!(stored.spec.terms.by.as_ref(), Some(&ada));

    let later = json!({"spec": {"by": "somebody-else", "reason": "I say it again"}});
    let admins = namespace.api::<InjectionStop>();
    let merge = Patch::Merge(later);
    let changed = admins
        .patch("forged", &PatchParams::default(), &merge)
        .await
        .unwrap();
    assert_eq!(changed.spec.terms.by.as_ref(), Some(&ada));
    assert_eq!(changed.spec.terms.reason, "I say it again");

    for reason in ["", "  "] {
        let silent = InjectionStop::new("silent", object(json!({ "reason": reason })));
        let refused = api.create(&PostParams::default(), &silent).await;
        refused.expect_err("a switch without a reason is no switch");
    }
}

#[tokio::test]
async fn who_may_stop_injection_may_do_that_there_and_nothing_else() {
    let cluster = without_its_webhook().await;
    let client = cluster.client().await;
    let namespace = Namespace::create(&client, &[], &[]).await;
    let elsewhere = Namespace::create(&client, &[], &[]).await;
    let ada = on_call(cluster, &namespace, "ada", "bulkhead-emergency-injection").await;
    let stop = InjectionStop::new("stop", object(json!({"reason": "a drill"})));
    let bypass = Bypass::new("bypass", object(json!({"reason": "a drill"})));
    let create = PostParams::default();
    let stops: Api<InjectionStop> = Api::namespaced(ada.clone(), namespace.name());
    let bypasses: Api<Bypass> = Api::namespaced(ada.clone(), namespace.name());
    let jobs: Api<Job> = Api::namespaced(ada.clone(), namespace.name());

    stops.create(&create, &stop).await.unwrap();
    let not_here: Api<InjectionStop> = Api::namespaced(ada.clone(), elsewhere.name());
    is_forbidden(not_here.create(&create, &stop).await);
    let whole_mesh: Api<InjectionStop> = Api::namespaced(ada.clone(), SYSTEM_NAMESPACE);
    is_forbidden(whole_mesh.create(&create, &stop).await);
    is_forbidden(bypasses.create(&create, &bypass).await);

    // The time limit is a Job, and must not be a way to run pods.
    let job = |completions: u32| -> Job {
        object(json!({
            "metadata": {"generateName": "job-"},
            "spec": {"completions": completions, "template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}],
            }}},
        }))
    };
    jobs.create(&create, &job(0)).await.unwrap();
    jobs.create(&create, &job(1))
        .await
        .expect_err("that Job would run a pod");
}

#[tokio::test]
async fn off_for_the_whole_mesh_leaves_kubernetes_and_unmeshed_pods_alone_and_is_named_by_a_warning()
 {
    let server = ApiServer::start().await.expect("the API server starts");
    let client = server.client().await;
    Namespace::create_named(&client, SYSTEM_NAMESPACE, &[], &[]).await;
    install(&client).await;
    let meshed = Namespace::create(&client, &[INJECT], &[]).await;
    let unmeshed = Namespace::create(&client, &[], &[]).await;
    let kube_system = Namespace::existing(&client, "kube-system");
    kube_system.ready().await;

    // Nothing is registered, so the pod is stored without its sidecar.
    let warned = until(async || {
        let warnings = warnings(&client, &meshed).await;
        warnings
            .contains("asks for a Bulkhead sidecar")
            .then_some(())
    });
    assert!(warned.await.is_some(), "a missing sidecar draws a warning");
    assert_eq!(warnings(&client, &unmeshed).await, "");

    bulkhead(&server, &["off", "--reason", "a drill"])
        .await
        .unwrap();
    is_stored_without(&meshed, &a_pod("stored").build()).await;
    // The policy that warns hears of the switch by a watch of its own.
    let warned = until(async || {
        let warnings = warnings(&client, &meshed).await;
        warnings
            .contains("injection is stopped (admin: a drill)")
            .then_some(())
    });
    assert!(warned.await.is_some(), "the warning says what is going on");
    for namespace in [&unmeshed, &kube_system] {
        let pod = namespace.create_pod(&a_pod("plain").build()).await.unwrap();
        assert!(
            pod.annotations().is_empty() && pod.labels().is_empty(),
            "{pod:?}"
        );
    }
}

/// What the API server says at `kubectl` when a pod is created.
async fn warnings(client: &Client, namespace: &Namespace) -> String {
    let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", namespace.name());
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(
            serde_json::to_vec(&a_pod("cart").build()).unwrap(),
        ))
        .unwrap();
    let response = client.send(request).await.unwrap();
    assert!(response.status().is_success(), "{response:?}");
    let warnings = response.headers().get_all("warning").iter();
    warnings
        .map(|warning| String::from_utf8_lossy(warning.as_bytes()).into_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A client of somebody who is bound to a role of the chart in a namespace.
async fn on_call(cluster: &Cluster, namespace: &Namespace, name: &str, role: &str) -> Client {
    namespace.create_service_account(name).await;
    let binding = RoleBinding {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: role.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: name.to_owned(),
            namespace: Some(namespace.name().to_owned()),
            ..Subject::default()
        }]),
    };
    let bindings = namespace.api::<RoleBinding>();
    bindings
        .create(&PostParams::default(), &binding)
        .await
        .unwrap();
    let token = namespace.token(name, None, None).await;
    let client = cluster.server().client_with_token(token).await;
    // The authorizer hears of a binding by a watch.
    let stops: Api<InjectionStop> = Api::namespaced(client.clone(), namespace.name());
    let may = until(async || stops.list(&Default::default()).await.ok()).await;
    assert!(may.is_some(), "the binding counts");
    client
}

fn is_forbidden<T>(answer: kube::Result<T>) {
    match answer {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 403, "{status:?}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("that was allowed"),
    }
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the test wrote such an object")
}
