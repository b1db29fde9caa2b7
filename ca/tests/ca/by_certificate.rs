//! Renewal by the certificate that a workload has, and no token: off unless
//! somebody switched it on, for exactly its own name, and each time for half as
//! long.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_ca::app::{App, Dependencies};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::bundle::TrustBundle;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving;
use bulkhead_pki::svid::SvidChain;
use bulkhead_proto::ca::{CertificateAnswer, CertificateRequest};
use bulkhead_proto::workload_tokens::{MintJwtSvidRequest, WorkloadTokensClient};
use bulkhead_runtime::clock::Clock;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tonic::{Code, Status};

use crate::support::{
    Ca, Client, DAY, Logs, Place, cart, channel_by, now, request, token_for_cart, wanting,
};

async fn renewing() -> Ca {
    Ca::start_with(|config| config.renewal_by_certificate = true).await
}

/// A key and what the CA gave for it.
fn identity(key: &PrivateKey, answer: &CertificateAnswer) -> WorkloadIdentity {
    let chain = SvidChain::from_pem(&answer.chain.concat()).unwrap();
    let bundle = TrustBundle::from_pem(default_trust_domain(), &answer.roots).unwrap();
    WorkloadIdentity::new(&cart(), key, chain, bundle, now()).unwrap()
}

/// `shop/cart`, with a certificate that it has by its token.
async fn by_token(ca: &Ca) -> WorkloadIdentity {
    let (key, request) = request(None);
    let answer = ca.call(Some(&ca.token(&token_for_cart())), request).await;
    identity(&key, &answer.unwrap())
}

/// A call of a client that shows what this configuration has.
async fn call(
    ca: &Ca,
    tls: Arc<ClientConfig>,
    token: Option<&str>,
    request: CertificateRequest,
) -> Result<CertificateAnswer, Status> {
    let channel = channel_by(ca.app.address(), tls).await;
    let channel = channel.map_err(|error| Status::unknown(error.to_string()))?;
    Client::on(channel).call(token, request).await
}

fn showing(ca: &Ca, identity: &WorkloadIdentity) -> Arc<ClientConfig> {
    serving::client_config_as(identity, ca.app.trust_bundle().roots(), ["h2"]).unwrap()
}

/// Shows any certificate with any key.
fn showing_any(
    ca: &Ca,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
) -> Arc<ClientConfig> {
    let config = serving::client_config(ca.app.trust_bundle().roots(), ["h2"]).unwrap();
    let mut config = ClientConfig::clone(&*config);
    let key = key.to_der().unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.as_slice()));
    let key = any_supported_type(&key).unwrap();
    let shown: SingleCertAndKey = CertifiedKey::new(chain, key).into();
    config.client_auth_cert_resolver = Arc::new(shown);
    Arc::new(config)
}

/// A call without a token that shows `tls`, and why it got nothing.
async fn refusal(ca: &Ca, tls: Arc<ClientConfig>, request: CertificateRequest) -> (Code, String) {
    let logs = Logs::capture();
    let status = call(ca, tls, None, request).await.unwrap_err();
    let reason = logs.records()[0]["reason"].as_str().unwrap().to_owned();
    (status.code(), reason)
}

fn unauthenticated(reason: &str) -> (Code, String) {
    (Code::Unauthenticated, reason.to_owned())
}

fn validity(identity: &WorkloadIdentity) -> Duration {
    let (from, to) = (identity.not_before(), identity.not_after());
    to.duration_since(from).unwrap()
}

#[tokio::test]
async fn a_workload_without_a_token_renews_each_time_for_half_as_long_until_it_ends() {
    let ca = renewing().await;
    let mut held = by_token(&ca).await;
    let mut renewals = 0;
    loop {
        let logs = Logs::capture();
        let (key, request) = request(Some(&cart()));
        let answered = call(&ca, showing(&ca, &held), None, request).await;
        let record = &logs.records()[0];
        let Ok(answer) = answered else {
            assert_eq!(record["reason"], "certificate_renewed_too_often");
            break;
        };
        assert_eq!(record["authenticated_by"], "certificate");
        assert_eq!(record["renewed_serial"], held.serial());
        assert_eq!(record["identity"], cart().as_str());
        let next = identity(&key, &answer);
        assert!(validity(&next) <= validity(&held) / 2);
        assert!(next.not_after() <= now() + DAY);
        held = next;
        renewals += 1;
    }
    assert_eq!(renewals, 8, "from a day to some minutes");
    // With a token it begins anew.
    assert!(validity(&by_token(&ca).await) > DAY);
}

#[tokio::test]
async fn nobody_is_asked_for_a_certificate_where_that_is_off() {
    let ca = Ca::start().await;
    let held = by_token(&ca).await;
    let (_, wish) = request(None);
    let refused = refusal(&ca, showing(&ca, &held), wish).await;
    assert_eq!(refused, unauthenticated("token_missing"));
}

#[tokio::test]
async fn without_a_certificate_a_token_is_needed_as_ever() {
    let ca = renewing().await;
    let config = serving::client_config(ca.app.trust_bundle().roots(), ["h2"]).unwrap();
    let (_, wish) = request(None);
    let refused = refusal(&ca, config, wish).await;
    assert_eq!(refused, unauthenticated("token_missing"));
}

