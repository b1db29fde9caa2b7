//! STRICT, PERMISSIVE and DISABLE, for clients with a sidecar and without.

use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_tests::apps;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::pair::{Pair, metric_becomes};

#[tokio::test]
async fn a_request_between_two_workloads_is_mutual_tls_with_both_identities() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = apps::get(pair.dial(), "/cart").await.unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "HTTP/1.1 GET /cart\n")
    );
    metric_becomes(
        &pair.server,
        "istio_requests_total",
        &[
            "source_principal=\"spiffe://cluster.local/ns/web/sa/front\"",
            "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
            "connection_security_policy=\"mutual_tls\"",
            "response_code=\"200\"",
        ],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn strict_refuses_plaintext_http_in_words_and_names_the_rule() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = apps::get(pair.server_port(), "/").await.unwrap();
    assert_eq!(answer.status, 403);
    assert_eq!(answer.reason(), Some("plaintext_refused"));
    assert!(
        answer.body.contains("bulkhead.io/mtls-mode"),
        "{}",
        answer.body
    );
    assert_eq!(app.seen(), 0, "the application must not have been asked");
}

#[tokio::test]
async fn strict_refuses_plaintext_http2_in_words_too() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = apps::get_http2(pair.server_port(), "/").await.unwrap();
    assert_eq!(answer.status, 403);
    assert_eq!(answer.reason(), Some("plaintext_refused"));
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn strict_resets_what_it_cannot_answer() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = apps::talk(pair.server_port(), b"*1\r\n$4\r\nPING\r\n")
        .await
        .unwrap();
    assert_eq!(answer, None, "a Redis client gets a reset");
    metric_becomes(
        &pair.server,
        "bulkhead_refusals_total",
        &["plaintext_refused"],
        1.0,
    )
    .await;
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn permissive_serves_plaintext_and_counts_who_sent_it() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    let plain = apps::get(pair.server_port(), "/plain").await.unwrap();
    assert_eq!(
        (plain.status, plain.body.as_str()),
        (200, "HTTP/1.1 GET /plain\n")
    );
    assert_eq!(apps::get(pair.dial(), "/").await.unwrap().status, 200);
    metric_becomes(
        &pair.server,
        "bulkhead_plaintext_connections_total",
        &["source_address=\"127.0.0.1\""],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn permissive_takes_a_client_that_is_slow_to_speak_for_what_it_is() {
    let (connections, mut connected) = mpsc::unbounded_channel();
    let app = apps::serve(move |mut stream, _| {
        connections.send(()).unwrap();
        async move {
            if stream.read(&mut [0; 1024]).await.unwrap() > 0 {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow";
                stream.write_all(answer).await.unwrap();
            }
        }
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    let credentials = pair.client.latest.clone().first().await.unwrap();
    let server = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
    let config = credentials.client_config(&server, Protocol::Http1).unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);

    for security in ["none", "mutual_tls"] {
        let stream = TcpStream::connect(pair.server_port()).await.unwrap();
        // The proxy no longer waits for the client alone.
        connected.recv().await.unwrap();
        let answer = match security {
            "none" => ask(stream).await,
            _ => {
                let name = "127.0.0.1".try_into().unwrap();
                ask(connector.connect(name, stream).await.unwrap()).await
            }
        };
        assert!(answer.ends_with("slow"), "{security}: {answer}");
        connected.recv().await.unwrap();
        let label = format!("connection_security_policy=\"{security}\"");
        metric_becomes(&pair.server, "istio_requests_total", &[&label], 1.0).await;
    }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn disable_takes_plaintext_only() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Disable).await;
    assert_eq!(
        apps::get(pair.server_port(), "/").await.unwrap().status,
        200
    );
    let refused = apps::get(pair.dial(), "/").await.unwrap();
    assert_eq!(refused.status, 503);
    metric_becomes(
        &pair.server,
        "bulkhead_refusals_total",
        &["mtls_disabled"],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn a_port_may_be_strict_in_a_permissive_workload() {
    let app = apps::echo_http().await.unwrap();
    let port = app.address.port();
    let pair = Pair::start_with(app.address, |server| {
        server.mode = MtlsMode::Permissive;
        server.port_modes.insert(port, MtlsMode::Strict);
    })
    .await;
    assert_eq!(
        apps::get(pair.server_port(), "/").await.unwrap().status,
        403
    );
    assert_eq!(apps::get(pair.dial(), "/").await.unwrap().status, 200);
}
