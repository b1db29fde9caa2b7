//! HTTP as it is in the wild, through both proxies.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_tests::apps::{self, App};
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::pair::{Pair, metric_becomes};

/// An application that reads until `until`, answers with exactly these bytes,
/// and closes where `close` says so.
async fn scripted(until: &'static [u8], answer: &'static [u8], close: bool) -> App {
    apps::serve(move |mut stream, requests| async move {
        let mut read = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(count) => read.extend_from_slice(&piece[..count]),
            }
            while let Some(end) = find(&read, until) {
                read.drain(..end);
                requests.fetch_add(1, Ordering::Relaxed);
                if stream.write_all(answer).await.is_err() || close {
                    return;
                }
            }
        }
    })
    .await
    .unwrap()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let at = bytes
        .windows(wanted.len())
        .position(|window| window == wanted)?;
    Some(at + wanted.len())
}

async fn talk(address: SocketAddr, bytes: &[u8]) -> String {
    let answer = apps::talk(address, bytes)
        .await
        .unwrap()
        .unwrap_or_default();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_connection_carries_many_requests_and_bodies_of_any_size() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut client = apps::Client::connect(pair.dial()).await.unwrap();
    for size in [0, 1, 100, 16_000, 17_000, 1_000_000] {
        let body = Bytes::from(vec![b'x'; size]);
        let answer = client.send("POST", "/upload", body).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body.len(), "HTTP/1.1 POST /upload\n".len() + size);
    }
    metric_becomes(
        &pair.client,
        "istio_requests_total",
        &["reporter=\"source\"", "response_code=\"200\""],
        6.0,
    )
    .await;
}

#[tokio::test]
async fn http2_streams_pass_with_their_trailers() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = apps::get_http2(pair.dial(), "/two").await.unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "HTTP/2.0 GET /two\n")
    );
}

#[tokio::test]
async fn an_old_client_is_served_and_its_connection_closed() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = talk(pair.dial(), b"GET /old HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("HTTP/1.0 GET /old\n"), "{answer}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let requests = "GET /1 HTTP/1.1\r\nhost: x\r\n\r\n\
                    POST /2 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi\
                    GET /3 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = talk(pair.dial(), requests.as_bytes()).await;
    let paths: Vec<_> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("HTTP/1.1 "))
        .filter(|line| line.contains('/'))
        .collect();
    assert_eq!(paths, ["GET /1", "POST /2", "GET /3"], "{answer}");
}

