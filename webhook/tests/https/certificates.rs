//! The serving certificate changes while reviews go on.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bulkhead_pki::serving::{ServerName, ServingAuthority};
use bulkhead_runtime::clock::Clock;
use bulkhead_webhook::app::App;
use tokio::time::timeout;

use crate::client::{Client, config, monitoring, start_with};
use crate::pods::{pod, review};

const HOUR: Duration = Duration::from_secs(3600);

/// A CA of somebody else's, which writes certificates into files.
struct Issuer(ServingAuthority);

impl Issuer {
    fn new(name: &str) -> Self {
        Self(ServingAuthority::new(name, 24 * HOUR, Clock::system().now()).unwrap())
    }

    /// Writes a new certificate and the CA's.
    async fn write(&self, directory: &Path) {
        self.write_pair(directory).await;
        std::fs::write(directory.join("ca.crt"), self.0.certificate().to_pem()).unwrap();
    }

    /// Writes a new certificate, one file after the other as most tools do.
    async fn write_pair(&self, directory: &Path) {
        let names = [ServerName::parse("127.0.0.1").unwrap()];
        let made = self.0.issue(&names, HOUR, Clock::system().now()).unwrap();
        let key = made.key().to_pem().unwrap();
        for (file, text) in [
            ("tls.key", key.as_str()),
            ("tls.crt", made.chain_pem().as_str()),
        ] {
            std::fs::write(directory.join(file), text).unwrap();
            tokio::task::yield_now().await;
        }
    }
}

async fn start_with_files(directory: &Path) -> App {
    let path = |file: &str| directory.join(file).display().to_string();
    start_with(config(&[
        ("BULKHEAD_WEBHOOK_TLS_CERT", &path("tls.crt")),
        ("BULKHEAD_WEBHOOK_TLS_KEY", &path("tls.key")),
        ("BULKHEAD_WEBHOOK_TLS_CA", &path("ca.crt")),
        ("BULKHEAD_WEBHOOK_ROLLOUT_GRACE", "1s"),
    ]))
    .await
}

/// Calls the way an API server does that learns of the bundle a moment after
/// it has changed: on a new connection each time and on one kept from before,
/// until `enough` certificates were seen. Every call must succeed.
async fn call_until(app: &App, enough: usize) -> BTreeSet<Vec<u8>> {
    let mut seen = BTreeSet::new();
    let body = review("mesh", &pod()).to_string();
    let mut kept = Client::of(app).await;
    let mut roots = app.ca_bundle().await;
    while seen.len() < enough {
        let mut fresh = Client::connect(app.address(), &roots).await.unwrap();
        seen.insert(fresh.certificate.to_vec());
        for client in [&mut kept, &mut fresh] {
            assert_eq!(client.post(body.clone()).await.review()["allowed"], true);
        }
        roots = app.ca_bundle().await;
    }
    seen
}

#[tokio::test]
async fn files_with_a_new_certificate_and_then_a_new_ca_are_served_without_a_failed_review() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Issuer::new("first"), Issuer::new("second"));
    first.write(directory.path()).await;
    let app = start_with_files(directory.path()).await;
    let calls = timeout(Duration::from_secs(60), call_until(&app, 3));
    let writes = async {
        let (address, roots) = (app.address(), app.ca_bundle().await);
        let before = Client::connect(address, &roots).await.unwrap().certificate;
        first.write(directory.path()).await;
        // The next change comes when this one is served.
        while Client::connect(address, &roots).await.unwrap().certificate == before {}
        second.write(directory.path()).await;
    };
    let (seen, ()) = tokio::join!(calls, writes);
    assert_eq!(seen.unwrap().len(), 3);
    let bundle = app.ca_bundle().await;
    assert_eq!(
        bundle,
        second.0.certificate().to_pem(),
        "the old CA is gone in the end"
    );
}

#[tokio::test]
async fn files_that_do_not_fit_together_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Issuer::new("first"), Issuer::new("second"));
    first.write(directory.path()).await;
    let app = start_with_files(directory.path()).await;
    let before = Client::of(&app).await.certificate;
    // The third file is still the one of before.
    second.write_pair(directory.path()).await;
    let noticed = async {
        loop {
            let (_, metrics) = monitoring(&app, "/metrics").await;
            if !metrics.contains("bulkhead_webhook_certificate_errors_total 0") {
                break;
            }
        }
    };
    timeout(Duration::from_secs(30), noticed).await.unwrap();
    assert_eq!(Client::of(&app).await.certificate, before);
}

#[tokio::test]
async fn without_files_certificate_and_ca_renew_themselves_without_a_failed_review() {
    let app = start_with(config(&[
        ("BULKHEAD_WEBHOOK_CERTIFICATE_LIFETIME", "4s"),
        ("BULKHEAD_WEBHOOK_AUTHORITY_LIFETIME", "8s"),
        ("BULKHEAD_WEBHOOK_ROLLOUT_GRACE", "200ms"),
    ]))
    .await;
    let first_bundle = app.ca_bundle().await;
    let calls = timeout(Duration::from_secs(60), call_until(&app, 5));
    assert_eq!(calls.await.unwrap().len(), 5);
    let last_bundle = app.ca_bundle().await;
    assert_ne!(first_bundle, last_bundle, "the CA was renewed too");
}
