//! A CA that comes back when what it signs with has expired, because nobody ran
//! it, or because nobody above it signed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_ca::app::{App, Dependencies};
use bulkhead_ca::config::{Config, UpstreamConfig, UpstreamSource};
use bulkhead_ca::issuer::Issuer;
use bulkhead_ca::issuer::status::UpstreamSigns;
use bulkhead_ca::metrics::Metrics;
use bulkhead_ca::rotation::orders::{FileOrders, Order};
use bulkhead_ca::serving::ServingTls;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving::ServerName;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_runtime::readiness::Readiness;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::{Client, DAY, HOUR, Place, issuer_with, now, request, token_for_cart};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// More than anything here takes on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(90);

/// Settings whose rotations do not take minutes.
fn config(place: &Place) -> Config {
    Config {
        rotation_pause: Duration::from_millis(100),
        ..place.config()
    }
}

/// A CA ran that long ago, and none has since.
async fn ran(config: Config, ago: Duration) -> Roots {
    let given = Dependencies {
        clock: Clock::stopped_at(now() - ago),
        ..Dependencies::default()
    };
    let app = App::start(config, given).await.unwrap();
    let roots = app.trust_bundle().roots().clone();
    app.drain(Duration::from_secs(5)).await;
    roots
}

async fn start(config: Config) -> (App, Monitoring) {
    let given = Dependencies::default();
    let monitoring = given.monitoring.clone();
    (App::start(config, given).await.unwrap(), monitoring)
}

async fn until_ready(monitoring: &Monitoring) {
    let ready = async {
        while !monitoring.readiness.missing().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, ready).await;
    in_time.unwrap_or_else(|_| panic!("it lacks {:?}", monitoring.readiness.missing()));
}

/// A workload that trusts these roots alone gets a certificate.
async fn certifies(place: &Place, app: &App, roots: &Roots) {
    let token = place.issuer.mint(&token_for_cart(), now()).unwrap();
    let mut client = Client::connect(app.address(), roots).await;
    let answer = client.call(Some(&token), request(None).1).await.unwrap();
    assert_eq!(answer.roots, app.trust_bundle().to_pem());
}

#[tokio::test]
async fn an_intermediate_that_expired_while_nobody_ran_is_replaced_at_the_start() {
    let place = Place::new();
    let roots = ran(config(&place), 400 * DAY).await;
    let (app, monitoring) = start(config(&place)).await;
    until_ready(&monitoring).await;
    let same = app.trust_bundle().roots().to_pem();
    assert_eq!(same, roots.to_pem(), "the root is the same");
    certifies(&place, &app, &roots).await;
}

#[tokio::test]
async fn a_root_that_expired_while_nobody_ran_is_followed_by_a_new_one_at_the_start() {
    let place = Place::new();
    let old = ran(config(&place), 11 * YEAR).await;
    let (app, monitoring) = start(config(&place)).await;
    until_ready(&monitoring).await;
    let bundle = app.trust_bundle();
    let new = &bundle.roots().certificates()[0];
    assert_ne!(*new, old.certificates()[0]);
    assert!(new.not_after() > now() + 9 * YEAR);
    let new = Roots::new([new.clone()]).unwrap();
    certifies(&place, &app, &new).await;
    let published = std::fs::read_to_string(place.store().join("roots.pem")).unwrap();
    let published = Roots::from_pem(&published).unwrap();
    assert_eq!(published.certificates()[0], new.certificates()[0]);
}

/// Somebody else's root, in files.
fn upstream(place: &Place, began: Duration) -> PathBuf {
    let root = Authority::new_root(&default_trust_domain(), 10 * YEAR, now() - began).unwrap();
    let directory = place.store().with_file_name("upstream");
    std::fs::create_dir(&directory).unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    write("ca.crt", &root.certificate().to_pem());
    write("tls.crt", &root.certificate().to_pem());
    write("tls.key", &root.key().to_pem().unwrap());
    directory
}

fn below(directory: &Path, place: &Place) -> Config {
    Config {
        upstream: Some(UpstreamConfig {
            source: UpstreamSource::Files(directory.to_owned()),
            signs: UpstreamSigns::Intermediate,
            roots_file: None,
        }),
        ..config(place)
    }
}

