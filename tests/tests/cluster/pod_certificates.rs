//! A pod without a sidecar, with a certificate by Kubernetes' own way: kubelet makes
//! the key, asks our CA, and mounts what it gets beside the roots of the mesh.

use bulkhead_tests::cluster::apps::server;
use bulkhead_tests::cluster::beside_others;
use serde_json::json;

use crate::peers::{
    ACCOUNT, CHAIN, KEY, ROOTS, SETTINGS, create_secret, envoy, settings, talk_both_ways,
};

const SIGNER: &str = "ca.bulkhead.io/x509-svid";

#[tokio::test]
async fn a_pod_whose_kubelet_mounts_its_certificate_is_a_peer_as_server_and_as_client() {
    let cluster = beside_others().await;
    let strict = [("bulkhead.io/mtls-mode", "STRICT")];
    let namespace = cluster.meshed_namespace_with(&strict).await;
    namespace.create_service_account(ACCOUNT).await;
    let (web, client) = tokio::join!(
        server("web").start(&namespace),
        server("client").start(&namespace)
    );
    let settings = settings(&namespace, &web.pod().await).to_string();
    create_secret(&namespace, "settings", &[(SETTINGS, &settings)]).await;
    let certificate = json!({
        "signerName": SIGNER, "keyType": "ECDSAP256",
        "keyPath": KEY, "certificateChainPath": CHAIN,
    });
    let bundle = json!({"signerName": SIGNER, "labelSelector": {}, "path": ROOTS});
    let sources = [
        json!({"podCertificate": certificate}),
        json!({"clusterTrustBundle": bundle}),
        json!({"secret": {"name": "settings"}}),
    ];
    let without_sidecar = envoy(json!({"projected": {"sources": sources}}));
    let without_sidecar = without_sidecar.start(&namespace).await;
    talk_both_ways(&namespace, [&web, &client], &without_sidecar).await;
}
