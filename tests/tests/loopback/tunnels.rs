//! What a connection becomes after CONNECT, and what may come before a response.

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps::{self, App};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::pair::{Pair, metric_becomes};

const CONNECT: &[u8] = b"CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n";

/// Reads a head, and not a byte more.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A forward proxy, which answers CONNECT, with these bytes, and then echoes.
async fn connects(answer: &'static [u8]) -> App {
    let app = apps::serve(move |mut stream, _| async move {
        let asked = head(&mut stream).await;
        assert!(asked.as_bytes().starts_with(CONNECT), "{asked}");
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    app.await.unwrap()
}

#[tokio::test]
async fn a_connection_is_a_tunnel_once_connect_is_granted_whatever_its_head_says() {
    // A length, or chunks, mean nothing there (RFC 9110, 9.3.6).
    for answer in [
        &b"HTTP/1.1 200 Connection Established\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ] {
        let app = connects(answer).await;
        let pair = Pair::start(app.address, MtlsMode::Permissive).await;
        for address in [pair.dial(), pair.server_port()] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(CONNECT).await.unwrap();
            let granted = head(&mut stream).await;
            assert!(granted.starts_with("HTTP/1.1 20"), "{granted}");
            assert!(!granted.contains("connection: close"), "{granted}");
            // What looks like HTTP is none, and is carried as it is.
            let said = b"GET / HTTP/1.1\r\nhost : two readings\r\n\r\n\0";
            stream.write_all(said).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut came = Vec::new();
            stream.read_to_end(&mut came).await.unwrap();
            assert_eq!(came, said);
        }
    }
}

#[tokio::test]
async fn what_is_sent_with_connect_is_carried_once_it_is_granted() {
    let app = connects(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut stream = TcpStream::connect(pair.dial()).await.unwrap();
    stream
        .write_all(&[CONNECT, b"\x16\x03\x01, and later"].concat())
        .await
        .unwrap();
    head(&mut stream).await;
    let mut came = [0; 14];
    stream.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, b"\x16\x03\x01, and later");
}

#[tokio::test]
async fn a_connection_on_which_connect_was_refused_still_speaks_http() {
    let app = apps::serve(|mut stream, _| async move {
        head(&mut stream).await;
        let refused = b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 2\r\n\r\nno";
        stream.write_all(refused).await.unwrap();
        let next = head(&mut stream).await;
        assert!(next.starts_with("GET /next "), "{next}");
        let answered = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes";
        stream.write_all(answered).await.unwrap();
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut stream = TcpStream::connect(pair.dial()).await.unwrap();
    stream.write_all(CONNECT).await.unwrap();
    let refused = head(&mut stream).await;
    assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
    let mut body = [0; 2];
    stream.read_exact(&mut body).await.unwrap();
    stream
        .write_all(b"GET /next HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("yes"), "{answer}");
}

#[tokio::test]
async fn interim_responses_pass_in_their_order_until_there_are_too_many() {
    const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n";
    const DONE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    let app = apps::serve(|mut stream, _| async move {
        let asked = head(&mut stream).await;
        if asked.starts_with("GET /some ") {
            let answer = [HINT, HINT, DONE].concat();
            stream.write_all(&answer).await.unwrap();
        } else {
            while stream.write_all(HINT).await.is_ok() {}
        }
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let ask = async |path| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(pair.dial()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut came = Vec::new();
        let ended = stream.read_to_end(&mut came).await;
        (came, ended)
    };
    let (came, ended) = ask("/some").await;
    ended.unwrap();
    assert_eq!(came, [HINT, HINT, DONE].concat());
    let (came, ended) = ask("/endless").await;
    assert!(ended.is_err(), "nothing may look like a whole response");
    assert!(came.len() <= 64 << 10, "{}", came.len());
    let cut = ["response_code=\"0\"", "reporter=\"destination\""];
    metric_becomes(&pair.server, "istio_requests_total", &cut, 1.0).await;
}
