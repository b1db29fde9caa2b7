//! What people see of requests: metrics, the access log, connections, and traces.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc;

use bulkhead::mesh;
use bulkhead_core::policy::MtlsMode;
use bulkhead_proxy::access_log::Output;
use bulkhead_proxy::app::{Dependencies, Proxy};
use bulkhead_tests::apps::{self, Client};
use hyper::body::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::pair::{Pair, metric_becomes};

/// Gives whole lines to a test.
pub(crate) struct Lines(pub(crate) mpsc::Sender<Value>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in bytes.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                let line = serde_json::from_slice(line).unwrap();
                self.0.send(line).map_err(io::Error::other)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pair, and a second server's proxy before the same application whose access log a
/// test can read.
async fn logged(app: SocketAddr) -> (Pair, Proxy, mpsc::Receiver<Value>) {
    let pair = Pair::start(app, MtlsMode::Strict).await;
    let mut config = pair.mesh.workload("shop", "cart").unwrap();
    config.inbound = vec![mesh::inbound(app)];
    let (lines, written) = mpsc::channel();
    let dependencies = Dependencies {
        access_log: Output::new(Lines(lines)),
        ..Dependencies::default()
    };
    let server = pair.mesh.proxy_with(config, dependencies).await.unwrap();
    (pair, server, written)
}

async fn switch(proxy: &Proxy, on: bool) {
    let mut client = Client::connect(proxy.addresses.admin).await.unwrap();
    let path = format!("/log/access?on={on}");
    let answer = client.send("POST", &path, Bytes::new()).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn the_access_log_is_switched_on_and_off_while_requests_come() {
    let app = apps::echo_http().await.unwrap();
    let (pair, server, written) = logged(app.address).await;
    let mut config = pair.mesh.workload("web", "front").unwrap();
    let endpoints = [server.addresses.inbound[0]];
    config.outbound = vec![mesh::upstream(&pair.mesh, "shop", "cart", &endpoints).unwrap()];
    let client = pair.mesh.proxy(config).await.unwrap();
    let mut requests = Client::connect(client.addresses.outbound[0]).await.unwrap();

    let unseen = requests.send("GET", "/before", Bytes::new()).await.unwrap();
    assert_eq!(unseen.status, 200);
    switch(&server, true).await;
    let body = Bytes::from_static(b"hello");
    let answer = requests
        .send("POST", "/seen?token=secret", body)
        .await
        .unwrap();
    let plain = apps::get_http2(server.addresses.inbound[0], "/plain").await;
    assert_eq!(plain.unwrap().status, 200);
    drop(app);
    let refused = apps::get(server.addresses.inbound[0], "/refused").await;
    assert_eq!(refused.unwrap().status, 503);
    switch(&server, false).await;
    let after = requests.send("GET", "/after", Bytes::new()).await.unwrap();
    assert_eq!(after.status, 200);
    server.drain().await;

    let lines: Vec<_> = written.iter().collect();
    let paths: Vec<_> = lines.iter().map(|line| &line["path"]).collect();
    assert_eq!(paths, ["/seen", "/plain", "/refused"], "{lines:#?}");
    let seen = &lines[0];
    for (field, expected) in [
        ("direction", "inbound"),
        ("protocol", "http"),
        ("method", "POST"),
        ("source", "spiffe://cluster.local/ns/web/sa/front"),
        ("destination", "spiffe://cluster.local/ns/shop/sa/cart"),
        ("service", "cart"),
    ] {
        assert_eq!(seen[field], expected, "{field}");
    }
    assert_eq!(seen["status"], 200);
    assert_eq!(seen["bytes_received"], 5);
    assert_eq!(seen["bytes_sent"], answer.body.len());
    assert!(seen["duration_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(lines[1]["source"], "unknown", "mutual TLS proved nobody");
    assert_eq!(lines[2]["reason"], "upstream_connect_failed");
    assert_eq!(lines[2]["status"], 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_exactly_what_clients_sent_and_connections_are_gone_with_them() {
    const CLIENTS: u64 = 8;
    const REQUESTS: u64 = 100;
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let address = pair.dial();
    let clients = (0..CLIENTS).map(|_| {
        tokio::spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            for _ in 0..REQUESTS {
                let answer = client.send("GET", "/", Bytes::new()).await.unwrap();
                assert_eq!(answer.status, 200);
            }
            let answer = client.send("GET", "/", Bytes::from_static(b"last")).await;
            assert!(answer.unwrap().body.ends_with("last"));
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let sent = (CLIENTS * (REQUESTS + 1)) as f64;
    for proxy in [&pair.client, &pair.server] {
        let ok = ["response_code=\"200\""];
        metric_becomes(proxy, "istio_requests_total", &ok, sent).await;
        let name = "istio_request_duration_milliseconds_count";
        metric_becomes(proxy, name, &[], sent).await;
    }
    assert_eq!(app.seen() as f64, sent);
    let client = [("client", &pair.client)];
    for (whose, proxy) in client {
        metric_becomes(proxy, "bulkhead_connections", &[], 0.0).await;
        let shown = apps::get(proxy.addresses.admin, "/connections")
            .await
            .unwrap();
        let shown: Value = serde_json::from_str(&shown.body).unwrap();
        assert_eq!(shown["connections"], serde_json::json!([]), "{whose}");
    }
}

#[tokio::test]
async fn the_admin_port_shows_who_is_connected_to_whom() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let mut client = Client::connect(pair.dial()).await.unwrap();
    client.send("GET", "/", Bytes::new()).await.unwrap();
    let shown = apps::get(pair.server.addresses.admin, "/connections").await;
    let shown: Value = serde_json::from_str(&shown.unwrap().body).unwrap();
    assert_eq!(shown["inbound"], 1);
    let connection = &shown["connections"][0];
    assert_eq!(
        connection["source"],
        "spiffe://cluster.local/ns/web/sa/front"
    );
    assert_eq!(connection["security"], "mutual_tls");
}

/// Answers each request with its head.
async fn mirror() -> apps::App {
    apps::serve(|mut stream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let start = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            head.len()
        );
        stream.write_all(start.as_bytes()).await.unwrap();
        stream.write_all(&head).await.unwrap();
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_request_that_belongs_to_no_trace_begins_one_and_others_stay_as_they_are() {
    let app = mirror().await;
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let asks = async |address, headers: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: cart\r\n{headers}Connection: close\r\n\r\n");
        let answer = apps::talk(address, request.as_bytes()).await.unwrap();
        String::from_utf8(answer.unwrap()).unwrap()
    };
    assert!(
        !asks(pair.dial(), "").await.contains("traceparent"),
        "nobody asked for it"
    );
    let mut config = pair.mesh.workload("web", "traced").unwrap();
    let endpoints = [pair.server_port()];
    config.outbound = vec![mesh::upstream(&pair.mesh, "shop", "cart", &endpoints).unwrap()];
    config.trace_sampling = 10_000;
    let traced = pair.mesh.proxy(config).await.unwrap();
    let address = traced.addresses.outbound[0];
    let begun = asks(address, "").await;
    assert_eq!(begun.matches("\r\ntraceparent: 00-").count(), 1, "{begun}");
    let own = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
               tracestate: congo=t61rcWkgMzE\r\n";
    let kept = asks(address, own).await;
    assert!(kept.contains(own), "{kept}");
    assert_eq!(kept.matches("traceparent").count(), 1, "{kept}");
    for b3 in [
        "b3: 80f198ee56343ba8-05e3ac9a4f6e3b90-1\r\n",
        "X-B3-TraceId: 80f198ee56343ba8\r\n",
    ] {
        let kept = asks(address, b3).await;
        assert!(kept.contains(b3) && !kept.contains("traceparent"), "{kept}");
    }
}
