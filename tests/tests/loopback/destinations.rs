//! Where connections go by what control says, and what becomes of it when
//! control is away.

use std::net::SocketAddr;

use bulkhead_core::policy::MtlsMode;
use bulkhead_proxy::app::Proxy;
use bulkhead_tests::apps::{self, App, Client};
use bulkhead_tests::metrics;
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::controlled::{CLUSTER_IP, Controlled, on, stands_for};
use crate::pair::metric_becomes;

const PUSHES: &str = "bulkhead_discovery_pushes_total";
const PASSED_THROUGH: &str = "bulkhead_passthrough_connections_total";

/// A mesh in which `web/front` dials the Service `shop/cart`, which has one pod.
struct Shop {
    controlled: Controlled,
    app: App,
    server: Proxy,
    client: Proxy,
}

impl Shop {
    async fn open(app: App) -> Self {
        let controlled = Controlled::start().await;
        controlled.mode("STRICT");
        let server = controlled.server("cart-0", "127.0.0.2", app.address).await;
        controlled.cart(&[("cart-0", server.addresses.inbound[0], true)]);
        let client = controlled.client(&[CLUSTER_IP.parse().unwrap()]).await;
        Self {
            controlled,
            app,
            server,
            client,
        }
    }

    async fn http() -> Self {
        Self::open(apps::echo_http().await.unwrap()).await
    }

    fn dial(&self) -> SocketAddr {
        self.client.addresses.redirected[0]
    }

    /// The endpoint of its only server.
    fn endpoint(&self, ready: bool) -> (&'static str, SocketAddr, bool) {
        ("cart-0", self.server.addresses.inbound[0], ready)
    }
}

#[tokio::test]
async fn a_service_is_known_when_it_is_first_dialled_and_spoken_to_over_mutual_tls() {
    let shop = Shop::http().await;
    let answer = apps::get(shop.dial(), "/first").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (200, None));
    assert_eq!(answer.body, "HTTP/1.1 GET /first\n");
    let identities = [
        "source_principal=\"spiffe://cluster.local/ns/web/sa/front\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    let requests = "istio_requests_total";
    metric_becomes(&shop.server, requests, &identities, 1.0).await;
    let named = "destination_service=\"cart.shop.svc.cluster.local\"";
    let labels = [&identities[..], &[named]].concat();
    metric_becomes(&shop.client, requests, &labels, 1.0).await;
    metric_becomes(&shop.client, "bulkhead_discovery_destinations", &[], 1.0).await;
}

#[tokio::test]
async fn http2_is_spoken_to_a_service_as_well() {
    let shop = Shop::http().await;
    let answer = apps::get_http2(shop.dial(), "/").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (200, None));
    assert_eq!(answer.body, "HTTP/2.0 GET /\n");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_though_nobody_said_so() {
    let app = apps::server_first(b"220 ready\r\n").await.unwrap();
    let shop = Shop::open(app).await;
    for _ in 0..2 {
        let mut stream = TcpStream::connect(shop.dial()).await.unwrap();
        let mut greeting = [0; 11];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
    }
}

#[tokio::test]
async fn a_client_that_is_slow_to_speak_is_taken_for_what_it_is() {
    let shop = Shop::http().await;
    let mut stream = TcpStream::connect(shop.dial()).await.unwrap();
    // It was silent for so long that the server might have been the one to begin.
    let opened = "istio_tcp_connections_opened_total";
    metric_becomes(&shop.server, opened, &[], 1.0).await;
    let request = b"GET / HTTP/1.1\r\nhost: cart\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    metric_becomes(&shop.client, "istio_requests_total", &[], 1.0).await;
}

