//! When keys are fetched, and what holds while they cannot be. Time is paused,
//! and the server is a list of answers.

use std::sync::Mutex;
use std::time::SystemTime;

use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::jws::JwsError;
use bulkhead_runtime::monitoring::Monitoring;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::authenticate::jwks::JwksVerifier;
use crate::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use crate::authenticate::{Authenticate, AuthenticationError, Caller};
use crate::config::{KeySource, TokenIssuer, TokenRules};

const ISSUER: &str = "https://issuer.test";
const MINUTE: Duration = Duration::from_secs(60);

/// What a server of keys gives now, and when it was asked.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    keys: Option<Vec<u8>>,
    max_age: Option<Duration>,
    asked: Vec<Instant>,
}

impl Server {
    fn serves(&self, keys: Option<Vec<u8>>) {
        self.0.lock().unwrap().keys = keys;
    }

    fn asked(&self) -> Vec<Instant> {
        self.0.lock().unwrap().asked.clone()
    }
}

#[tonic::async_trait]
impl Fetch for Server {
    async fn fetch(&self, issuer: &str) -> Result<Document, JwksError> {
        assert_eq!(issuer, ISSUER);
        let mut state = self.0.lock().unwrap();
        state.asked.push(Instant::now());
        let max_age = state.max_age;
        match state.keys.clone() {
            Some(text) => Ok(Document { text, max_age }),
            None => Err(JwksError::NoKey),
        }
    }
}

/// An issuer that can sign with one key after the other.
struct Issuer(TempDir);

impl Issuer {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with_key(&self, name: &str) -> LocalIssuer {
        LocalIssuer::open(&self.0.path().join(name), ISSUER).unwrap()
    }
}

fn keys(issuer: &LocalIssuer) -> Option<Vec<u8>> {
    Some(std::fs::read(issuer.jwks_path()).unwrap())
}

fn token(issuer: &LocalIssuer) -> String {
    let request = TokenRequest {
        namespace: "shop".into(),
        service_account: "cart".into(),
        pod: None,
        audience: "bulkhead-ca".into(),
        lifetime: 100 * MINUTE,
    };
    issuer.mint(&request, start()).unwrap()
}

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A verifier whose keys are kept from this server on.
struct Running {
    verifier: JwksVerifier,
    monitoring: Monitoring,
    _drain: drain::Trigger,
}

impl Running {
    fn start(server: &Server) -> Self {
        let (trigger, drain) = drain::channel();
        let (clock, monitoring) = (Clock::paced_from(start()), Monitoring::default());
        let metrics = Metrics::new(&monitoring);
        let remote = RemoteKeys::by(
            ISSUER.into(),
            Box::new(server.clone()),
            clock.clone(),
            metrics,
        );
        let rules = TokenRules {
            audience: "bulkhead-ca".into(),
            allow_without_pod: true,
        };
        let issuer = TokenIssuer::new(ISSUER.into(), KeySource::File("unused".into()));
        let domain = default_trust_domain();
        let verifier = JwksVerifier::new(issuer, &rules, remote.keys(), domain, clock);
        tokio::spawn(remote.follow(drain));
        Self {
            verifier,
            monitoring,
            _drain: trigger,
        }
    }

