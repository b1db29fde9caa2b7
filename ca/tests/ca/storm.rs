//! Everybody at once, and one who wants more than everybody.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_ca::authenticate::Pod;
use bulkhead_ca::authenticate::local_issuer::TokenRequest;
use bulkhead_proto::retry;
use futures::future::join_all;
use tonic::Code;

use crate::support::{Ca, request, token_for_cart};

const PODS: usize = 100;
/// More calls at once than one caller may have waiting.
const GREEDY_CALLS: usize = 40;
const OTHERS: usize = 10;

fn token_of(ca: &Ca, name: &str) -> String {
    ca.token(&TokenRequest {
        service_account: name.to_owned(),
        pod: Some(Pod {
            name: format!("{name}-0"),
            uid: format!("uid-of-{name}"),
        }),
        ..token_for_cart()
    })
}

/// Calls until there is a certificate, as workloads do: whoever is told when to
/// come again does so then, and whoever finds no connection a little later.
async fn until_certified(ca: &Ca, token: &str) {
    loop {
        let delay = match ca.try_client().await {
            Ok(mut client) => match client.call(Some(token), request(None).1).await {
                Ok(_) => return,
                Err(status) => {
                    let refusals = [
                        Code::Unauthenticated,
                        Code::PermissionDenied,
                        Code::InvalidArgument,
                    ];
                    assert!(!refusals.contains(&status.code()), "{status:?}");
                    retry::delay(&status)
                }
            },
            Err(_) => None,
        };
        let delay = delay.unwrap_or(Duration::from_secs(1));
        assert!(delay <= Duration::from_secs(60), "{delay:?}");
        tokio::time::sleep(delay).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_all_start_at_once_are_all_certified() {
    let ca = Ca::start().await;
    let pods = (0..PODS).map(|number| {
        let ca = &ca;
        async move { until_certified(ca, &token_of(ca, &format!("pod-{number}"))).await }
    });
    join_all(pods).await;
    let metrics = ca.monitoring.metrics();
    let issued = metrics
        .lines()
        .find_map(|line| line.strip_prefix("bulkhead_ca_certificates_issued_total "));
    // One whose client gave up waiting for the answer counts twice.
    assert!(issued.unwrap().parse::<usize>().unwrap() >= PODS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_asks_without_end_does_not_keep_the_others_from_their_certificates() {
    let ca = Arc::new(Ca::start().await);
    let greedy = token_of(&ca, "greedy");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..GREEDY_CALLS {
        let (ca, token) = (Arc::clone(&ca), greedy.clone());
        // It never waits, whatever it is told.
        tasks.spawn(async move {
            loop {
                let Ok(mut client) = ca.try_client().await else {
                    continue;
                };
                while client.call(Some(&token), request(None).1).await.is_ok() {}
            }
        });
    }
    let others = (0..OTHERS).map(|number| {
        let ca = &ca;
        async move { until_certified(ca, &token_of(ca, &format!("pod-{number}"))).await }
    });
    join_all(others).await;
    tasks.shutdown().await;
}