#[tokio::test]
async fn who_signs_above_may_be_away_when_the_ca_starts_and_come_back_later() {
    let place = Place::new();
    let directory = upstream(&place, 400 * DAY);
    let roots = ran(below(&directory, &place), 400 * DAY).await;
    let away = directory.with_file_name("away");
    std::fs::rename(&directory, &away).unwrap();

    let (app, monitoring) = start(below(&directory, &place)).await;
    assert_eq!(monitoring.readiness.missing(), ["valid_certificate"]);
    // A caller hears at once that it should come again.
    let mut caller = TcpStream::connect(app.address()).await.unwrap();
    let heard = tokio::time::timeout(PATIENCE, caller.read(&mut [0])).await;
    assert!(matches!(heard.unwrap(), Ok(0) | Err(_)));
    assert_eq!(monitoring.readiness.missing(), ["valid_certificate"]);

    std::fs::rename(&away, &directory).unwrap();
    until_ready(&monitoring).await;
    certifies(&place, &app, &roots).await;
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_says_so_and_goes_on_when_something_signs() {
    let place = Place::new();
    let clock = Clock::stopped_at(now());
    let issuer = issuer_with(&place, &clock, place.config().lifetimes, Metrics::default()).await;
    let readiness = Readiness::default();
    let names = vec![ServerName::parse("a.b").unwrap()];
    let ready = readiness.condition("valid_certificate");
    let issues: Arc<dyn Issuer> = issuer.clone();
    let tls = ServingTls::open(
        issues,
        names,
        false,
        clock.clone(),
        Metrics::default(),
        ready,
    )
    .await;
    assert!(tls.config().is_some() && readiness.missing().is_empty());

    clock.advance(400 * DAY);
    tls.look().await;
    assert!(tls.config().is_none());
    assert_eq!(readiness.missing(), ["valid_certificate"]);

    issuer.look().await.unwrap();
    tls.look().await;
    assert!(tls.config().is_some() && readiness.missing().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_below_intermediates_that_live_for_hours_always_has_a_certificate() {
    let place = Place::new();
    let clock = Clock::paced_from(now());
    let mut lifetimes = place.config().lifetimes;
    lifetimes.intermediate = 10 * HOUR;
    let issuer = issuer_with(&place, &clock, lifetimes, Metrics::default()).await;
    let names = vec![ServerName::parse("a.b").unwrap()];
    let ready = Readiness::default().condition("valid_certificate");
    let issues: Arc<dyn Issuer> = issuer.clone();
    let tls = ServingTls::open(
        issues,
        names,
        false,
        clock.clone(),
        Metrics::default(),
        ready,
    )
    .await;
    for hour in 0..60 {
        let left = tls.not_after().unwrap().duration_since(clock.now());
        assert!(left.unwrap() > HOUR, "after {hour} hours");
        assert!(tls.not_after().unwrap() <= clock.now() + 10 * HOUR);
        tokio::time::advance(HOUR).await;
        issuer.look().await.unwrap();
        tls.look().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_below_a_root_that_has_left_is_shown_to_nobody() {
    let place = Place::new();
    let clock = Clock::paced_from(now());
    let issuer = issuer_with(&place, &clock, place.config().lifetimes, Metrics::default()).await;
    let open = async || {
        let names = vec![ServerName::parse("a.b").unwrap()];
        let issues: Arc<dyn Issuer> = issuer.clone();
        let (clock, metrics) = (clock.clone(), Metrics::default());
        let ready = Readiness::default().condition("valid_certificate");
        ServingTls::open(issues, names, false, clock, metrics, ready).await
    };
    let (follows, stays) = (open().await, open().await);
    let order = Order {
        root_generation: Some(2),
        force_generation: None,
    };
    FileOrders::write(&place.store(), order).unwrap();
    let roots = || issuer.trust_bundle().roots().certificates().len();
    let mut has_published = false;
    for _ in 0..200 {
        tokio::time::advance(Duration::from_secs(1)).await;
        issuer.look().await.unwrap();
        has_published |= roots() == 2;
        assert_eq!(
            stays.config().is_some(),
            !has_published || roots() == 2,
            "as long as clients trust what signed it"
        );
        follows.look().await;
        assert!(follows.config().is_some(), "one that follows always serves");
    }
    assert!(has_published && roots() == 1, "the rotation has ended");
    stays.look().await;
    assert!(stays.config().is_some());
}
