//! Who may be whose peer.

use bulkhead::mesh::{self, Mesh};
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_tests::apps;

use crate::pair::{Pair, metric_becomes};

#[tokio::test]
async fn a_server_that_is_somebody_else_is_not_spoken_to() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut config = pair.mesh.workload("web", "other-front").unwrap();
    let endpoints = [pair.server_port()];
    for protocol in [Protocol::Auto, Protocol::Opaque] {
        let mut upstream = mesh::upstream(&pair.mesh, "shop", "ledger", &endpoints).unwrap();
        upstream.protocol = protocol;
        config.outbound.push(upstream);
    }
    let client = pair.mesh.proxy(config).await.unwrap();

    let answer = apps::get(client.addresses.outbound[0], "/").await.unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.reason(), Some("peer_identity_mismatch"));
    let http2 = apps::get_http2(client.addresses.outbound[0], "/")
        .await
        .unwrap();
    assert_eq!(http2.reason(), Some("peer_identity_mismatch"));
    let opaque = apps::talk(client.addresses.outbound[1], b"hello")
        .await
        .unwrap();
    assert_eq!(
        opaque, None,
        "bytes that nobody can be told about are reset"
    );
    metric_becomes(
        &client,
        "bulkhead_refusals_total",
        &["peer_identity_mismatch"],
        3.0,
    )
    .await;
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn a_client_of_another_mesh_is_refused() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let other = Mesh::start().await.unwrap();
    let mut config = other.workload("web", "front").unwrap();
    config.outbound = vec![mesh::upstream(&other, "shop", "cart", &[pair.server_port()]).unwrap()];
    let stranger = other.proxy(config).await.unwrap();
    let answer = apps::get(stranger.addresses.outbound[0], "/")
        .await
        .unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.reason(), Some("tls_handshake_failed"));
    assert_eq!(app.seen(), 0);
}

#[tokio::test]
async fn a_request_goes_to_another_endpoint_when_one_is_gone() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let mut config = pair.mesh.workload("web", "other-front").unwrap();
    let endpoints = [gone, pair.server_port()];
    config.outbound = vec![mesh::upstream(&pair.mesh, "shop", "cart", &endpoints).unwrap()];
    let client = pair.mesh.proxy(config).await.unwrap();
    for _ in 0..4 {
        let answer = apps::get(client.addresses.outbound[0], "/").await.unwrap();
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_named_as_such() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    pair.server.drain().await;
    let answer = apps::get(pair.client.addresses.outbound[0], "/")
        .await
        .unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.reason(), Some("upstream_connect_failed"));
}

#[tokio::test]
async fn an_application_that_is_gone_is_named_by_its_own_proxy() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    drop(app);
    let answer = apps::get(pair.dial(), "/").await.unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.reason(), Some("upstream_connect_failed"));
}
