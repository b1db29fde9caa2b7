//! What is made of an API server that answers badly.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use bulkhead_core::identity::TrustDomain;
use bulkhead_core::policy::{InboundPolicy, MtlsMode};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::monitoring::Monitoring;
use hyper::{Request, Response, Uri};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::index::Settings;

/// An API server that answers as it is told, and says what it was asked.
fn api_server(
    answer: impl Fn(&Uri) -> (u16, Value) + Send + Sync + 'static,
) -> (Client, mpsc::UnboundedReceiver<String>) {
    let answer = Arc::new(answer);
    let (asked, requests) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (code, body) = answer(request.uri());
        asked.send(request.uri().to_string()).unwrap();
        async move {
            let answer = Response::builder()
                .status(code)
                .body(Body::from(body.to_string().into_bytes()));
            Ok::<_, Infallible>(answer.unwrap())
        }
    });
    (Client::new(service, "default"), requests)
}

fn failure(code: u16) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": "not now", "reason": "Unknown", "code": code,
    });
    (code, status)
}

/// A control that follows an API server.
struct World {
    hub: Hub,
    monitoring: Monitoring,
    cluster: Cluster,
    _trigger: drain::Trigger,
}

impl World {
    fn new(client: Client) -> Self {
        let monitoring = Monitoring::default();
        let metrics = Metrics::register(&monitoring);
        let settings = Settings {
            trust_domain: TrustDomain::new("cluster.local").unwrap(),
            root_namespaces: ["istio-system".to_owned()].into(),
            default_policy: InboundPolicy::default(),
        };
        let reading = Reading {
            system_namespace: "bulkhead-system".to_owned(),
            inject_by_default: false,
            root_namespaces: settings.root_namespaces.clone(),
        };
        let system = reading.system_namespace.clone();
        let hub = Hub::new(settings, system, metrics.clone(), Clock::system());
        let (trigger, drain) = drain::channel();
        let (events, writing) = Events::new(client.clone(), "control-0");
        tokio::spawn(writing);
        let cluster = Cluster {
            client,
            hub: hub.clone(),
            reading,
            metrics,
            events,
            synced: monitoring.readiness.condition("objects"),
            drain,
            tasks: Tasks::default(),
        };
        Self {
            hub,
            monitoring,
            cluster,
            _trigger: trigger,
        }
    }

    fn metric(&self, line: &str) -> bool {
        self.monitoring.metrics().lines().any(|found| found == line)
    }
}

/// Waits until it is so, but not for ever: an hour of paused time.
async fn soon(mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async { while !is_so().await {} };
    let waited = timeout(Duration::from_secs(3600), waiting).await;
    waited.expect("not in time");
}

#[tokio::test(start_paused = true)]
async fn policies_hold_until_the_api_server_says_that_there_are_none() {
    let status = Arc::new(AtomicU16::new(503));
    let answer = Arc::clone(&status);
    let (client, mut requests) = api_server(move |_| failure(answer.load(Ordering::Relaxed)));
    let world = World::new(client);
    let hub = &world.hub;
    let strict = policy("default", json!({"mtls": {"mode": "STRICT"}}));
    let read = manifest::read(strict, &world.cluster.reading);
    let (key, strict) = read.unwrap().unwrap();
    hub.apply(Change::Applied(key, strict));

    let kind = Kind::PeerAuthentication;
    tokio::spawn(
        world
            .cluster
            .clone()
            .optional(kind, istio::GROUP, &istio::VERSIONS),
    );
    for _ in 0..3 {
        requests.recv().await.unwrap();
    }
    assert_eq!(hub.count(kind), 1);
    assert!(!hub.has_listed(&[kind]), "nobody knows what there is");

    status.store(404, Ordering::Relaxed);
    while !hub.has_listed(&[kind]) {
        requests.recv().await.unwrap();
    }
    assert_eq!(hub.count(kind), 0);
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1"},
        "spec": spec,
    })
}

fn bypass(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "emergency.bulkhead.io/v1alpha1",
        "kind": "Bypass",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1"},
        "spec": spec,
    })
}