    async fn call(&self, token: &str) -> Result<Caller, AuthenticationError> {
        self.verifier.authenticate(token).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_there_yet_is_waited_for_and_callers_are_told_to_come_again() {
    let (issuer, server) = (Issuer::new(), Server::default());
    let (one, running) = (issuer.with_key("one"), Running::start(&server));
    let refused = running.call(&token(&one)).await.unwrap_err();
    assert!(
        matches!(refused, AuthenticationError::NoKeys(_)),
        "{refused}"
    );
    assert!(refused.is_temporary());
    assert_eq!(refused.reason(), "token_keys_missing");
    server.serves(keys(&one));
    tokio::time::sleep(LONGEST_RETRY).await;
    running.call(&token(&one)).await.unwrap();
    let metrics = running.monitoring.metrics();
    assert!(metrics.contains(r#"fetches_total{issuer="https://issuer.test",outcome="failure"}"#));
}

#[tokio::test(start_paused = true)]
async fn the_first_caller_waits_for_the_first_keys() {
    let (issuer, server) = (Issuer::new(), Server::default());
    let one = issuer.with_key("one");
    server.serves(keys(&one));
    let running = Running::start(&server);
    running.call(&token(&one)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_by_a_new_key_has_the_keys_fetched_at_once() {
    let (issuer, server) = (Issuer::new(), Server::default());
    let (one, two) = (issuer.with_key("one"), issuer.with_key("two"));
    server.serves(keys(&one));
    let running = Running::start(&server);
    running.call(&token(&one)).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    let before = server.asked().len();
    server.serves(keys(&two));
    let began = Instant::now();
    // All who come with it at once are answered by one attempt.
    let by_two = token(&two);
    let calls = futures::future::join_all((0..100).map(|_| running.call(&by_two))).await;
    assert!(calls.iter().all(Result::is_ok));
    assert_eq!(server.asked().len(), before + 1);
    assert_eq!(Instant::now(), began, "nobody waited");
    let refused = running.call(&token(&one)).await.unwrap_err();
    assert!(
        matches!(refused, AuthenticationError::NewKey(_)),
        "withdrawn: {refused}"
    );
}

#[tokio::test(start_paused = true)]
async fn tokens_by_keys_that_nobody_has_do_not_make_us_ask_all_the_time() {
    let (issuer, server) = (Issuer::new(), Server::default());
    let (one, stranger) = (issuer.with_key("one"), issuer.with_key("stranger"));
    server.serves(keys(&one));
    let running = Running::start(&server);
    running.call(&token(&one)).await.unwrap();
    let (by_stranger, by_one) = (token(&stranger), token(&one));
    let began = Instant::now();
    while began.elapsed() < MINUTE {
        let refused = running.call(&by_stranger).await.unwrap_err();
        let unknown = matches!(
            refused,
            AuthenticationError::Signature(JwsError::NoKey) | AuthenticationError::NewKey(_)
        );
        assert!(unknown, "{refused}");
        running.call(&by_one).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let asked = server.asked();
    assert!((7..=9).contains(&asked.len()), "{}", asked.len());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_still_unknown_after_a_look_is_refused_for_good() {
    let (issuer, server) = (Issuer::new(), Server::default());
    let (one, stranger) = (issuer.with_key("one"), issuer.with_key("stranger"));
    server.serves(keys(&one));
    let running = Running::start(&server);
    running.call(&token(&one)).await.unwrap();
    let refused = running.call(&token(&stranger)).await.unwrap_err();
    assert_eq!(refused.reason(), "token_signature");
    assert!(!refused.is_temporary());
}

#[tokio::test(start_paused = true)]
async fn while_the_server_is_away_or_talks_nonsense_the_last_good_keys_serve_on() {
    let (issuer, server) = (Issuer::new(), Server::default());
    let one = issuer.with_key("one");
    server.serves(keys(&one));
    let running = Running::start(&server);
    running.call(&token(&one)).await.unwrap();
    for nonsense in [
        None,
        Some(b"<html>".to_vec()),
        Some(br#"{"keys":[]}"#.to_vec()),
    ] {
        server.serves(nonsense);
        let before = server.asked().len();
        tokio::time::sleep(10 * MINUTE).await;
        assert!(server.asked().len() > before + 5, "it is tried again");
        running.call(&token(&one)).await.unwrap();
    }
    let stamp = format!(
        "timestamp_seconds{{issuer=\"{ISSUER}\"}} {}",
        1_800_000_000_u64
    );
    let metrics = running.monitoring.metrics();
    assert!(metrics.contains(&stamp), "the age is that of the good ones");
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_as_often_as_their_server_says_within_bounds() {
    for (said, least, most) in [
        (None, USUAL_AGE.mul_f64(0.8), USUAL_AGE),
        (Some(10 * MINUTE), 8 * MINUTE, 10 * MINUTE),
        (Some(Duration::ZERO), LEAST_AGE.mul_f64(0.8), LEAST_AGE),
        (Some(Duration::MAX), MOST_AGE.mul_f64(0.8), MOST_AGE),
    ] {
        let (issuer, server) = (Issuer::new(), Server::default());
        server.serves(keys(&issuer.with_key("one")));
        server.0.lock().unwrap().max_age = said;
        let _running = Running::start(&server);
        tokio::time::sleep(4 * MOST_AGE).await;
        let asked = server.asked();
        assert!(asked.len() > 3);
        for pair in asked.windows(2) {
            let between = pair[1] - pair[0];
            let slack = Duration::from_millis(5);
            assert!(
                between + slack >= least && between <= most + slack,
                "{said:?}: {between:?}"
            );
        }
    }
}