#[tokio::test]
async fn each_request_of_a_connection_goes_to_another_pod_and_none_to_one_that_left() {
    let shop = Shop::http().await;
    let other_app = apps::echo_http().await.unwrap();
    let other = shop
        .controlled
        .server("cart-1", "127.0.0.4", other_app.address)
        .await;
    let both = [
        shop.endpoint(true),
        ("cart-1", other.addresses.inbound[0], true),
    ];
    shop.controlled.cart(&both);
    let mut client = Client::connect(shop.dial()).await.unwrap();
    let mut get = async || {
        let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    while other_app.seen() < 10 {
        get().await;
    }
    assert!(shop.app.seen() >= 10, "{}", shop.app.seen());

    shop.controlled.cart(&both[..1]);
    let endpoints = ["kind=\"Endpoints\""];
    let before = metrics::sum(&shop.client.monitoring, PUSHES, &endpoints);
    metric_becomes(&shop.client, PUSHES, &endpoints, before + 1.0).await;
    let seen = other_app.seen();
    for _ in 0..20 {
        get().await;
    }
    assert_eq!(other_app.seen(), seen, "it has left");
}

#[tokio::test]
async fn a_request_that_a_pod_on_its_way_out_cannot_serve_is_served_by_another() {
    let shop = Shop::http().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    // The application has ended, its sidecar has not, and who dials it does not
    // know yet.
    drop(listener);
    let leaving = shop.controlled.server("cart-1", "127.0.0.4", nobody).await;
    let leaving_endpoint = ("cart-1", leaving.addresses.inbound[0], true);
    shop.controlled
        .cart(&[shop.endpoint(true), leaving_endpoint]);
    let mut client = Client::connect(shop.dial()).await.unwrap();
    let refused = "response_code=\"503\"";
    while metrics::sum(&leaving.monitoring, "istio_requests_total", &[refused]) == 0.0 {
        let body = Bytes::from_static(b"an order, not to be lost");
        let answer = client.send("POST", "/", body).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    // Where there is no other, what its sidecar says is the answer.
    shop.controlled.cart(&[leaving_endpoint]);
    let answer = loop {
        let mut client = Client::connect(shop.dial()).await.unwrap();
        let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(
        (answer.status, answer.reason()),
        (503, Some("upstream_connect_failed"))
    );
}

/// An application that has had the request and could not serve it, because of
/// somebody behind it: it passes on what that one's sidecar said.
async fn gateway() -> App {
    apps::serve(|mut stream, requests| async move {
        let mut read = [0; 4096];
        if stream.read(&mut read).await.is_ok() {
            requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\
                          bulkhead-reason: upstream_connect_failed\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_request_that_an_application_has_had_is_sent_to_no_other_whatever_it_passes_on() {
    let shop = Shop::open(gateway().await).await;
    let other_app = gateway().await;
    let other = shop
        .controlled
        .server("cart-1", "127.0.0.4", other_app.address)
        .await;
    let both = [
        shop.endpoint(true),
        ("cart-1", other.addresses.inbound[0], true),
    ];
    let buy = async |count: u64| {
        let before = shop.app.seen() + other_app.seen();
        for _ in 0..count {
            let mut client = Client::connect(shop.dial()).await.unwrap();
            let order = Bytes::from_static(b"one teapot");
            let answer = client.send("POST", "/", order).await.unwrap();
            assert_eq!(answer.status, 503, "{answer:?}");
        }
        assert_eq!(shop.app.seen() + other_app.seen() - before, count);
    };
    shop.controlled.cart(&both);
    while other_app.seen() == 0 {
        buy(1).await;
    }
    buy(10).await;
    assert!(shop.app.seen() > 0);
}

#[tokio::test]
async fn a_service_without_a_ready_pod_is_named_as_such() {
    let shop = Shop::http().await;
    shop.controlled.cart(&[shop.endpoint(false)]);
    let mut client = Client::connect(shop.dial()).await.unwrap();
    let answer = loop {
        let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
        // Control may not have looked yet.
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(answer.status, 503);
    assert_eq!(answer.reason(), Some("no_ready_endpoint"));
}

#[tokio::test]
async fn a_client_that_hears_later_than_its_server_that_a_port_is_plaintext_loses_nothing() {
    for http2 in [false, true] {
        let app = apps::echo_http().await.unwrap();
        let controlled = Controlled::start().await;
        controlled.mode("STRICT");
        // It has heard already: this is what it would be told.
        let mut config = controlled.pod("shop", "cart-0", "127.0.0.2");
        config.inbound = vec![on("127.0.0.2", app.address)];
        config.control_address = "none".to_owned();
        config.mode = MtlsMode::Disable;
        let server = controlled.mesh.proxy(config).await.unwrap();
        controlled.cart(&[("cart-0", server.addresses.inbound[0], true)]);
        let client = controlled.client(&[CLUSTER_IP.parse().unwrap()]).await;

        let dial = client.addresses.redirected[0];
        let answer = async {
            if http2 {
                apps::get_http2(dial, "/").await
            } else {
                apps::get(dial, "/").await
            }
        };
        let news = async {
            let refused = "bulkhead_refusals_total";
            metric_becomes(&server, refused, &["mtls_disabled"], 1.0).await;
            controlled.mode("DISABLE");
        };
        let (answer, ()) = tokio::join!(answer, news);
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.reason()), (200, None));
    }
}

#[tokio::test]
async fn nobody_is_taken_in_before_control_has_said_what_is_accepted() {
    let controlled = Controlled::start().await;
    controlled.mode("STRICT");
    let app = apps::echo_http().await.unwrap();
    let other = controlled.server("cart-0", "127.0.0.2", app.address).await;
    // Control has read the policy once this one is told.
    while apps::get(other.addresses.inbound[0], "/")
        .await
        .unwrap()
        .status
        != 403
    {}
    let seen = app.seen();

    let mut config = controlled.pod("shop", "cart-1", "127.0.0.4");
    config.inbound = vec![on("127.0.0.4", app.address)];
    assert_eq!(config.mode, MtlsMode::Permissive, "by its own settings");
    let server = controlled.mesh.proxy(config).await.unwrap();
    let answer = apps::get(server.addresses.inbound[0], "/").await.unwrap();
    assert_eq!(
        (answer.status, answer.reason()),
        (403, Some("plaintext_refused"))
    );
    assert_eq!(app.seen(), seen);
}

#[tokio::test]
async fn what_nobody_knows_goes_where_it_was_going() {
    let controlled = Controlled::start().await;
    let app = apps::echo_http().await.unwrap();
    let client = controlled.client(&[app.address]).await;
    let dial = client.addresses.redirected[0];
    assert_eq!(apps::get(dial, "/").await.unwrap().status, 200);
    metric_becomes(&client, PASSED_THROUGH, &[], 1.0).await;
    let labels = [
        "destination_service=\"PassthroughCluster\"",
        "connection_security_policy=\"none\"",
    ];
    let opened = "istio_tcp_connections_opened_total";
    metric_becomes(&client, opened, &labels, 1.0).await;
}

#[tokio::test]
async fn without_control_what_is_known_stays_known_and_the_rest_passes() {
    let elsewhere = apps::echo_http().await.unwrap();
    let mut shop = Shop::http().await;
    let mut config = shop.controlled.pod("web", "front-1", "127.0.0.5");
    config.redirected_outbound = vec![
        stands_for(CLUSTER_IP.parse().unwrap()),
        stands_for(elsewhere.address),
    ];
    let client = shop.controlled.connected(config).await;
    let [cart, outside] = client.addresses.redirected[..] else {
        panic!("two listeners were asked for");
    };
    assert_eq!(apps::get(cart, "/").await.unwrap().status, 200);
    let connected = "bulkhead_discovery_connected";
    shop.controlled.stop_control().await;
    metric_becomes(&client, connected, &[], 0.0).await;

    assert_eq!(apps::get(cart, "/").await.unwrap().status, 200);
    assert_eq!(apps::get(outside, "/").await.unwrap().status, 200);
    metric_becomes(&client, PASSED_THROUGH, &[], 1.0).await;

    // What changed meanwhile is known when control is back.
    shop.controlled.cart(&[shop.endpoint(false)]);
    shop.controlled.start_control().await;
    metric_becomes(&client, connected, &[], 1.0).await;
    let endpoints = ["kind=\"Endpoints\""];
    metric_becomes(&client, PUSHES, &endpoints, 2.0).await;
    assert_eq!(apps::get(cart, "/").await.unwrap().status, 503);
}

#[tokio::test]
async fn a_new_policy_ends_what_it_does_not_permit_and_nothing_else() {
    let shop = Shop::open(apps::server_first(b"").await.unwrap()).await;
    let policy_is = async |mode: &str| {
        let inbound = ["kind=\"Inbound\""];
        let before = metrics::sum(&shop.server.monitoring, PUSHES, &inbound);
        shop.controlled.mode(mode);
        metric_becomes(&shop.server, PUSHES, &inbound, before + 1.0).await;
    };
    let echo = async |stream: &mut TcpStream| {
        stream.write_all(b"still there?").await?;
        stream.read_exact(&mut [0; 12]).await
    };
    policy_is("PERMISSIVE").await;
    let mut mutual = TcpStream::connect(shop.dial()).await.unwrap();
    echo(&mut mutual).await.unwrap();
    let port = shop.server.addresses.inbound[0];
    let mut plain = TcpStream::connect(port).await.unwrap();
    echo(&mut plain).await.unwrap();

    policy_is("STRICT").await;
    let end = plain.read(&mut [0]).await;
    assert!(end.is_err(), "plaintext is broken off: {end:?}");
    echo(&mut mutual).await.unwrap();
    let refused = apps::get(port, "/").await.unwrap();
    assert_eq!(refused.reason(), Some("plaintext_refused"));
    assert!(refused.body.contains("shop/default"), "{}", refused.body);
    let refusals = "bulkhead_refusals_total";
    metric_becomes(&shop.server, refusals, &["plaintext_refused"], 2.0).await;
}

#[tokio::test]
async fn a_pod_reaches_itself_through_its_own_service() {
    let controlled = Controlled::start().await;
    let app = apps::echo_http().await.unwrap();
    let ip = app.address.ip().to_string();
    let mut config = controlled.pod("shop", "cart-0", &ip);
    config.inbound = vec![on(&ip, app.address)];
    config.redirected_outbound = vec![stands_for(CLUSTER_IP.parse().unwrap())];
    controlled.mode("STRICT");
    // Its endpoint is the application's own port: what a pod sends to itself is
    // not redirected once the proxy sends it.
    controlled.cart(&[("cart-0", app.address, true)]);
    let proxy = controlled.connected(config).await;
    let dial = proxy.addresses.redirected[0];
    let answer = apps::get(dial, "/").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (200, None));
    metric_becomes(&proxy, PASSED_THROUGH, &[], 0.0).await;
}

#[tokio::test]
async fn a_proxy_never_speaks_to_itself_in_a_circle() {
    let controlled = Controlled::start().await;
    let mut config = controlled.pod("web", "front-0", "127.0.0.3");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut itself = stands_for(address);
    itself.listen = address;
    config.redirected_outbound = vec![itself];
    let proxy = controlled.connected(config).await;
    let request = b"GET / HTTP/1.1\r\n\r\n";
    assert_eq!(apps::talk(address, request).await.unwrap(), None);
    let refusals = "bulkhead_refusals_total";
    metric_becomes(&proxy, refusals, &["destination_is_self"], 1.0).await;
}
