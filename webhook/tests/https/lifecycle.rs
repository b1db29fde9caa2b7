//! Beginning and end of a webhook, and two of them side by side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_runtime::drain::Outcome;
use bulkhead_webhook::app::App;
use hyper::StatusCode;

use crate::client::{Client, monitoring, start};
use crate::pods::{pod, review};

#[tokio::test]
async fn a_webhook_is_ready_when_it_has_a_certificate_and_knows_its_namespaces() {
    let app = start().await;
    app.ca_bundle().await;
    let mut client = Client::of(&app).await;
    client.review(&review("mesh", &pod())).await;
    assert_eq!(
        monitoring(&app, "/ready").await,
        (StatusCode::OK, "ready\n".to_owned())
    );
    assert_eq!(monitoring(&app, "/live").await.0, StatusCode::OK);
    let (status, _) = monitoring(&app, "/inject").await;
    assert_eq!(
        status,
        StatusCode::NOT_FOUND,
        "reviews are answered elsewhere"
    );
}

/// Sends reviews for as long as `going` holds, to the first address that takes
/// a connection, and keeps the connection until it is told to go: what a
/// Service with two endpoints and an API server do. Returns how many.
async fn call_while(going: Arc<AtomicBool>, endpoints: Vec<(SocketAddr, String)>) -> usize {
    let body = review("mesh", &pod()).to_string();
    let mut kept: Option<Client> = None;
    let mut answered = 0;
    while going.load(Ordering::Relaxed) {
        let mut client = match kept.take() {
            Some(client) => client,
            None => {
                let mut connected = None;
                for (address, roots) in &endpoints {
                    if let Ok(client) = Client::connect(*address, roots).await {
                        connected = Some(client);
                        break;
                    }
                }
                connected.expect("one of the replicas takes connections")
            }
        };
        let answer = client.try_post(body.clone()).await;
        let answer = answer.expect("a review on an open connection is answered");
        assert_eq!(answer.review()["allowed"], true);
        answered += 1;
        if !answer.closes {
            kept = Some(client);
        }
    }
    answered
}

/// The reviews that a replica has answered.
async fn reviews(app: &App) -> u64 {
    let (_, metrics) = monitoring(app, "/metrics").await;
    metrics
        .lines()
        .find_map(|line| line.strip_prefix("bulkhead_webhook_request_duration_seconds_count "))
        .map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_ends_under_load_loses_no_review() {
    let (ending, staying) = (start().await, start().await);
    let endpoints = vec![
        (ending.address(), ending.ca_bundle().await),
        (staying.address(), staying.ca_bundle().await),
    ];
    let going = Arc::new(AtomicBool::new(true));
    let callers: Vec<_> = (0..4)
        .map(|_| tokio::spawn(call_while(Arc::clone(&going), endpoints.clone())))
        .collect();
    while reviews(&ending).await < 20 {}
    assert_eq!(ending.shutdown().await, Outcome::Finished);
    while reviews(&staying).await < 20 {}
    going.store(false, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_webhook_that_is_leaving_says_so() {
    let app = start().await;
    let monitoring_of = app.monitoring().clone();
    app.ca_bundle().await;
    assert!(monitoring_of.readiness.missing().is_empty());
    let mut client = Client::of(&app).await;
    let ending = tokio::spawn(app.shutdown());
    while !monitoring_of
        .readiness
        .missing()
        .contains(&"accepting_reviews")
    {
        tokio::task::yield_now().await;
    }
    let answer = client.post(review("mesh", &pod()).to_string()).await;
    assert!(
        answer.closes,
        "the caller should come back to another replica"
    );
    assert_eq!(ending.await.unwrap(), Outcome::Finished);
}
