//! The way back, where sidecars cannot be reached. Time is paused.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bulkhead_core::ports;
use bulkhead_inject::PROXY_CONTAINER;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::DuplexStream;

use super::*;
use crate::fake::FakeCluster;

/// A running pod with a sidecar.
fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"containers": [{"name": PROXY_CONTAINER}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [{
                "name": PROXY_CONTAINER, "image": "", "imageID": "", "ready": true,
                "restartCount": 0, "state": {"running": {}},
            }],
        },
    })
}

/// `shop`, with these pods and nothing of a bypass's but what their sidecars were told.
fn shop(pods: &[&str]) -> FakeCluster {
    let pods: Vec<_> = pods.iter().map(|name| pod(name)).collect();
    FakeCluster::new(move |uri| {
        let (kind, items) = match uri.path().ends_with("/pods") {
            true => ("PodList", &pods[..]),
            false => ("ConfigMapList", &[][..]),
        };
        json!({"apiVersion": "v1", "kind": kind, "metadata": {}, "items": items})
    })
}

/// A sidecar's admin port, where this is in force whatever it is told.
fn remains(phase: &'static str) -> impl Fn(DuplexStream) + Send + Sync {
    move |stream| {
        let service = service_fn(move |_: Request<Incoming>| async move {
            let in_force = json!({"phase": phase}).to_string();
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(in_force)))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection);
    }
}

/// Turns a bypass back, and tells what was said and what came of it.
async fn turned_back(cluster: FakeCluster) -> (String, anyhow::Result<()>) {
    let cluster = cluster.start();
    let mut out = Vec::new();
    let scope = Scope::everything(&cluster);
    let ended = step_back(&cluster, &scope, &[], SystemTime::UNIX_EPOCH, &mut out).await;
    (String::from_utf8(out).unwrap(), ended)
}

#[tokio::test(start_paused = true)]
async fn sidecars_that_could_not_be_taken_back_are_named_and_the_command_fails() {
    let shop = shop(&["cart-0", "cart-1", "pay-0"])
        .listens("cart-0", ports::PROXY_ADMIN, remains("off"))
        .listens("pay-0", ports::PROXY_ADMIN, remains("forward"));
    let (said, ended) = turned_back(shop).await;
    let error = ended.unwrap_err().to_string();
    assert!(
        error.contains("2 of 3 sidecars enforce no policy"),
        "{error}"
    );
    assert!(said.contains("enforce  1 of 3 sidecars"), "{said}");
    let unreachable = "missed   shop/cart-1: its node says: dial tcp4 127.0.0.1:15000: connect: \
                       connection refused";
    assert!(said.contains(unreachable), "{said}");
    let overruled = "missed   shop/pay-0: it is told to forward by somebody else";
    assert!(said.contains(overruled), "{said}");
    assert!(!said.contains("shop/cart-0"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_can_be_reached_again_in_time_is_taken_back() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let answers = remains("off");
    let shop = shop(&["cart-0"]).listens("cart-0", ports::PROXY_ADMIN, move |stream| {
        // The connection of who is not answered ends.
        if counted.fetch_add(1, Ordering::SeqCst) >= 5 {
            answers(stream);
        }
    });
    let (said, ended) = turned_back(shop).await;
    ended.unwrap();
    assert!(said.contains("enforce  1 of 1 sidecars"), "{said}");
    assert!(tries.load(Ordering::SeqCst) > 5);
}

#[tokio::test(start_paused = true)]
async fn sidecars_that_all_enforce_policy_again_are_counted() {
    let shop = shop(&["cart-0"]).listens("cart-0", ports::PROXY_ADMIN, remains("off"));
    let (said, ended) = turned_back(shop).await;
    ended.unwrap();
    let counted = "secure   1 of 1 sidecars send mTLS again\n\
                   enforce  1 of 1 sidecars enforce policy again\n";
    assert_eq!(said, counted);
}
