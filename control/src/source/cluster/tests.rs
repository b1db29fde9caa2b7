//! What is made of an API server that answers badly.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bulkhead_core::identity::TrustDomain;
use bulkhead_core::policy::InboundPolicy;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::monitoring::Monitoring;
use hyper::{Request, Response};
use kube::client::Body;
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::index::Settings;

/// An API server that answers every request with one status, and says that it
/// was asked.
fn api_server(status: &Arc<AtomicU16>) -> (Client, mpsc::UnboundedReceiver<String>) {
    let status = Arc::clone(status);
    let (asked, requests) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<Body>| {
        let code = status.load(Ordering::Relaxed);
        asked.send(request.uri().path().to_owned()).unwrap();
        async move {
            let answer = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "message": "not now", "reason": "Unknown", "code": code,
            });
            let answer = Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, Infallible>(answer.unwrap())
        }
    });
    (Client::new(service, "default"), requests)
}

#[tokio::test(start_paused = true)]
async fn policies_hold_until_the_api_server_says_that_there_are_none() {
    let monitoring = Monitoring::default();
    let metrics = Metrics::register(&monitoring);
    let settings = Settings {
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        root_namespaces: ["istio-system".to_owned()].into(),
        default_policy: InboundPolicy::default(),
    };
    let system = "bulkhead-system".to_owned();
    let hub = Hub::new(settings, system.clone(), metrics.clone(), Clock::system());
    let reading = Reading {
        system_namespace: system,
        inject_by_default: false,
    };
    let strict = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "istio-system"},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    let (key, strict) = manifest::read(strict, &reading).unwrap().unwrap();
    hub.apply(Change::Applied(key, strict));

    let status = Arc::new(AtomicU16::new(503));
    let (client, mut requests) = api_server(&status);
    let (_trigger, drain) = drain::channel();
    let cluster = Cluster {
        client,
        hub: hub.clone(),
        reading,
        metrics,
        synced: monitoring.readiness.condition("objects"),
        drain,
    };
    let kind = Kind::PeerAuthentication;
    tokio::spawn(cluster.optional(kind, istio::GROUP, &istio::VERSIONS));
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
