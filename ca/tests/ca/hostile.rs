//! Bytes that no client sends. Whatever arrives, the next caller is served.

use std::time::Duration;

use bulkhead_pki::serving;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;

use crate::support::{Ca, SERVER_NAME, request, token_for_cart, wanting};

async fn tls(ca: &Ca) -> TlsStream<TcpStream> {
    let config = serving::client_config(ca.app.trust_bundle().roots(), ["h2"]).unwrap();
    let stream = TcpStream::connect(ca.app.address()).await.unwrap();
    TlsConnector::from(config)
        .connect(SERVER_NAME.try_into().unwrap(), stream)
        .await
        .unwrap()
}

async fn assert_serves(ca: &Ca) {
    let token = ca.token(&token_for_cart());
    ca.call(Some(&token), request(None).1).await.unwrap();
}

/// Reads until the server closes, which it must do by itself.
async fn assert_closes(mut stream: impl AsyncReadExt + Unpin) {
    let mut sink = Vec::new();
    let read = stream.read_to_end(&mut sink);
    // An error is a close too: a reset.
    let _ = tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("the server closes");
}

#[tokio::test]
async fn what_is_not_tls_is_closed() {
    let ca = Ca::start().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 4096],
        &[0xff; 4096],
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let mut stream = TcpStream::connect(ca.app.address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_closes(stream).await;
    }
    assert_serves(&ca).await;
}

#[tokio::test]
async fn what_is_not_http2_inside_tls_is_closed() {
    let ca = Ca::start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut huge_frame = preface.to_vec();
    huge_frame.extend([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
    let mut odd_frames = preface.to_vec();
    for kind in 0..=255 {
        odd_frames.extend([0, 0, 1, kind, 0xff, 0, 0, 0, 0, 0x55]);
    }
    for bytes in [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        vec![0; 9000],
        huge_frame,
        odd_frames,
    ] {
        let mut stream = tls(&ca).await;
        // The server may close before everything is written.
        let _ = stream.write_all(&bytes).await;
        assert_closes(stream).await;
    }
    assert_serves(&ca).await;
}

#[tokio::test]
async fn connections_that_are_cut_anywhere_leave_nothing_behind() {
    let ca = Ca::start().await;
    for _ in 0..20 {
        drop(TcpStream::connect(ca.app.address()).await.unwrap());
        drop(tls(&ca).await);
        drop(ca.client().await);
    }
    assert_serves(&ca).await;
    let closed = async {
        let open = |metrics: String| !metrics.contains("bulkhead_ca_connections 0");
        while open(ca.monitoring.metrics()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_and_the_connection_lives_on() {
    let ca = Ca::start().await;
    let token = ca.token(&token_for_cart());
    let mut client = ca.client().await;
    for length in [40_000, 5_000_000] {
        let status = client
            .call(Some(&token), wanting("x".repeat(length)))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    }
    client.call(Some(&token), request(None).1).await.unwrap();
}

#[tokio::test]
async fn another_method_of_another_service_is_unimplemented() {
    let ca = Ca::start().await;
    let stream = tls(&ca).await;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    let request = hyper::Request::post("https://ca.test/grpc.reflection.v1/List")
        .header("content-type", "application/grpc")
        .body(String::new())
        .unwrap();
    let response = tokio::select! {
        response = sender.send_request(request) => response.unwrap(),
        _ = connection => panic!("the connection ended"),
    };
    let unimplemented = (Code::Unimplemented as i32).to_string();
    assert_eq!(response.headers()["grpc-status"], unimplemented.as_str());
}
