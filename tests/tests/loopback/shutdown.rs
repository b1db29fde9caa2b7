//! Stopping a proxy without losing anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bulkhead::mesh;
use bulkhead_core::policy::MtlsMode;
use bulkhead_runtime::drain::Outcome;
use bulkhead_tests::apps::{self, Client};
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::pair::Pair;

#[tokio::test]
async fn a_request_in_hand_is_finished_and_its_connection_closed() {
    let asked = Arc::new(Notify::new());
    let answer_now = Arc::new(Notify::new());
    let (app_asked, app_answer) = (Arc::clone(&asked), Arc::clone(&answer_now));
    let app = apps::serve(move |mut stream, _| {
        let (asked, answer_now) = (Arc::clone(&app_asked), Arc::clone(&app_answer));
        async move {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            asked.notify_one();
            answer_now.notified().await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
                .await;
        }
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    let port = pair.server_port();
    let readiness = pair.server.monitoring.readiness.clone();
    let mut stream = TcpStream::connect(port).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    asked.notified().await;
    let draining = tokio::spawn(pair.server.drain());
    while readiness.missing() != ["not draining"] {
        tokio::task::yield_now().await;
    }
    answer_now.notify_one();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("late"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.contains("bulkhead-draining: true\r\n"), "{answer}");
    assert_eq!(draining.await.unwrap(), Outcome::Finished);
}

#[tokio::test]
async fn whoever_has_not_heard_of_a_drain_is_served_and_its_connection_closed() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start_with(app.address, |server| {
        server.drain_quiet = Duration::from_secs(5);
    })
    .await;
    let (port, dial) = (pair.server_port(), pair.dial());
    apps::get(port, "/").await.unwrap();
    let readiness = pair.server.monitoring.readiness.clone();
    let draining = tokio::spawn(pair.server.drain());
    while readiness.missing() != ["not draining"] {
        tokio::task::yield_now().await;
    }
    let late = apps::get(port, "/").await.unwrap();
    assert_eq!(
        (late.status, &late.headers["connection"]),
        (200, &"close".parse().unwrap())
    );
    let through_both = apps::get(dial, "/").await.unwrap();
    assert_eq!(through_both.status, 200);
    let told = ["connection", "bulkhead-draining"].map(|name| through_both.headers.get(name));
    assert_eq!(told, [None, None], "the client's own proxy stays");
    assert_eq!(apps::get_http2(port, "/").await.unwrap().status, 200);
    assert_eq!(draining.await.unwrap(), Outcome::Finished);
}

#[tokio::test]
async fn a_port_is_closed_at_once_when_the_application_has_gone_before() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    let port = pair.server_port();
    drop(app);
    assert_eq!(apps::get(port, "/").await.unwrap().status, 503);
    let began = std::time::Instant::now();
    let draining = tokio::spawn(pair.server.drain());
    // Somebody comes all the time, and would be waited for for a third of the drain.
    while TcpStream::connect(port).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let took = began.elapsed();
    let longest = Duration::from_secs(10);
    assert!(
        took < longest,
        "it took {took:?}, as if somebody could be served"
    );
    assert_eq!(draining.await.unwrap(), Outcome::Finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_endpoints_stops_under_load_and_no_request_fails() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut config = pair.mesh.workload("shop", "cart").unwrap();
    config.inbound = vec![mesh::inbound(app.address)];
    config.mode = MtlsMode::Strict;
    let second = pair.mesh.proxy(config).await.unwrap();
    let mut config = pair.mesh.workload("web", "other-front").unwrap();
    let endpoints = [pair.server_port(), second.addresses.inbound[0]];
    config.outbound = vec![mesh::upstream(&pair.mesh, "shop", "cart", &endpoints).unwrap()];
    let client = pair.mesh.proxy(config).await.unwrap();
    let address = client.addresses.outbound[0];

    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let mut client = Client::connect(address).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let reached = async |count| {
        while done.load(Ordering::Relaxed) < count {
            assert!(
                load.iter().all(|task| !task.is_finished()),
                "a request failed"
            );
            tokio::task::yield_now().await;
        }
    };
    reached(200).await;
    assert_eq!(pair.server.drain().await, Outcome::Finished);
    let before = done.load(Ordering::Relaxed);
    reached(before + 200).await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_drain_that_nobody_waits_for_ends_at_its_deadline() {
    let app = apps::server_first(b"hello").await.unwrap();
    let pair = Pair::start_with(app.address, |server| {
        server.drain_duration = Duration::from_millis(200);
    })
    .await;
    let mut stream = TcpStream::connect(pair.server_port()).await.unwrap();
    stream.write_all(b"\x01").await.unwrap();
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(pair.server.drain().await, Outcome::DeadlinePassed);
    let ended = stream.read(&mut greeting).await;
    assert!(
        !matches!(ended, Ok(count) if count > 1),
        "the connection is cut: {ended:?}"
    );
}
