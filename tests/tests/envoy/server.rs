//! An application behind our proxy calls one behind Envoy.

use std::net::SocketAddr;

use bulkhead::mesh::{self, Mesh};
use bulkhead_proxy::app::Proxy;
use bulkhead_tests::envoy::Envoy;
use bulkhead_tests::envoy::sidecar::{INBOUND, Sidecar};
use bulkhead_tests::{apps, metrics};
use hyper::body::Bytes;

use crate::apps::{calls_grpc, converse, grpc, tells_its_caller};
use crate::certificate::CertificateFiles;

const FRONT: &str = "spiffe://cluster.local/ns/web/sa/front";
const BACK: &str = "spiffe://cluster.local/ns/web/sa/back";

/// Envoy's certificate, for `shop/cart` of this mesh.
async fn cart(mesh: &Mesh) -> CertificateFiles {
    CertificateFiles::issue(mesh, "shop", "cart").await.unwrap()
}

/// Our proxy of `web/front`, which expects this ServiceAccount of `shop` to be
/// behind Envoy.
async fn front_towards(mesh: &Mesh, account: &str, envoy: &Envoy) -> Proxy {
    let mut config = mesh.workload("web", "front").unwrap();
    let endpoints = [envoy.listener(INBOUND).await.unwrap()];
    config.outbound = vec![mesh::upstream(mesh, "shop", account, &endpoints).unwrap()];
    mesh.proxy(config).await.unwrap()
}

/// The Envoy of `shop/cart`, and our proxy of `web/front` before it.
async fn pair(mesh: &Mesh, app: SocketAddr) -> (Proxy, Envoy) {
    let certificate = cart(mesh).await;
    let sidecar = Sidecar::new(certificate.files(), FRONT);
    let envoy = sidecar.in_front_of(app).await.unwrap();
    (front_towards(mesh, "cart", &envoy).await, envoy)
}

fn dial(front: &Proxy) -> SocketAddr {
    front.addresses.outbound[0]
}

#[tokio::test]
async fn envoy_tells_its_application_our_spiffe_id() {
    let mesh = Mesh::start().await.unwrap();
    let app = tells_its_caller().await.unwrap();
    let (front, envoy) = pair(&mesh, app.address).await;
    for answer in [
        apps::get(dial(&front), "/").await,
        apps::get_http2(dial(&front), "/").await,
    ] {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200);
        let mut parts: Vec<_> = answer.body.split(';').collect();
        parts.retain(|part| !part.starts_with("Hash="));
        assert_eq!(
            parts,
            [
                "By=spiffe://cluster.local/ns/shop/sa/cart",
                "Subject=\"\"",
                "URI=spiffe://cluster.local/ns/web/sa/front",
            ]
        );
    }
    let versions = "listener.inbound.ssl.versions.TLSv1.3";
    envoy.counts(versions, 2).await.unwrap();
}

#[tokio::test]
async fn requests_keep_their_version_on_the_way() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let (front, _envoy) = pair(&mesh, app.address).await;
    let http1 = apps::get(dial(&front), "/cart").await.unwrap();
    assert_eq!(
        (http1.status, http1.body.as_str()),
        (200, "HTTP/1.1 GET /cart\n")
    );
    let http2 = apps::get_http2(dial(&front), "/cart").await.unwrap();
    assert_eq!(
        (http2.status, http2.body.as_str()),
        (200, "HTTP/2.0 GET /cart\n")
    );
}

#[tokio::test]
async fn a_body_of_a_mebibyte_arrives_and_comes_back() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let (front, _envoy) = pair(&mesh, app.address).await;
    let mut client = apps::Client::connect(dial(&front)).await.unwrap();
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
    let (front, _envoy) = pair(&mesh, app.address).await;
    calls_grpc(dial(&front)).await.unwrap();
}

#[tokio::test]
async fn bytes_of_a_protocol_where_the_server_speaks_first_arrive_unchanged() {
    let mesh = Mesh::start().await.unwrap();
    let greeting = b"220 mail.example.com ESMTP\r\n";
    let app = apps::server_first(greeting).await.unwrap();
    let (front, _envoy) = pair(&mesh, app.address).await;
    let words = b"EHLO front\r\n".repeat(50_000);
    let echo = converse(dial(&front), greeting, &words).await.unwrap();
    assert!(echo == words, "{} bytes came back", echo.len());
}

