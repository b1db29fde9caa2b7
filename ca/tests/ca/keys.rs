//! The CA's own keys and certificates: kept, shared, renewed.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_ca::app::{App, Dependencies};
use bulkhead_ca::authenticate::local_issuer::LocalIssuer;
use bulkhead_ca::issuer::Issuer;
use bulkhead_ca::issuer::rotating::RotatingIssuer;
use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::serving::ServingTls;
use bulkhead_pki::serving::ServerName;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_runtime::readiness::Readiness;

use crate::support::{
    Ca, Client, DAY, ISSUER, Place, issuer, issuer_with, now, request, token_for_cart,
};

async fn start(place: &Place) -> App {
    App::start(place.config(), Dependencies::default())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_restart_keeps_the_root() {
    let place = Place::new();
    let app = start(&place).await;
    let bundle = app.trust_bundle();
    assert_eq!(
        app.drain(Duration::from_secs(5)).await,
        drain::Outcome::Finished
    );
    assert_eq!(start(&place).await.trust_bundle(), bundle);
    let published = std::fs::read_to_string(place.store().join("roots.pem")).unwrap();
    assert_eq!(published, bundle.to_pem());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_the_same_instant_agree_on_one_root() {
    let place = Place::new();
    let (one, two, three) = tokio::join!(start(&place), start(&place), start(&place));
    let bundle = one.trust_bundle();
    assert_eq!(two.trust_bundle(), bundle);
    assert_eq!(three.trust_bundle(), bundle);
    // Each serves under it, and issues what the others' clients accept.
    for app in [&one, &two, &three] {
        let mut client = Client::connect(app.address(), bundle.roots()).await;
        let token = place.issuer.mint(&token_for_cart(), now()).unwrap();
        let answer = client.call(Some(&token), request(None).1).await.unwrap();
        assert_eq!(answer.roots, bundle.to_pem());
    }
}

#[tokio::test]
async fn keys_that_others_can_read_are_not_used() {
    let place = Place::new();
    start(&place).await.drain(Duration::from_secs(5)).await;
    let key = place.store().join("current/intermediate-1.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let refused = App::start(place.config(), Dependencies::default()).await;
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("intermediate-1.key"), "{error}");
    assert!(error.contains("644"), "{error}");
}

#[tokio::test]
async fn parts_that_do_not_fit_together_are_not_used() {
    let place = Place::new();
    start(&place).await.drain(Duration::from_secs(5)).await;
    let current = place.store().join("current");
    std::fs::copy(
        current.join("root-1.key"),
        current.join("intermediate-1.key"),
    )
    .unwrap();
    let refused = App::start(place.config(), Dependencies::default()).await;
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("do not fit together"), "{error}");
    std::fs::remove_file(current.join("state.json")).unwrap();
    let refused = App::start(place.config(), Dependencies::default()).await;
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("lacks state.json"), "{error}");
}

/// The certificate that signs, as a chain to be presented has it.
async fn signer(issuer: &RotatingIssuer) -> String {
    let name = [ServerName::parse("a.b").unwrap()];
    let certificate = issuer.issue_serving(&name, DAY).await.unwrap();
    let chain = certificate.chain_pem();
    chain.splitn(3, "-----BEGIN").nth(2).unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_intermediate_is_renewed_at_half_of_its_life_and_replicas_follow() {
    let place = Place::new();
    let clock = Clock::paced_from(now());
    let one = issuer(&place, &clock).await;
    let two = issuer(&place, &clock).await;
    let (first, bundle) = (signer(&one).await, one.trust_bundle());
    assert_eq!(signer(&two).await, first);

    tokio::time::advance(182 * DAY).await;
    one.look().await.unwrap();
    assert_eq!(signer(&one).await, first, "not due yet");

    tokio::time::advance(DAY).await;
    one.look().await.unwrap();
    assert_eq!(signer(&one).await, first, "the next is in the store");
    tokio::time::advance(Duration::from_secs(61)).await;
    one.look().await.unwrap();
    let second = signer(&one).await;
    assert_ne!(second, first);
    assert_eq!(signer(&two).await, first, "not seen yet, and still good");
    two.look().await.unwrap();
    assert_eq!(signer(&two).await, second);
    assert_eq!(
        one.trust_bundle().roots(),
        bundle.roots(),
        "the root is the same"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_gone_from_the_metrics_as_well() {
    let place = Place::new();
    let clock = Clock::paced_from(now());
    let monitoring = Monitoring::default();
    let metrics = Metrics::new(&monitoring);
    let issuer = issuer_with(&place, &clock, place.config().lifetimes, metrics).await;
    let expiries = || {
        let text = monitoring.metrics();
        let name = "bulkhead_ca_certificate_expiry_timestamp_seconds{certificate=\"intermediate\",";
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let lines = lines.map(|line| line.split('}').next().unwrap().to_owned());
        let mut labels: Vec<_> = lines.collect();
        labels.sort();
        labels
    };
    assert_eq!(expiries(), ["generation=\"1\",state=\"active\""]);
    tokio::time::advance(183 * DAY).await;
    issuer.look().await.unwrap();
    let both = [
        "generation=\"1\",state=\"active\"",
        "generation=\"2\",state=\"published\"",
    ];
    assert_eq!(expiries(), both);
    tokio::time::advance(Duration::from_secs(61)).await;
    issuer.look().await.unwrap();
    assert_eq!(expiries(), ["generation=\"2\",state=\"active\""]);
}

#[tokio::test]
async fn the_servers_own_certificate_is_renewed_before_it_expires_without_a_restart() {
    let place = Place::new();
    let clock = Clock::stopped_at(now());
    let issuer = issuer(&place, &clock).await;
    let names = vec![ServerName::parse("a.b").unwrap()];
    let tls = serving(issuer, names, &clock, Metrics::default()).await;
    let (config, not_after) = (tls.config().unwrap(), tls.not_after());
    tls.renew_if_due().await.unwrap();
    assert!(Arc::ptr_eq(&tls.config().unwrap(), &config), "not due yet");
    clock.advance(DAY / 10 * 9);
    tls.renew_if_due().await.unwrap();
    assert!(!Arc::ptr_eq(&tls.config().unwrap(), &config));
    assert!(tls.not_after() > not_after);
}

/// What the server shows its clients.
async fn serving(
    issuer: Arc<RotatingIssuer>,
    names: Vec<ServerName>,
    clock: &Clock,
    metrics: Metrics,
) -> ServingTls {
    let ready = Readiness::default().condition("valid_certificate");
    ServingTls::open(issuer, names, false, clock.clone(), metrics, ready).await
}

#[tokio::test]
async fn the_token_issuers_keys_are_read_again_when_they_change() {
    let ca = Ca::start().await;
    let old = ca.token(&token_for_cart());
    ca.call(Some(&old), request(None).1).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let other = LocalIssuer::open(directory.path(), ISSUER).unwrap();
    let new = other.mint(&token_for_cart(), now()).unwrap();
    ca.call(Some(&new), request(None).1).await.unwrap_err();

    // A file that is no key set changes nothing.
    let path = ca.place.issuer.jwks_path();
    std::fs::write(path, "{}").unwrap();
    ca.call(Some(&old), request(None).1).await.unwrap();
    std::fs::copy(other.jwks_path(), path).unwrap();
    let followed = async {
        while ca.call(Some(&new), request(None).1).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), followed)
        .await
        .unwrap();
    ca.call(Some(&old), request(None).1).await.unwrap_err();
}
