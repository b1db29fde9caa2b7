//! Mutual TLS that applications make themselves, with go-spiffe and SVIDs of the
//! Workload API: among one another, and with the sidecars of others.

use std::net::SocketAddr;

use bulkhead::mesh::{self, Mesh};
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_tests::config::go_spiffe;
use bulkhead_tests::{apps, metrics};
use tokio::process::Command;

use crate::application::{Application, PATIENCE, Sidecar, id};

fn go(arguments: [&str; 2]) -> Command {
    let mut program = Command::new(go_spiffe().unwrap());
    program.args(arguments);
    program
}

/// An HTTPS server beside a sidecar, for one client.
pub(crate) async fn server(sidecar: &Sidecar, client: &str) -> (Application, SocketAddr) {
    let mut server = sidecar.run(go(["serve", client]));
    let line = server.says().await;
    let address = line.strip_prefix("listening ").unwrap().parse();
    (server, address.unwrap())
}

/// An HTTPS client beside a sidecar, of one server.
pub(crate) fn client(sidecar: &Sidecar, server: &str) -> Application {
    sidecar.run(go(["call", server]))
}

#[tokio::test]
async fn applications_with_go_spiffe_know_one_another_and_stay_connected_over_renewals() {
    let mesh = Mesh::start().await.unwrap();
    let cart = Sidecar::start(&mesh, "cart", |_| ()).await;
    let front = Sidecar::start(&mesh, "front", |_| ()).await;
    let (_server, address) = server(&cart, &id("front")).await;
    let mut client = client(&front, &id("cart"));
    let answer = |serial: &str| format!("200 {serial} HTTP/1.1 {}", id("front"));
    let first = answer(&cart.serial());
    let kept = format!("kept https://{address}/");
    assert_eq!(client.answers(&kept).await, first);
    for _ in 0..3 {
        front.renew().await;
        let renewed = answer(&cart.renew().await);
        // The server is told of it in its own time, and serves throughout.
        let shows = async {
            loop {
                let answer = client.answers(&format!("new - https://{address}/")).await;
                assert!(answer.starts_with("200 "), "{answer}");
                if answer == renewed {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, shows).await.unwrap();
        let open = client.answers(&kept).await;
        assert_eq!(open, first, "an open connection keeps what it began with");
    }
}

#[tokio::test]
async fn an_application_with_go_spiffe_speaks_with_nobody_but_whom_it_names() {
    let mesh = Mesh::start().await.unwrap();
    let cart = Sidecar::start(&mesh, "cart", |_| ()).await;
    let pay = Sidecar::start(&mesh, "pay", |_| ()).await;
    let (_server, address) = server(&cart, &id("front")).await;
    let call = format!("new - https://{address}/");
    let stranger = client(&pay, &id("cart")).answers(&call).await;
    assert!(stranger.starts_with("failed "), "{stranger}");
    let mistaken = client(&pay, &id("front")).answers(&call).await;
    assert!(
        mistaken.contains(&format!("unexpected ID {:?}", id("cart"))),
        "{mistaken}"
    );
}

#[tokio::test]
async fn a_strict_workload_serves_go_spiffe_whatever_protocol_its_client_offers() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = Sidecar::start(&mesh, "cart", |config| {
        config.inbound = vec![mesh::inbound(app.address)];
        config.mode = MtlsMode::Strict;
    })
    .await;
    let front = Sidecar::start(&mesh, "front", |_| ()).await;
    let address = cart.proxy.addresses.inbound[0];
    let mut client = client(&front, &id("cart"));
    let (http1, http2) = (
        "HTTP/1.1 HTTP/1.1 GET /basket",
        "HTTP/2.0 HTTP/2.0 GET /basket",
    );
    let offers = [
        ("-", http1),
        ("http/1.1", http1),
        ("h2", http2),
        // What Go, curl and browsers offer: the sidecar does not know whether the
        // application speaks HTTP/2.
        ("h2,http/1.1", http1),
        ("istio-http/1.1,istio,http/1.1", http1),
    ];
    for (offers, expected) in &offers {
        let call = format!("new {offers} https://{address}/basket");
        let answer = client.answers(&call).await;
        let expected = format!("200 {} {expected}", cart.serial());
        assert_eq!(answer, expected, "{offers}");
    }
    // They are callers as all others are.
    let labels = [
        format!("source_principal=\"{}\"", id("front")),
        "connection_security_policy=\"mutual_tls\"".to_owned(),
    ];
    let labels = labels.each_ref().map(String::as_str);
    metrics::become_sum(
        &cart.proxy.monitoring,
        "istio_requests_total",
        &labels,
        offers.len() as f64,
    )
    .await;
}

#[tokio::test]
async fn on_a_port_of_http2_a_client_that_offers_both_gets_http2() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = Sidecar::start(&mesh, "cart", |config| {
        config.inbound = vec![mesh::inbound(app.address)];
        config.mode = MtlsMode::Strict;
        let port = app.address.port();
        config.port_protocols.insert(port, Protocol::Http2);
    })
    .await;
    let address = cart.proxy.addresses.inbound[0];
    let mut client = client(&cart, &id("cart"));
    let call = format!("new h2,http/1.1 https://{address}/basket");
    let answer = client.answers(&call).await;
    assert!(
        answer.ends_with("HTTP/2.0 HTTP/2.0 GET /basket"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_strict_workload_refuses_a_protocol_that_it_does_not_know_with_a_reason() {
    let mesh = Mesh::start().await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let cart = Sidecar::start(&mesh, "cart", |config| {
        config.inbound = vec![mesh::inbound(app.address)];
        config.mode = MtlsMode::Strict;
    })
    .await;
    let address = cart.proxy.addresses.inbound[0];
    let mut client = client(&cart, &id("cart"));
    let answer = client
        .answers(&format!("new acme-tls/1 https://{address}/"))
        .await;
    assert!(answer.contains("no application protocol"), "{answer}");
    assert_eq!(app.seen(), 0);
    let labels = ["reason=\"tls_handshake_failed\""];
    let refusals = "bulkhead_refusals_total";
    metrics::become_sum(&cart.proxy.monitoring, refusals, &labels, 1.0).await;
}

#[tokio::test]
async fn a_permissive_workload_leaves_an_applications_own_tls_to_it() {
    let mesh = Mesh::start().await.unwrap();
    let front = Sidecar::start(&mesh, "front", |_| ()).await;
    let cart = Sidecar::start(&mesh, "cart", |_| ()).await;
    let (_server, address) = server(&cart, &id("front")).await;
    // Before the application, and it knows nothing of the application's TLS.
    let before = Sidecar::start(&mesh, "cart", |config| {
        config.inbound = vec![mesh::inbound(address)];
        config.mode = MtlsMode::Permissive;
    })
    .await;
    let address = before.proxy.addresses.inbound[0];
    let mut client = client(&front, &id("cart"));
    let answer = client
        .answers(&format!("new h2,http/1.1 https://{address}/"))
        .await;
    let expected = format!("200 {} HTTP/2.0 {}", cart.serial(), id("front"));
    assert_eq!(
        answer, expected,
        "end to end, by the application's own SVID"
    );
}

#[tokio::test]
async fn a_sidecar_calls_a_server_with_go_spiffe_for_its_application() {
    let mesh = Mesh::start().await.unwrap();
    let cart = Sidecar::start(&mesh, "cart", |_| ()).await;
    let (_server, address) = server(&cart, &id("front")).await;
    let front = Sidecar::start(&mesh, "front", |config| {
        let upstream = mesh::upstream(&mesh, "shop", "cart", &[address]);
        config.outbound = vec![upstream.unwrap()];
    })
    .await;
    let dial = front.proxy.addresses.outbound[0];
    for _ in 0..3 {
        let answer = apps::get(dial, "/").await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body, id("front"));
        cart.renew().await;
        front.renew().await;
    }
}
