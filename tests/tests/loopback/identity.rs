//! Certificates: got, rotated, and kept when the CA is away.

use std::collections::BTreeSet;

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps::{self, Client};
use hyper::body::Bytes;

use crate::pair::{Pair, metric_becomes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_rotated_under_load_and_no_request_fails() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut kept = Client::connect(pair.dial()).await.unwrap();
    let mut serials = BTreeSet::new();
    for proxy in [&pair.server, &pair.client] {
        let mut latest = proxy.latest.clone();
        serials.insert(latest.first().await.unwrap().identity().serial());
        for _ in 0..10 {
            proxy.renewals.renew();
            serials.insert(latest.changed().await.unwrap().identity().serial());
            for _ in 0..5 {
                let answer = kept.send("GET", "/", Bytes::new()).await.unwrap();
                assert_eq!(answer.status, 200);
                assert_eq!(apps::get(pair.dial(), "/").await.unwrap().status, 200);
            }
        }
    }
    assert_eq!(serials.len(), 22, "every certificate is another one");
}

#[tokio::test]
async fn a_connection_outlives_the_certificate_that_it_began_with() {
    let app = apps::server_first(b"").await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut stream = tokio::net::TcpStream::connect(pair.dial()).await.unwrap();
    let mut say = async |text: &[u8]| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        stream.write_all(text).await.unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, text);
    };
    say(b"\x01before").await;
    for proxy in [&pair.server, &pair.client] {
        let mut latest = proxy.latest.clone();
        latest.first().await.unwrap();
        proxy.renewals.renew();
        latest.changed().await.unwrap();
    }
    say(b"\x02after").await;
}

#[tokio::test]
async fn traffic_goes_on_while_the_ca_is_away_and_rotation_resumes_with_it() {
    let app = apps::echo_http().await.unwrap();
    let mut pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut latest = pair.client.latest.clone();
    let serial = latest.first().await.unwrap().identity().serial();
    pair.mesh.stop_ca().await;
    pair.client.renewals.renew();
    metric_becomes(
        &pair.client,
        "bulkhead_certificate_renewals_total",
        &["outcome=\"authority_unreachable\""],
        1.0,
    )
    .await;
    assert_eq!(apps::get(pair.dial(), "/").await.unwrap().status, 200);
    assert!(
        pair.client.monitoring.readiness.missing().is_empty(),
        "it is still ready"
    );

    pair.mesh.start_ca().await.unwrap();
    let renewed = latest.changed().await.unwrap();
    assert_ne!(renewed.identity().serial(), serial);
    assert_eq!(apps::get(pair.dial(), "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_proxy_without_a_certificate_is_not_ready_and_says_why_it_refuses() {
    let app = apps::echo_http().await.unwrap();
    let mut pair = Pair::start(app.address, MtlsMode::Strict).await;
    pair.mesh.stop_ca().await;
    let mut config = pair.mesh.workload("web", "late").unwrap();
    let endpoints = [pair.server_port()];
    config.outbound =
        vec![bulkhead::mesh::upstream(&pair.mesh, "shop", "cart", &endpoints).unwrap()];
    let dependencies = bulkhead_proxy::app::Dependencies::default();
    let proxy = bulkhead_proxy::app::Proxy::start(config, dependencies).unwrap();
    assert_eq!(proxy.monitoring.readiness.missing(), ["certificate"]);
    let answer = apps::get(proxy.addresses.outbound[0], "/").await.unwrap();
    assert_eq!(
        (answer.status, answer.reason()),
        (503, Some("no_certificate"))
    );
    pair.mesh.start_ca().await.unwrap();
    proxy.latest.clone().first().await.unwrap();
    assert_eq!(
        apps::get(proxy.addresses.outbound[0], "/")
            .await
            .unwrap()
            .status,
        200
    );
}
