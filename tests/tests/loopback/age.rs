//! Connections that have become as old as they may.

use std::time::Duration;

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps::{self, App};
use http::Request;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::pair::Pair;

/// A pair of whose server's proxy no connection may become older than that.
async fn pair(age: Duration) -> (Pair, App) {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start_with(app.address, |server| {
        server.mode = MtlsMode::Permissive;
        server.max_connection_age = Some(age);
    });
    (pair.await, app)
}

#[tokio::test]
async fn the_request_on_an_old_connection_is_answered_and_its_client_told_to_make_another() {
    let (pair, _app) = pair(Duration::ZERO).await;
    let mut stream = TcpStream::connect(pair.server_port()).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(!answer.contains("bulkhead-draining"), "{answer}");
}

#[tokio::test]
async fn an_http2_connection_that_has_become_old_ends_and_no_stream_is_lost() {
    let (pair, _app) = pair(Duration::from_millis(50)).await;
    let stream = TcpStream::connect(pair.server_port()).await.unwrap();
    let io = TokioIo::new(stream);
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = connected.unwrap();
    let connection = tokio::spawn(connection);
    while sender.ready().await.is_ok() {
        let request = Request::get("http://cart/").body(Empty::<Bytes>::new());
        match sender.try_send_request(request.unwrap()).await {
            Ok(answer) => assert_eq!(answer.status(), 200),
            Err(error) => assert!(error.message().is_some(), "sent and lost: {error:?}"),
        }
    }
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn no_request_through_a_peers_proxy_is_lost_to_the_age_of_its_connections() {
    let (pair, app) = pair(Duration::from_millis(20)).await;
    let mut client = apps::Client::connect(pair.dial()).await.unwrap();
    let mut sent = 0;
    while app.seen() < 200 {
        sent += 1;
        let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(app.seen(), sent);
}
