//! What a caller gets.

use std::time::Duration;

use bulkhead_pki::bundle::TrustBundle;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::svid::SvidChain;
use bulkhead_proto::ca::CertificateAnswer;

use crate::support::{Ca, DAY, HOUR, cart, now, request, token_for_cart};

fn identity(key: &PrivateKey, answer: &CertificateAnswer) -> WorkloadIdentity {
    let chain = SvidChain::from_pem(&answer.chain.concat()).unwrap();
    let domain = bulkhead_core::sidecar::default_trust_domain();
    let bundle = TrustBundle::from_pem(domain, &answer.roots).unwrap();
    WorkloadIdentity::new(&cart(), key, chain, bundle, now()).unwrap()
}

#[tokio::test]
async fn a_pod_gets_the_identity_of_its_service_account() {
    let ca = Ca::start().await;
    let token = ca.token(&token_for_cart());
    for wish in [Some(cart()), None] {
        let (key, request) = request(wish.as_ref());
        let answer = ca.call(Some(&token), request).await.unwrap();
        let identity = identity(&key, &answer);
        assert_eq!(identity.id(), &cart());
        assert_eq!(identity.bundle().roots(), ca.app.trust_bundle().roots());
    }
}

#[tokio::test]
async fn the_answer_is_leaf_then_intermediates_then_all_roots_in_one_element() {
    let ca = Ca::start().await;
    let (_, request) = request(None);
    let answer = ca
        .call(Some(&ca.token(&token_for_cart())), request)
        .await
        .unwrap();
    let parts: Vec<Vec<Certificate>> = answer
        .chain
        .iter()
        .map(|text| Certificate::all_from_pem(text, 10_000).unwrap())
        .collect();
    assert_eq!(parts.len(), 2);
    assert!(parts.iter().all(|part| part.len() == 1));
    assert_eq!(answer.roots, ca.app.trust_bundle().to_pem());
}

#[tokio::test]
async fn a_lifetime_is_clamped_to_the_most_allowed_and_the_certificate_shows_it() {
    let ca = Ca::start_with(|config| config.lifetimes.default = 2 * HOUR).await;
    let token = ca.token(&token_for_cart());
    for (wish, granted) in [
        (None, 2 * HOUR),
        (Some(HOUR), HOUR),
        (Some(90 * DAY), DAY),
        (Some(Duration::from_secs(u64::MAX >> 1)), DAY),
    ] {
        let (key, mut request) = request(None);
        request.lifetime = wish;
        let before = now();
        let answer = ca.call(Some(&token), request).await.unwrap();
        let identity = identity(&key, &answer);
        let after = now();
        assert!(identity.not_after() >= before + granted, "{wish:?}");
        assert!(identity.not_after() <= after + granted, "{wish:?}");
        assert!(identity.not_before() <= after - Duration::from_secs(120));
    }
}

#[tokio::test]
async fn many_calls_share_a_connection_and_each_serial_number_is_new() {
    let ca = Ca::start().await;
    let token = ca.token(&token_for_cart());
    let mut client = ca.client().await;
    let mut serials = std::collections::HashSet::new();
    for _ in 0..50 {
        let (key, request) = request(Some(&cart()));
        let answer = client.call(Some(&token), request).await.unwrap();
        assert!(serials.insert(identity(&key, &answer).serial()));
    }
}

#[tokio::test]
async fn asking_on_ones_own_behalf_is_no_impersonation() {
    let ca = Ca::start().await;
    let (_, mut request) = request(None);
    request.on_behalf_of = Some(cart().as_str().to_owned());
    let token = ca.token(&token_for_cart());
    assert!(ca.call(Some(&token), request).await.is_ok());
}

#[tokio::test]
async fn metrics_count_what_was_issued_and_refused_and_when_things_expire() {
    let ca = Ca::start().await;
    let token = ca.token(&token_for_cart());
    let (_, good) = request(None);
    ca.call(Some(&token), good.clone()).await.unwrap();
    ca.call(None, good).await.unwrap_err();
    let metrics = ca.monitoring.metrics();
    for line in [
        "bulkhead_ca_certificates_issued_total 1",
        "bulkhead_ca_requests_refused_total{reason=\"token_missing\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    for certificate in ["root", "intermediate", "serving"] {
        let name = "bulkhead_ca_certificate_expiry_timestamp_seconds";
        assert!(metrics.contains(&format!("{name}{{certificate=\"{certificate}\",")));
    }
    assert!(ca.monitoring.readiness.missing().is_empty());
}