#[tokio::test]
async fn whoever_has_a_token_is_judged_by_that_alone() {
    let ca = renewing().await;
    let held = by_token(&ca).await;
    let (_, wish) = request(None);
    let refused = call(&ca, showing(&ca, &held), Some("garbage"), wish.clone()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let token = ca.token(&token_for_cart());
    let answer = call(&ca, showing(&ca, &held), Some(&token), wish)
        .await
        .unwrap();
    let chain = SvidChain::from_pem(&answer.chain.concat()).unwrap();
    assert!(chain.not_after() > now() + DAY / 2, "not halved");
}

#[tokio::test]
async fn a_certificate_is_renewed_for_its_own_name_and_no_other() {
    let ca = renewing().await;
    let held = by_token(&ca).await;
    let admin = SpiffeId::workload(&default_trust_domain(), "shop", "admin").unwrap();
    let (_, for_admin) = request(Some(&admin));
    let refused = refusal(&ca, showing(&ca, &held), for_admin).await;
    let foreign = "csr_foreign_identity".to_owned();
    assert_eq!(refused, (Code::PermissionDenied, foreign));
    let (_, mut on_behalf) = request(None);
    on_behalf.on_behalf_of = Some(admin.to_string());
    let refused = refusal(&ca, showing(&ca, &held), on_behalf).await;
    assert_eq!(
        refused,
        (Code::PermissionDenied, "impersonation".to_owned())
    );
}

#[tokio::test]
async fn a_certificate_gets_no_tokens() {
    let ca = renewing().await;
    let held = by_token(&ca).await;
    let channel = channel_by(ca.app.address(), showing(&ca, &held)).await;
    let wish = MintJwtSvidRequest {
        audiences: vec!["reports".into()],
        lifetime: 0,
    };
    let mut tokens = WorkloadTokensClient::new(channel.unwrap());
    let refused = tokens.mint_jwt_svid(wish).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_certificate_below_a_root_that_is_not_in_the_bundle_is_not_renewed() {
    let (ca, other) = (renewing().await, renewing().await);
    // Of another mesh with the same name, as of one whose root was retired.
    let foreign = by_token(&other).await;
    let (_, wish) = request(None);
    let refused = refusal(&ca, showing(&ca, &foreign), wish.clone()).await;
    assert_eq!(refused, unauthenticated("certificate_unverified"));
    // It ends nothing but that: with a token its owner gets what it asks for.
    let token = ca.token(&token_for_cart());
    let answered = call(&ca, showing(&ca, &foreign), Some(&token), wish).await;
    answered.unwrap();
}

#[tokio::test]
async fn a_certificate_that_signs_is_nobodys() {
    let ca = renewing().await;
    for name in ["intermediate-1", "root-1"] {
        let read = |end: &str| {
            let stored = ca.place.store().join("current");
            std::fs::read_to_string(stored.join(format!("{name}.{end}"))).unwrap()
        };
        let chain = Certificate::all_from_pem(&read("crt"), 100_000).unwrap();
        let chain = chain.iter().map(|part| part.der().clone()).collect();
        let key = PrivateKey::from_pem(&read("key")).unwrap();
        let (_, wish) = request(None);
        let refused = refusal(&ca, showing_any(&ca, chain, &key), wish).await;
        assert_eq!(refused, unauthenticated("certificate_unverified"), "{name}");
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    let ca = renewing().await;
    let held = by_token(&ca).await;
    let stolen = showing_any(&ca, held.chain().to_der(), &PrivateKey::generate().unwrap());
    let (_, wish) = request(None);
    let refused = call(&ca, stolen, None, wish).await.unwrap_err();
    assert_ne!(refused.code(), Code::Ok);
    assert!(
        ca.monitoring
            .metrics()
            .contains("bulkhead_ca_tls_handshake_failures_total 1")
    );
    assert!(
        ca.monitoring
            .metrics()
            .contains("bulkhead_ca_certificates_issued_total 1")
    );
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_not_renewed() {
    let (place, clock) = (Place::new(), Clock::stopped_at(now()));
    let mut config = place.config();
    config.renewal_by_certificate = true;
    let given = Dependencies {
        clock: clock.clone(),
        ..Dependencies::default()
    };
    let monitoring = given.monitoring.clone();
    let app = App::start(config, given).await.unwrap();
    let ca = Ca {
        app,
        monitoring,
        place,
    };
    let key = PrivateKey::generate().unwrap();
    let mut wish = wanting(bulkhead_pki::csr::create(&key, None).unwrap());
    wish.lifetime = Some(DAY / 24);
    let token = ca.token(&token_for_cart());
    let held = identity(&key, &ca.call(Some(&token), wish.clone()).await.unwrap());
    call(&ca, showing(&ca, &held), None, wish.clone())
        .await
        .unwrap();
    clock.advance(DAY / 24 + Duration::from_secs(1));
    let refused = refusal(&ca, showing(&ca, &held), wish).await;
    assert_eq!(refused, unauthenticated("certificate_expired"));
}
