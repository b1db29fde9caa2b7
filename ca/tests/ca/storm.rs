//! Everybody at once, and one who wants more than everybody.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_ca::app::Dependencies;
use bulkhead_ca::authenticate::Pod;
use bulkhead_ca::authenticate::local_issuer::TokenRequest;
use bulkhead_ca::config::Authentication;
use bulkhead_ca::limits::Limits;
use bulkhead_proto::ca::CertificateRequest;
use bulkhead_proto::retry;
use bulkhead_runtime::backoff::{Backoff, jitter};
use futures::future::join_all;
use tonic::{Code, Status};

use crate::reviewer::Reviewer;
use crate::support::{Ca, Client, metric, request, token_for_cart, until};

const PODS: usize = 100;

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

/// A CA whose API server judges tokens when the test lets it.
async fn ca_with(reviewer: &Reviewer, limits: Limits) -> Ca {
    let given = Dependencies {
        kube: Some(reviewer.client()),
        limits,
        ..Dependencies::default()
    };
    let change = |config: &mut bulkhead_ca::config::Config| {
        config.authentication = Authentication::kubernetes();
        config.review_cache = Duration::ZERO;
    };
    Ca::start_given(change, given).await
}

/// Limits of time that no busy machine reaches.
fn patient() -> Limits {
    Limits {
        review: 10 * MINUTE,
        call_patience: 10 * MINUTE,
        call: 10 * MINUTE,
        stranger: 10 * MINUTE,
        ..Limits::default()
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// When the CA told a call to come again.
fn told(status: &Status) -> Duration {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let delay = retry::delay(status).expect("the CA says when to come again");
    let bounds = SECOND..=MINUTE;
    assert!(bounds.contains(&delay), "{delay:?}");
    delay
}

/// Does what a workload does that has no certificate: comes again when it is
/// told to, and where there was no connection, after a while that grows.
async fn until_certified(ca: &Ca, from: Ipv4Addr, token: &str) {
    let mut backoff = Backoff::new(Duration::from_millis(500), MINUTE);
    loop {
        let wait = match ca.try_client(from).await {
            Ok(mut client) => match client.call(Some(token), request(None).1).await {
                Ok(_) => return,
                Err(status) if status.code() == Code::ResourceExhausted => told(&status),
                // The connection was closed for another's sake, or too much waits.
                Err(status) if status.code() == Code::Unavailable => {
                    backoff.after_failure(jitter())
                }
                Err(status) => panic!("{status:?}"),
            },
            Err(_) => backoff.after_failure(jitter()),
        };
        tokio::time::sleep(wait).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_all_start_at_once_are_all_certified_where_there_is_room_for_few() {
    let limits = Limits {
        connections_waiting: 16,
        strangers: 16,
        guests: 16,
        leaving: 4,
        calls_waiting: 8,
        ..patient()
    };
    let given = Dependencies {
        limits,
        ..Dependencies::default()
    };
    let ca = Ca::start_given(|_| {}, given).await;
    let pods = (0..PODS).map(|number| {
        let ca = &ca;
        let node = u8::try_from(number % 10).unwrap();
        let token = token_of(ca, &format!("pod-{number}"));
        async move { until_certified(ca, Ipv4Addr::new(127, 0, 1, node + 1), &token).await }
    });
    join_all(pods).await;
    assert!(metric(&ca, "bulkhead_ca_certificates_issued_total") >= PODS);
    let refused = metric(&ca, "bulkhead_ca_connections_refused_total");
    assert!(refused > 0, "there was room for everybody");
}

#[tokio::test]
async fn whoever_finds_no_room_is_told_when_to_come_again_and_has_it_then() {
    const WAITING: usize = 8;
    // Of the reviews that there may be, one address has no more than half.
    const REVIEWED: usize = bulkhead_ca::admission::REMOTE / 2;
    const TOO_MANY: usize = 4;
    let reviewer = Reviewer::closed();
    let limits = Limits {
        calls_waiting: WAITING,
        ..patient()
    };
    let ca = ca_with(&reviewer, limits).await;
    let clients = [ca.client().await, ca.client().await];
    let wanted = request(None).1;
    let calls = (0..REVIEWED + WAITING + TOO_MANY).map(|number| {
        let (mut client, wanted) = (clients[number % 2].clone(), wanted.clone());
        async move { client.call(Some(&format!("pod-{number}")), wanted).await }
    });
    let refused = until(|| metric(&ca, "bulkhead_ca_requests_refused_total") == TOO_MANY);
    let open_then = async {
        refused.await;
        reviewer.open();
    };
    let (answers, ()) = tokio::join!(join_all(calls), open_then);
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    // As many as the second line has no room for come to it later.
    assert!(refused.len() >= TOO_MANY, "{}", refused.len());
    for status in &refused {
        told(status);
    }
    for status in &refused[..TOO_MANY] {
        let mut client = clients[0].clone();
        tokio::time::sleep(told(status)).await;
        client.call(Some("again"), wanted.clone()).await.unwrap();
    }
}

/// Answers in the order in which they came.
type Order = Arc<Mutex<Vec<&'static str>>>;

async fn call(mut client: Client, token: &'static str, wanted: CertificateRequest, order: Order) {
    client.call(Some(token), wanted).await.unwrap();
    order.lock().unwrap().push(token);
}

#[tokio::test]
async fn one_who_asks_without_end_does_not_keep_the_others_from_their_certificates() {
    const GREEDY: usize = 96;
    const OTHERS: [&str; 5] = ["a", "b", "c", "d", "e"];
    let reviewer = Reviewer::closed();
    let limits = Limits {
        calls_waiting_of_one: GREEDY,
        ..patient()
    };
    let ca = ca_with(&reviewer, limits).await;
    let (wanted, order) = (request(None).1, Order::default());
    let mut calls = Vec::new();
    let greedy = Ipv4Addr::new(127, 0, 0, 66);
    for _ in 0..GREEDY / 32 {
        let client = ca.try_client(greedy).await.unwrap();
        for _ in 0..32 {
            let order = Arc::clone(&order);
            calls.push(tokio::spawn(call(
                client.clone(),
                "greedy",
                wanted.clone(),
                order,
            )));
        }
    }
    // Of the turns that there are it has half, and the rest of its calls wait.
    let in_line = || metric(&ca, "bulkhead_ca_queue_waiting{queue=\"authentication\"}");
    until(|| in_line() == GREEDY - bulkhead_ca::admission::REMOTE / 2).await;
    for (number, token) in OTHERS.into_iter().enumerate() {
        let address = Ipv4Addr::new(127, 0, 2, u8::try_from(number).unwrap() + 1);
        let client = ca.try_client(address).await.unwrap();
        let order = Arc::clone(&order);
        calls.push(tokio::spawn(call(client, token, wanted.clone(), order)));
    }
    // In a line in which whoever comes first goes first, none of them would be
    // asked about before the greedy one's calls are over.
    until(|| OTHERS.iter().all(|other| reviewer.was_asked(other))).await;
    reviewer.open();
    for call in calls {
        call.await.unwrap();
    }
    let order = order.lock().unwrap();
    let last = |wanted: &dyn Fn(&str) -> bool| order.iter().rposition(|token| wanted(token));
    let last_other = last(&|token| token != "greedy").unwrap();
    assert!(last_other < GREEDY / 2, "{order:?}");
}
