//! An application behind Envoy calls one behind our proxy.

use std::net::SocketAddr;
use std::sync::Arc;

use bulkhead::mesh::{self, Mesh};
use bulkhead_core::policy::MtlsMode;
use bulkhead_pki::bundle::TrustBundle;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::svid::SvidChain;
use bulkhead_proxy::app::Proxy;
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::envoy::Envoy;
use bulkhead_tests::envoy::sidecar::{
    HTTP1, HTTP2, Sidecar, TCP, UPSTREAM_PEER, UPSTREAM_TLS_VERSION,
};
use bulkhead_tests::{apps, metrics};
use hyper::body::Bytes;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::apps::{calls_grpc, converse, grpc};
use crate::certificate::CertificateFiles;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const LEDGER: &str = "spiffe://cluster.local/ns/shop/sa/ledger";

const STRICT: MtlsMode = MtlsMode::Strict;
const MODES: [MtlsMode; 2] = [MtlsMode::Strict, MtlsMode::Permissive];

/// Our proxy of `shop/cart`, in front of an application.
async fn cart(mesh: &Mesh, app: SocketAddr, mode: MtlsMode) -> Proxy {
    let mut config = mesh.workload("shop", "cart").unwrap();
    config.inbound = vec![mesh::inbound(app)];
    config.mode = mode;
    mesh.proxy(config).await.unwrap()
}

/// Envoy's certificate, for `web/front` of this mesh.
async fn front(mesh: &Mesh) -> CertificateFiles {
    CertificateFiles::issue(mesh, "web", "front").await.unwrap()
}

/// The Envoy of `web/front`, which expects `shop/cart` to be behind our proxy.
async fn envoy_towards(mesh: &Mesh, cart: &Proxy) -> Envoy {
    let certificate = front(mesh).await;
    let sidecar = Sidecar::new(certificate.files(), CART);
    sidecar.towards(cart.addresses.inbound[0]).await.unwrap()
}

/// Waits until the proxy has counted requests of `web/front` over mutual TLS.
async fn counts_requests(cart: &Proxy, expected: f64) {
    let labels = [
        "source_principal=\"spiffe://cluster.local/ns/web/sa/front\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
        "connection_security_policy=\"mutual_tls\"",
        "response_code=\"200\"",
    ];
    let name = "istio_requests_total";
    metrics::become_sum(&cart.monitoring, name, &labels, expected).await;
}

/// Waits until the proxy has refused this many handshakes.
async fn counts_refused_handshakes(cart: &Proxy, expected: f64) {
    let name = "bulkhead_refusals_total";
    let labels = ["reason=\"tls_handshake_failed\""];
    metrics::become_sum(&cart.monitoring, name, &labels, expected).await;
}

#[tokio::test]
async fn requests_arrive_with_both_identities_known_in_every_mode_that_takes_them() {
    let mesh = Mesh::start().await.unwrap();
    for mode in MODES {
        let app = apps::echo_http().await.unwrap();
        let cart = cart(&mesh, app.address, mode).await;
        let envoy = envoy_towards(&mesh, &cart).await;

        let http1 = envoy.listener(HTTP1).await.unwrap();
        let http2 = envoy.listener(HTTP2).await.unwrap();
        for (answer, body) in [
            (apps::get(http1, "/cart").await, "HTTP/1.1 GET /cart\n"),
            (
                apps::get_http2(http2, "/cart").await,
                "HTTP/2.0 GET /cart\n",
            ),
        ] {
            let answer = answer.unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, body), "{mode}");
            assert_eq!(answer.headers[UPSTREAM_PEER], CART);
            assert_eq!(answer.headers[UPSTREAM_TLS_VERSION], "TLSv1.3");
        }
        counts_requests(&cart, 2.0).await;
        let plaintext = "bulkhead_plaintext_connections_total";
        assert_eq!(metrics::sum(&cart.monitoring, plaintext, &[]), 0.0);
    }
}

#[tokio::test]
async fn a_body_of_a_mebibyte_arrives_and_comes_back() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = cart(&mesh, app.address, STRICT).await;
    let envoy = envoy_towards(&mesh, &cart).await;
    let mut client = apps::Client::connect(envoy.listener(HTTP1).await.unwrap())
        .await
        .unwrap();
    let body = "a line of a large body\n".repeat(50_000);
    for _ in 0..2 {
        let sent = Bytes::from(body.clone());
        let answer = client.send("POST", "/upload", sent).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.body.strip_prefix("HTTP/1.1 POST /upload\n"),
            Some(body.as_str())
        );
    }
}

#[tokio::test]
async fn grpc_arrives_with_its_trailers() {
    let mesh = Mesh::start().await.unwrap();
    let app = grpc().await.unwrap();
    let cart = cart(&mesh, app.address, STRICT).await;
    let envoy = envoy_towards(&mesh, &cart).await;
    calls_grpc(envoy.listener(HTTP2).await.unwrap())
        .await
        .unwrap();
    counts_requests(&cart, 2.0).await;
}

/// Istio's clients offer `istio-peer-exchange` first where they do not know the
/// protocol. Were it chosen, they would begin with bytes of their own.
#[tokio::test]
async fn bytes_of_a_protocol_where_the_server_speaks_first_arrive_unchanged() {
    let mesh = Mesh::start().await.unwrap();
    let greeting = b"220 mail.example.com ESMTP\r\n";
    let words = b"EHLO front\r\n".repeat(50_000);
    for mode in MODES {
        let app = apps::server_first(greeting).await.unwrap();
        let cart = cart(&mesh, app.address, mode).await;
        let envoy = envoy_towards(&mesh, &cart).await;
        let tcp = envoy.listener(TCP).await.unwrap();
        let echo = converse(tcp, greeting, &words).await.unwrap();
        assert!(echo == words, "{} bytes came back", echo.len());
        envoy.counts("cluster.tcp.ssl.handshake", 1).await.unwrap();
    }
}