/// An API server that serves one kind, gives these lists of its objects one
/// after the other, the last one again and again, because every watch is too old.
fn serving(
    kind: &'static str,
    plural: &'static str,
    lists: Vec<Vec<Value>>,
) -> (Client, mpsc::UnboundedReceiver<String>) {
    let lists = Mutex::new(lists);
    api_server(move |uri| {
        let query = uri.query().unwrap_or_default();
        if uri.path().ends_with("/events") {
            return (201, json!({"kind": "Event", "metadata": {}}));
        }
        if !uri.path().ends_with(plural) {
            let resource = json!({
                "name": plural, "kind": kind, "namespaced": true, "singularName": "",
                "verbs": ["list", "watch"],
            });
            let list = json!({
                "kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": uri.path().trim_start_matches("/apis/"),
                "resources": [resource],
            });
            return (200, list);
        }
        if query.contains("watch=") {
            let (_, too_old) = failure(410);
            return (200, json!({"type": "ERROR", "object": too_old}));
        }
        let mut lists = lists.lock().unwrap();
        let items = if lists.len() > 1 {
            lists.remove(0)
        } else {
            lists[0].clone()
        };
        let list = json!({
            "kind": format!("{kind}List"), "apiVersion": "v1",
            "metadata": {"resourceVersion": "1"}, "items": items,
        });
        (200, list)
    })
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_became_unreadable_holds_as_it_was_also_when_all_are_listed_again() {
    let mode = |mode: &str| json!({"mtls": {"mode": mode}});
    let before = vec![
        policy("one", mode("STRICT")),
        policy("gone", mode("DISABLE")),
    ];
    let never_read = policy("two", json!({"mtls": "STRICT"}));
    let younger = policy("three", mode("DISABLE"));
    let after = vec![policy("one", mode("ON")), never_read, younger];
    let plural = "peerauthentications";
    let (client, mut requests) = serving("PeerAuthentication", plural, vec![before, after]);
    let world = World::new(client);
    let kind = Kind::PeerAuthentication;
    let following = world
        .cluster
        .clone()
        .optional(kind, istio::GROUP, &istio::VERSIONS);
    tokio::spawn(following);
    let faulty = "bulkhead_control_faulty_objects{kind=\"PeerAuthentication\"} 2";
    let mut events = 0;
    soon(async || {
        let asked = requests.recv().await.unwrap();
        events += usize::from(asked.contains("/namespaces/shop/events"));
        events == 2
    })
    .await;
    soon(async || {
        requests.recv().await.unwrap();
        world.metric(faulty) && world.hub.count(kind) == 2
    })
    .await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cart-0", "namespace": "shop"}});
    let (key, pod) = manifest::read(pod, &world.cluster.reading)
        .unwrap()
        .unwrap();
    world.hub.apply(Change::Applied(key, pod));
    let inbound = world
        .hub
        .read(|index| index.inbound(&"shop/cart-0".parse().unwrap()));
    let mode = inbound.unwrap().policy.mode(80);
    assert_eq!(mode, MtlsMode::Strict, "of two, the first by name counts");
}

#[tokio::test(start_paused = true)]
async fn a_bypass_that_cannot_be_read_is_no_reason_to_know_none() {
    let good = bypass("good", json!({"reason": "a drill"}));
    let bad = bypass("bad", json!({"reason": "a drill", "until": "soon"}));
    let (client, mut requests) = serving("Bypass", "bypasses", vec![vec![bad, good]]);
    let world = World::new(client);
    let kind = Kind::Bypass;
    let following = world
        .cluster
        .clone()
        .optional(kind, emergency::GROUP, &[emergency::VERSION]);
    tokio::spawn(following);
    soon(async || {
        requests.recv().await.unwrap();
        world.hub.count(kind) == 1
    })
    .await;
    assert!(world.metric("bulkhead_control_faulty_objects{kind=\"Bypass\"} 1"));
}

#[test]
fn what_means_nothing_in_a_policy_is_said() {
    let reading = Reading {
        system_namespace: "bulkhead-system".to_owned(),
        inject_by_default: false,
        root_namespaces: ["shop".to_owned()].into(),
    };
    let elsewhere = Reading {
        root_namespaces: ["istio-system".to_owned()].into(),
        ..reading.clone()
    };
    let said = |spec: Value, reading: &Reading| {
        let (_, object) = manifest::read(policy("x", spec), reading).unwrap().unwrap();
        object.without_effect(reading)
    };
    let selecting = json!({"selector": {"matchLabels": {"app": "cart"}}});
    let of_ports = json!({"portLevelMtls": {"80": {"mode": "STRICT"}}});
    assert!(
        said(selecting.clone(), &reading)
            .unwrap()
            .contains("root namespace")
    );
    assert_eq!(said(selecting, &elsewhere), None);
    assert!(
        said(of_ports, &elsewhere)
            .unwrap()
            .contains("portLevelMtls")
    );
}
