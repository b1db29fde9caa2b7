//! The X.509-SVID profile.

use std::time::Duration;

use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::svid::SvidChain;
use bulkhead_proto::workload_api::{
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use tonic::{Code, Streaming};

use super::mesh::{Mesh, Pod, cart, domain, secured};

async fn svids(pod: &Pod) -> Streaming<X509svidResponse> {
    let request = secured(X509svidRequest {});
    let stream = pod.client().await.fetch_x509svid(request).await;
    stream.unwrap().into_inner()
}

async fn bundles(pod: &Pod) -> Streaming<X509BundlesResponse> {
    let request = secured(X509BundlesRequest {});
    let stream = pod.client().await.fetch_x509_bundles(request).await;
    stream.unwrap().into_inner()
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    stream.message().await.unwrap().unwrap()
}

/// The certificates of a text of DER, one after the other.
fn certificates(mut der: &[u8]) -> Vec<Certificate> {
    let mut found = Vec::new();
    while let [0x30, 0x82, high, low, ..] = der {
        let length = 4 + usize::from(u16::from_be_bytes([*high, *low]));
        let (first, rest) = der.split_at(length);
        found.push(Certificate::from_der(first.to_vec().into()).unwrap());
        der = rest;
    }
    assert!(der.is_empty());
    found
}

#[tokio::test]
async fn endpoint_6_without_a_certificate_the_api_is_unavailable() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let mut client = pod.client().await;
    let refused = client.fetch_x509svid(secured(X509svidRequest {})).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    let refused = client.fetch_x509_bundles(secured(X509BundlesRequest {}));
    assert_eq!(refused.await.unwrap_err().code(), Code::Unavailable);

    pod.publish(&mesh);
    next(&mut svids(&pod).await).await;
    mesh.clock.advance(Duration::from_secs(2 * 3600));
    let expired = client.fetch_x509svid(secured(X509svidRequest {})).await;
    assert_eq!(expired.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn api_5_2_1_the_first_response_comes_at_once_and_has_all_mandatory_fields() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    pod.publish(&mesh);
    let response = next(&mut svids(&pod).await).await;
    let [svid] = response.svids.as_slice() else {
        panic!("one workload has one SVID");
    };
    assert_eq!(svid.spiffe_id, cart().as_str());
    // The leaf first, then its signer; the root is in the bundle only.
    let chain = certificates(&svid.x509_svid);
    assert_eq!(chain.len(), 2);
    let der = chain.iter().map(|certificate| certificate.der().clone());
    let chain = SvidChain::from_der(der.collect()).unwrap();
    assert_eq!(chain.id(), &cart());
    let roots = certificates(&svid.bundle);
    assert_eq!(roots, mesh.bundle().roots().certificates());
    // PKCS#8, unencrypted: what reads it is told no password.
    let key = PrivateKey::from_der(&svid.x509_svid_key).unwrap();
    assert!(chain.is_for(key.public_key()));
    assert!(response.federated_bundles.is_empty());
    assert!(svid.hint.is_empty());
}

#[tokio::test]
async fn api_4_3_a_renewal_is_pushed_with_everything() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    pod.publish(&mesh);
    let mut stream = svids(&pod).await;
    let first = next(&mut stream).await;
    pod.publish(&mesh);
    let second = next(&mut stream).await;
    assert_ne!(first.svids[0].x509_svid, second.svids[0].x509_svid);
    assert_ne!(first.svids[0].x509_svid_key, second.svids[0].x509_svid_key);
    assert_eq!(first.svids[0].bundle, second.svids[0].bundle);
    let key = PrivateKey::from_der(&second.svids[0].x509_svid_key).unwrap();
    let leaf = certificates(&second.svids[0].x509_svid).swap_remove(0);
    assert_eq!(&leaf.public_key().unwrap(), key.public_key());
}

#[tokio::test]
async fn api_4_3_a_new_root_is_pushed_with_everything() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    pod.publish(&mesh);
    let (mut svids, mut bundles) = (svids(&pod).await, bundles(&pod).await);
    let first = next(&mut svids).await;
    next(&mut bundles).await;
    mesh.publish_another_root();
    pod.adopt_bundle(&mesh);
    let second = next(&mut svids).await;
    assert_eq!(first.svids[0].x509_svid, second.svids[0].x509_svid);
    assert_eq!(certificates(&second.svids[0].bundle).len(), 2);
    let bundle = next(&mut bundles).await.bundles;
    assert_eq!(bundle[domain().id().as_str()], second.svids[0].bundle);
}

#[tokio::test]
async fn api_5_2_2_bundles_have_that_of_the_own_trust_domain() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    pod.publish(&mesh);
    let bundles = next(&mut bundles(&pod).await).await.bundles;
    assert_eq!(bundles.len(), 1);
    let roots = certificates(&bundles["spiffe://cluster.local"]);
    assert_eq!(roots, mesh.bundle().roots().certificates());
}

#[tokio::test]
async fn who_only_verifies_hears_nothing_of_renewals() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    pod.publish(&mesh);
    let mut stream = bundles(&pod).await;
    next(&mut stream).await;
    pod.publish(&mesh);
    pod.publish(&mesh);
    mesh.publish_another_root();
    pod.adopt_bundle(&mesh);
    let second = next(&mut stream).await;
    assert_eq!(
        certificates(&second.bundles["spiffe://cluster.local"]).len(),
        2
    );
}
