//! Everybody at once, and one who wants more than everybody.

use std::time::Duration;

use bulkhead_ca::authenticate::Pod;
use bulkhead_ca::authenticate::local_issuer::TokenRequest;
use bulkhead_proto::retry;
use futures::future::join_all;
use tonic::Code;

use crate::support::{Ca, Client, request, token_for_cart};

const PODS: usize = 200;
/// More calls at once than one caller may have waiting, twice over.
const GREEDY_CALLS: usize = 100;

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

/// Calls until there is a certificate, and obeys what the CA says about when.
async fn until_certified(client: &mut Client, token: &str) {
    loop {
        match client.call(Some(token), request(None).1).await {
            Ok(_) => return,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                let delay = retry::delay(&status).expect("the CA says when to come again");
                assert!(delay <= Duration::from_secs(60), "{delay:?}");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_all_start_at_once_are_all_certified() {
    let ca = Ca::start().await;
    let pods = (0..PODS).map(|number| {
        let ca = &ca;
        async move {
            let token = token_of(ca, &format!("pod-{number}"));
            until_certified(&mut ca.client().await, &token).await;
        }
    });
    join_all(pods).await;
    let metrics = ca.monitoring.metrics();
    assert!(
        metrics.contains(&format!("bulkhead_ca_certificates_issued_total {PODS}")),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_asks_without_end_does_not_keep_the_others_from_their_certificates() {
    let ca = Ca::start().await;
    let greedy = token_of(&ca, "greedy");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..GREEDY_CALLS {
        let mut client = ca.client().await;
        let token = greedy.clone();
        // It never waits, whatever it is told.
        tasks.spawn(async move {
            loop {
                if let Err(status) = client.call(Some(&token), request(None).1).await {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                }
            }
        });
    }
    for number in 0..20 {
        let token = token_of(&ca, &format!("pod-{number}"));
        let answer = ca.call(Some(&token), request(None).1).await;
        answer.expect("somebody who asks once is never told to come again");
    }
    tasks.shutdown().await;
}
