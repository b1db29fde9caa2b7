//! The webhook's certificate and its CA are replaced while pods are created.

use std::collections::BTreeSet;

use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving::client_config;
use bulkhead_tests::namespace::Namespace;
use bulkhead_webhook::app::App;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cluster::{Cluster, injects_into, until};
use crate::stream::Stream;

/// Lifetimes of seconds stand for those of weeks: the plan is in fractions of
/// them.
const SHORT: &[(&str, &str)] = &[
    ("BULKHEAD_WEBHOOK_CERTIFICATE_LIFETIME", "4s"),
    ("BULKHEAD_WEBHOOK_AUTHORITY_LIFETIME", "10s"),
    ("BULKHEAD_WEBHOOK_ROLLOUT_GRACE", "1s"),
];

/// Connects as the API server does, trusting what it trusts at this moment, and
/// returns the certificate that was served.
async fn connect(cluster: &Cluster, webhook: &App) -> Vec<u8> {
    let registered = cluster.registration().await.webhooks.unwrap_or_default();
    let bundles: BTreeSet<Vec<u8>> = registered
        .into_iter()
        .filter_map(|webhook| Some(webhook.client_config.ca_bundle?.0))
        .collect();
    assert_eq!(bundles.len(), 1, "every webhook has the same bundle");
    let bundle =
        String::from_utf8_lossy(&bundles.into_iter().collect::<Vec<_>>().concat()).into_owned();
    let roots = Roots::from_pem(&bundle).expect("the registered bundle is PEM");

    let config = client_config(&roots, ["http/1.1"]).expect("the roots can be used");
    let stream = TcpStream::connect(webhook.address()).await;
    let name = ServerName::from(webhook.address().ip());
    let connection = TlsConnector::from(config)
        .connect(name, stream.expect("the webhook listens"))
        .await
        .expect("the API server's bundle covers what is served");
    let served = connection.get_ref().1.peer_certificates();
    served.expect("a handshake shows a certificate")[0].to_vec()
}

#[tokio::test]
async fn certificates_and_cas_change_under_a_stream_of_pods_with_none_failing() {
    let cluster = Cluster::start().await;
    let labels = [("istio-injection", "enabled")];
    let namespace = Namespace::create(&cluster.client().await, &labels, &[]).await;
    let webhook = cluster.start_webhook(SHORT).await;
    injects_into(&namespace).await;

    let stream = Stream::start(namespace);
    let (mut certificates, mut bundles) = (BTreeSet::new(), BTreeSet::new());
    let enough = until(async || {
        certificates.insert(connect(&cluster, &webhook).await);
        bundles.insert(webhook.ca_bundle().await);
        // Each change of the CA shows as three bundles: with the next CA, with
        // the retired one, and without it.
        (certificates.len() >= 6 && bundles.len() >= 6).then_some(())
    });
    let enough = enough.await;
    assert!(
        enough.is_some(),
        "{} certificates and {} bundles only",
        certificates.len(),
        bundles.len()
    );
    assert!(stream.stop().await > 100, "pods were created all the time");
}