#[tokio::test]
async fn we_resume_our_sessions_and_are_still_known() {
    let mesh = Mesh::start().await.unwrap();
    let app = tells_its_caller().await.unwrap();
    let (front, envoy) = pair(&mesh, app.address).await;
    for _ in 0..3 {
        // Each connection that speaks HTTP/2 has one to the upstream.
        let answer = apps::get_http2(dial(&front), "/").await.unwrap();
        assert!(answer.body.contains(FRONT), "{answer:?}");
    }
    let reused = "listener.inbound.ssl.session_reused";
    envoy.counts(reused, 2).await.unwrap();
}

#[tokio::test]
async fn we_do_not_speak_to_an_envoy_of_another_name() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let certificate = cart(&mesh).await;
    let sidecar = Sidecar::new(certificate.files(), FRONT);
    let envoy = sidecar.in_front_of(app.address).await.unwrap();
    let front = front_towards(&mesh, "ledger", &envoy).await;
    for answer in [
        apps::get(dial(&front), "/").await,
        apps::get_http2(dial(&front), "/").await,
    ] {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 503);
        assert_eq!(answer.reason(), Some("peer_identity_mismatch"));
    }
    assert_eq!(apps::talk(dial(&front), b"\0").await.unwrap(), None);
    let name = "bulkhead_refusals_total";
    let labels = ["reason=\"peer_identity_mismatch\""];
    metrics::become_sum(&front.monitoring, name, &labels, 3.0).await;
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn an_envoy_that_lets_in_somebody_else_refuses_us() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let certificate = cart(&mesh).await;
    let sidecar = Sidecar::new(certificate.files(), BACK);
    let envoy = sidecar.in_front_of(app.address).await.unwrap();
    let front = front_towards(&mesh, "cart", &envoy).await;
    refused_at_the_handshake(&front).await;
    let unknown = "listener.inbound.ssl.fail_verify_san";
    envoy.counts(unknown, 3).await.unwrap();
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn an_envoy_refuses_our_certificate_of_another_root() {
    let mesh = Mesh::start().await.unwrap();
    let other = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let (own, shown) = (cart(&mesh).await, cart(&other).await);
    // It shows us a certificate that we believe, and believes only its own.
    let sidecar = Sidecar::new(shown.files(), FRONT).believing(own.files().roots);
    let envoy = sidecar.in_front_of(app.address).await.unwrap();
    let front = front_towards(&other, "cart", &envoy).await;
    refused_at_the_handshake(&front).await;
    let untrusted = "listener.inbound.ssl.fail_verify_error";
    envoy.counts(untrusted, 3).await.unwrap();
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn we_refuse_an_envoy_with_a_certificate_of_another_root() {
    let mesh = Mesh::start().await.unwrap();
    let other = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let (own, shown) = (cart(&mesh).await, cart(&other).await);
    let sidecar = Sidecar::new(shown.files(), FRONT).believing(own.files().roots);
    let envoy = sidecar.in_front_of(app.address).await.unwrap();
    let front = front_towards(&mesh, "cart", &envoy).await;
    refused_at_the_handshake(&front).await;
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn we_refuse_an_envoy_that_speaks_only_tls_1_2() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let certificate = cart(&mesh).await;
    let sidecar = Sidecar::new(certificate.files(), FRONT).of_tls12();
    let envoy = sidecar.in_front_of(app.address).await.unwrap();
    let front = front_towards(&mesh, "cart", &envoy).await;
    refused_at_the_handshake(&front).await;
    assert_eq!(app.seen(), 0);
}

/// Whatever the application speaks, it is told so, each in its own way.
async fn refused_at_the_handshake(front: &Proxy) {
    for answer in [
        apps::get(dial(front), "/").await,
        apps::get_http2(dial(front), "/").await,
    ] {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 503);
        assert_eq!(answer.reason(), Some("tls_handshake_failed"));
    }
    assert_eq!(apps::talk(dial(front), b"\0").await.unwrap(), None);
    let name = "bulkhead_refusals_total";
    let labels = ["reason=\"tls_handshake_failed\""];
    metrics::become_sum(&front.monitoring, name, &labels, 3.0).await;
}