#[tokio::test]
async fn a_name_that_promises_a_preamble_is_never_chosen() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = cart(&mesh, app.address, STRICT).await;
    let certificate = front(&mesh).await;
    let files = certificate.files();
    let read = |path| std::fs::read_to_string(path).unwrap();
    let identity = WorkloadIdentity::new(
        &certificate.id,
        &PrivateKey::from_pem(&read(files.key)).unwrap(),
        SvidChain::from_pem(&read(files.chain)).unwrap(),
        TrustBundle::from_pem(mesh.trust_domain().clone(), &read(files.roots)).unwrap(),
        Clock::system().now(),
    )
    .unwrap();
    let address = cart.addresses.inbound[0];
    for (offers, chosen) in [
        (["istio-peer-exchange", "istio"].as_slice(), "istio"),
        (&["istio-http/1.1", "istio", "http/1.1"], "istio-http/1.1"),
        (&["istio-h2", "istio", "h2"], "istio-h2"),
    ] {
        let server = CART.parse().unwrap();
        let config = identity.client_config(&server, offers.iter().copied());
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(Arc::clone(&config.unwrap()))
            .connect(name, stream)
            .await
            .unwrap();
        let alpn = stream.get_ref().1.alpn_protocol();
        assert_eq!(alpn, Some(chosen.as_bytes()), "of {offers:?}");
    }
}

#[tokio::test]
async fn envoy_resumes_its_sessions_and_is_still_known() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = cart(&mesh, app.address, STRICT).await;
    let envoy = envoy_towards(&mesh, &cart).await;
    // Opaque bytes, so that each connection is one to the upstream too. What is
    // inside is found out to be HTTP by our proxy.
    let tcp = envoy.listener(TCP).await.unwrap();
    for _ in 0..3 {
        assert_eq!(apps::get(tcp, "/").await.unwrap().status, 200);
    }
    envoy
        .counts("cluster.tcp.ssl.session_reused", 2)
        .await
        .unwrap();
    counts_requests(&cart, 3.0).await;
}

#[tokio::test]
async fn a_session_from_before_a_rotation_does_not_keep_envoy_out() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = cart(&mesh, app.address, STRICT).await;
    let envoy = envoy_towards(&mesh, &cart).await;
    let tcp = envoy.listener(TCP).await.unwrap();
    let mut latest = cart.latest.clone();
    let mut before = latest.changed().await.unwrap().identity().serial();
    for _ in 0..3 {
        assert_eq!(apps::get(tcp, "/").await.unwrap().status, 200);
        cart.renewals.renew();
        let after = latest.changed().await.unwrap().identity().serial();
        assert_ne!(after, before);
        before = after;
    }
    envoy.counts("cluster.tcp.ssl.handshake", 3).await.unwrap();
}

#[tokio::test]
async fn envoy_does_not_speak_to_us_under_another_name() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = cart(&mesh, app.address, STRICT).await;
    let certificate = front(&mesh).await;
    let envoy = Sidecar::new(certificate.files(), LEDGER)
        .towards(cart.addresses.inbound[0])
        .await
        .unwrap();
    let http1 = envoy.listener(HTTP1).await.unwrap();
    assert_eq!(apps::get(http1, "/").await.unwrap().status, 503);
    envoy
        .counts("cluster.http1.ssl.fail_verify_san", 1)
        .await
        .unwrap();
    counts_refused_handshakes(&cart, 1.0).await;
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn an_envoy_with_a_certificate_of_another_root_is_refused() {
    let mesh = Mesh::start().await.unwrap();
    let other_mesh = Mesh::start().await.unwrap();
    let (own, other) = (front(&mesh).await, front(&other_mesh).await);
    for mode in MODES {
        let app = apps::echo_http().await.unwrap();
        let cart = cart(&mesh, app.address, mode).await;
        let envoy = Sidecar::new(other.files(), CART)
            .believing(own.files().roots)
            .towards(cart.addresses.inbound[0])
            .await
            .unwrap();
        let http2 = envoy.listener(HTTP2).await.unwrap();
        assert_eq!(apps::get_http2(http2, "/").await.unwrap().status, 503);
        counts_refused_handshakes(&cart, 1.0).await;
        let tcp = envoy.listener(TCP).await.unwrap();
        let nothing = apps::talk(tcp, b"hello").await.unwrap();
        assert!(nothing.unwrap_or_default().is_empty());
        counts_refused_handshakes(&cart, 2.0).await;
        assert_eq!(app.seen(), 0);
    }
}

#[tokio::test]
async fn an_envoy_that_speaks_only_tls_1_2_is_refused() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = cart(&mesh, app.address, STRICT).await;
    let certificate = front(&mesh).await;
    let envoy = Sidecar::new(certificate.files(), CART)
        .of_tls12()
        .towards(cart.addresses.inbound[0])
        .await
        .unwrap();
    let http1 = envoy.listener(HTTP1).await.unwrap();
    assert_eq!(apps::get(http1, "/").await.unwrap().status, 503);
    counts_refused_handshakes(&cart, 1.0).await;
    assert_eq!(app.seen(), 0);
}