#[tokio::test]
async fn chunked_bodies_and_trailers_pass_as_they_are() {
    let body = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                5;ext=1\r\nhello\r\n0\r\nX-Trailer: yes\r\n\r\n";
    let app = scripted(b"0\r\n\r\n", body.as_bytes(), false).await;
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let request = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\
                   connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let answer = talk(pair.dial(), request.as_bytes()).await;
    assert!(
        answer.contains("5;ext=1\r\nhello\r\n0\r\nX-Trailer: yes\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let app = apps::serve(|mut stream, _| async move {
        let mut head = [0; 1024];
        let count = stream.read(&mut head).await.unwrap();
        assert!(
            head[..count].ends_with(b"\r\n\r\n"),
            "the body must not have come yet"
        );
        stream
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            .await
            .unwrap();
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
            .await
            .unwrap();
        stream.write_all(&body).await.unwrap();
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut stream = TcpStream::connect(pair.dial()).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_request_behind_a_body_that_was_waited_for_is_whole() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut stream = TcpStream::connect(pair.dial()).await.unwrap();
    stream
        .write_all(
            b"POST /1 HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
        )
        .await
        .unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    stream
        .write_all(b"helloGET /2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert!(
        answers.contains("POST /1\nhello") && answers.contains("GET /2\n"),
        "{answers}"
    );
}

#[tokio::test]
async fn a_client_that_is_answered_before_its_body_learns_that_its_connection_ends() {
    let answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n";
    let app = scripted(b"\r\n\r\n", answer, false).await;
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    for address in [pair.dial(), pair.server_port()] {
        let request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n";
        let answer = talk(address, request).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn an_upload_that_a_server_lets_down_is_answered_and_not_sent_twice() {
    let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let app = apps::serve(move |mut stream, _| {
        let heads = heads.clone();
        async move {
            let mut read = [0; 1024];
            let _ = stream.read(&mut read).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer).await;
            // The second request: its head, its body, and no answer.
            let _ = stream.read(&mut read).await;
            heads.send(()).unwrap();
            let _ = stream.read(&mut read).await;
        }
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    let mut stream = TcpStream::connect(pair.server_port()).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 38];
    stream.read_exact(&mut answer).await.unwrap();
    stream
        .write_all(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
        .await
        .unwrap();
    seen.recv().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.contains("bulkhead-reason: upstream_closed"),
        "{answer}"
    );
    assert!(seen.try_recv().is_err(), "it went to no other connection");
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let app = apps::serve(|mut stream, _| async move {
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let request = "GET /chat HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n\
                   \u{1}sent at once";
    let answer = {
        let mut stream = TcpStream::connect(pair.dial()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(b", and later").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.ends_with("\u{1}sent at once, and later"), "{answer}");
}

#[tokio::test]
async fn a_response_without_a_length_ends_with_its_connection() {
    let app = scripted(b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nuntil the end", true).await;
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = talk(pair.dial(), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.ends_with("until the end"), "{answer}");
}

#[tokio::test]
async fn a_response_to_head_has_no_body_whatever_it_says() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
    let app = scripted(b"\r\n\r\n", answer, false).await;
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let requests = "HEAD /1 HTTP/1.1\r\nhost: x\r\n\r\n\
                    HEAD /2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answers = talk(pair.dial(), requests.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

#[tokio::test]
async fn a_server_that_closes_idle_connections_costs_no_get() {
    // It closes after each response without saying so.
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let app = scripted(b"\r\n\r\n", answer, true).await;
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut client = apps::Client::connect(pair.dial()).await.unwrap();
    for _ in 0..20 {
        let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    }
    assert_eq!(
        app.seen(),
        20,
        "no request was sent twice to a server that answered"
    );
}

#[tokio::test]
async fn a_request_that_could_be_read_twice_is_refused_before_the_server_sees_it() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    for request in [
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "GET / HTTP/1.1\nhost: x\n\n",
        "GET / HTTP/1.1\r\nhost: x\r\na : b\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let answer = talk(pair.dial(), request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{request:?}: {answer}"
        );
        assert!(
            answer.contains("bulkhead-reason: request_malformed"),
            "{answer}"
        );
    }
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn what_is_no_http_is_refused_where_the_port_is_said_to_speak_it() {
    let app = apps::echo_http().await.unwrap();
    let port = app.address.port();
    let pair = Pair::start_with(app.address, |server| {
        server.mode = MtlsMode::Permissive;
        server.port_protocols.insert(port, Protocol::Http1);
    })
    .await;
    let client = pair.client_of(Protocol::Http1).await;
    for address in [client.addresses.outbound[0], pair.server_port()] {
        for request in ["GET /\r\n\r\n", "GET / HTTP/1.2\r\nhost: x\r\n\r\n"] {
            let answer = talk(address, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        }
        let mut client = apps::Client::connect(address).await.unwrap();
        let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    assert_eq!(app.seen(), 2, "those that are HTTP");
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_refused_with_431() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let fits = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\na: {}\r\n\r\n",
        "b".repeat(60_000)
    );
    let answer = talk(pair.dial(), fits.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK"),
        "60 kB of headers are within the limit"
    );
    let exceeds = format!(
        "GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n",
        "b".repeat(70_000)
    );
    let answer = talk(pair.dial(), exceeds.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn a_response_that_cannot_be_read_is_a_502_with_its_reason() {
    for answer in [
        &b"HTTP/1.1 banana\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nbanana\r\n",
    ] {
        let app = scripted(b"\r\n\r\n", answer, true).await;
        let pair = Pair::start(app.address, MtlsMode::Strict).await;
        let answer = apps::get(pair.dial(), "/").await.unwrap();
        assert_eq!(
            (answer.status, answer.reason()),
            (502, Some("response_malformed"))
        );
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_broken_off_for_the_client_too() {
    let app = scripted(
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        true,
    )
    .await;
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = apps::get(pair.dial(), "/").await;
    assert!(
        answer.is_err(),
        "half a response must not look like a whole one: {answer:?}"
    );
    for proxy in [&pair.client, &pair.server] {
        let by_the_server = ["response_flags=\"UC\""];
        metric_becomes(proxy, "istio_requests_total", &by_the_server, 1.0).await;
    }
}
