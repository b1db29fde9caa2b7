//! The status and admin ports.

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps::{self, Client};
use hyper::body::Bytes;

use crate::pair::Pair;

async fn pair() -> (apps::App, Pair) {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    (app, pair)
}

#[tokio::test]
async fn the_status_port_shows_and_changes_nothing() {
    let (_app, pair) = pair().await;
    let status = pair.server.addresses.status;
    assert_eq!(apps::get(status, "/ready").await.unwrap().body, "ready\n");
    let metrics = apps::get(status, "/metrics").await.unwrap().body;
    assert!(
        metrics.contains("bulkhead_certificate_expiry_timestamp_seconds"),
        "{metrics}"
    );
    for path in [
        "/drain",
        "/renew",
        "/logging?level=trace",
        "/config_dump",
        "/certs",
    ] {
        let mut client = Client::connect(status).await.unwrap();
        let answer = client.send("POST", path, Bytes::new()).await.unwrap();
        assert_eq!(answer.status, 404, "{path}");
    }
}

#[tokio::test]
async fn the_admin_port_shows_certificates_and_settings_but_no_secret() {
    let (_app, pair) = pair().await;
    let admin = pair.server.addresses.admin;
    let certificates = apps::get(admin, "/certs").await.unwrap().body;
    assert!(
        certificates.contains("spiffe://cluster.local/ns/shop/sa/cart"),
        "{certificates}"
    );
    let shown: serde_json::Value = serde_json::from_str(&certificates).unwrap();
    let latest = pair.server.latest.get().unwrap();
    let identity = latest.identity();
    let leaf = &shown["certificate"]["certificates"][0];
    assert_eq!(leaf["serial"], identity.serial());
    assert_eq!(leaf["key"], "ECDSA P-256");
    let intermediate = &shown["certificate"]["certificates"][1];
    assert_eq!(leaf["issuer"], intermediate["subject"]);
    let root = &shown["trust_bundle"]["roots"][0];
    assert_eq!(intermediate["issuer"], root["subject"]);
    assert_eq!(shown["certificate"]["signing_root"], root["fingerprint"]);
    assert_eq!(
        shown["trust_bundle"]["id"],
        identity.bundle().id().to_string()
    );
    assert_eq!(shown["trust_bundle"]["source"], "authority");
    let due = shown["renewal"]["due"].as_u64().unwrap();
    let not_after = shown["certificate"]["not_after"].as_u64().unwrap();
    assert!(due < not_after, "{shown:#}");
    assert_eq!(shown["renewal"]["failures"], 0);
    let skew = shown["renewal"]["clock_skew_seconds"].as_f64().unwrap();
    assert!((-1.0..5.0).contains(&skew), "it is one machine: {skew}");
    let settings = apps::get(admin, "/config_dump").await.unwrap().body;
    assert!(
        settings.contains("\"BULKHEAD_MTLS_MODE\": \"STRICT\""),
        "{settings}"
    );
    let token = pair.mesh.token("shop", "cart").unwrap();
    let header = token.split('.').next().unwrap();
    for text in [&certificates, &settings] {
        assert!(!text.contains("PRIVATE KEY") && !text.contains(header));
    }
}

#[tokio::test]
async fn what_changes_something_needs_a_post_from_this_host() {
    let (_app, pair) = pair().await;
    let admin = pair.server.addresses.admin;
    assert_eq!(apps::get(admin, "/drain").await.unwrap().status, 405);
    // A web page reaches loopback by a name of its own, and by the usual one.
    for headers in [
        "host: evil.example:15000",
        "host: localhost:15000\r\norigin: https://evil.example",
    ] {
        let request = format!("POST /drain HTTP/1.1\r\nconnection: close\r\n{headers}\r\n\r\n");
        let answer = apps::talk(admin, request.as_bytes())
            .await
            .unwrap()
            .unwrap_or_default();
        assert!(
            answer.starts_with(b"HTTP/1.1 403 "),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[tokio::test]
async fn a_drain_can_be_asked_for_on_the_admin_port() {
    let (_app, mut pair) = pair().await;
    let mut client = Client::connect(pair.server.addresses.admin).await.unwrap();
    let answer = client.send("POST", "/drain", Bytes::new()).await.unwrap();
    assert_eq!(answer.status, 202);
    pair.server.drain_requested().await;
}

#[tokio::test]
async fn every_metric_that_a_proxy_shows_is_documented() {
    let (_app, pair) = pair().await;
    apps::get(pair.dial(), "/").await.unwrap();
    apps::get(pair.server_port(), "/").await.unwrap();
    let page = include_str!("../../../docs/metrics.md");
    for proxy in [&pair.client, &pair.server] {
        for line in proxy.monitoring.metrics().lines() {
            if let Some(name) = line
                .strip_prefix("# TYPE ")
                .and_then(|line| line.split(' ').next())
            {
                assert!(
                    page.contains(&format!("`{name}`"))
                        || page.contains(&format!("`{name}_total`")),
                    "{name} is not in docs/metrics.md"
                );
            }
        }
    }
}
