//! Protocols that are not HTTP, carried as they are.

use std::sync::Arc;

use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving::{self, ServerName, ServingAuthority};
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::apps;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::pair::{Pair, metric_becomes};

const GREETING: &[u8] = b"220 mail.example.com ready\r\n";

async fn greeted(address: std::net::SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(greeting, GREETING);
    stream.write_all(b"EHLO\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"EHLO\r\n", "a half-closed connection still receives");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_through_mutual_tls_and_without() {
    let app = apps::server_first(GREETING).await.unwrap();
    for mode in [MtlsMode::Permissive, MtlsMode::Strict] {
        let pair = Pair::start(app.address, mode).await;
        greeted(pair.dial()).await;
        if mode == MtlsMode::Permissive {
            greeted(pair.server_port()).await;
        }
        metric_becomes(&pair.client, "istio_tcp_connections_closed_total", &[], 1.0).await;
    }
}

#[tokio::test]
async fn a_port_that_is_named_opaque_is_not_looked_at() {
    let app = apps::server_first(GREETING).await.unwrap();
    let port = app.address.port();
    let pair = Pair::start_with(app.address, |server| {
        server.mode = MtlsMode::Permissive;
        server.port_protocols.insert(port, Protocol::Opaque);
    })
    .await;
    greeted(pair.dial()).await;
    // HTTP, and bad HTTP at that, is bytes like any other.
    let mut stream = TcpStream::connect(pair.server_port()).await.unwrap();
    let request = b"GET / HTTP/1.1\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, [GREETING, request].concat());
    metric_becomes(
        &pair.server,
        "istio_tcp_received_bytes_total",
        &["connection_security_policy=\"none\""],
        18.0,
    )
    .await;
}

#[tokio::test]
async fn megabytes_pass_both_ways_unchanged() {
    let app = apps::server_first(b"").await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|index| (index % 251) as u8)
        .collect();
    let stream = TcpStream::connect(pair.dial()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let copy = sent.clone();
    let sending = tokio::spawn(async move {
        // Not HTTP by its first byte.
        write.write_all(&copy).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    sending.await.unwrap();
    assert!(
        received == sent,
        "{} of {} bytes",
        received.len(),
        sent.len()
    );
}

#[tokio::test]
async fn an_applications_own_tls_passes_untouched_under_permissive() {
    let clock = Clock::system();
    let lifetime = std::time::Duration::from_secs(3600);
    let authority = ServingAuthority::new("the application's own", lifetime, clock.now()).unwrap();
    let name = [ServerName::parse("app.example.com").unwrap()];
    let certificate = authority.issue(&name, lifetime, clock.now()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(certificate.server_config([]).unwrap());
    let app = apps::serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.write_all(b"it is I").await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;

    let roots = Roots::new([authority.certificate().clone()]).unwrap();
    let config = serving::client_config(&roots, []).unwrap();
    // Directly, and inside mesh TLS.
    for address in [pair.server_port(), pair.dial()] {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = "app.example.com".try_into().unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::clone(&config))
            .connect(name, stream)
            .await
            .unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(shown, *certificate.leaf().der(), "the application's own");
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "it is I");
    }
}
