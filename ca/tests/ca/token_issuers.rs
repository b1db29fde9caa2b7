//! Issuers whose keys are fetched over HTTPS, one beside the other: whose tokens
//! are believed, about what, and what an issuer's server cannot do.

use std::time::Duration;

use bulkhead_ca::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use bulkhead_ca::config::{Authentication, Config, KeyAddress, KeySource, TokenIssuer};
use bulkhead_ca::https::{self, Access, FetchError};
use bulkhead_pki::svid::SvidChain;
use serde_json::json;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::key_server::KeyServer;
use crate::support::{Ca, Logs, now, request, token_for_cart};

/// Somebody who signs tokens, and where its key is kept.
struct Outside {
    _directory: TempDir,
    issuer: LocalIssuer,
}

impl Outside {
    fn named(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuer = LocalIssuer::open(directory.path(), name).unwrap();
        Self {
            _directory: directory,
            issuer,
        }
    }

    fn keys(&self) -> Vec<u8> {
        std::fs::read(self.issuer.jwks_path()).unwrap()
    }

    fn token(&self, change: impl FnOnce(&mut TokenRequest)) -> String {
        let mut request = token_for_cart();
        change(&mut request);
        self.issuer.mint(&request, now()).unwrap()
    }
}

async fn ca_that_believes(issuers: Vec<TokenIssuer>) -> Ca {
    Ca::start_with(|config: &mut Config| {
        config.authentication = Authentication {
            kubernetes: false,
            issuers,
        };
    })
    .await
}

/// The identity that a token's bearer gets.
async fn identity(ca: &Ca, token: &str) -> Result<String, Status> {
    let (_, request) = request(None);
    let answer = ca.call(Some(token), request).await?;
    let chain = SvidChain::from_pem(&answer.chain.concat()).unwrap();
    Ok(chain.id().to_string())
}

/// Why a token got nothing.
async fn refusal(ca: &Ca, token: &str) -> (Code, String) {
    let logs = Logs::capture();
    let refused = identity(ca, token).await.unwrap_err();
    let reason = logs.records()[0]["reason"].as_str().unwrap().to_owned();
    (refused.code(), reason)
}

#[tokio::test]
async fn tokens_are_believed_by_the_keys_that_their_issuers_server_has() {
    let (server, vms) = (KeyServer::start().await, Outside::named("vms"));
    server.answers("/keys", 200, vms.keys());
    let ca = ca_that_believes(vec![server.issuer("vms", "/keys")]).await;
    let token = vms.token(|_| {});
    let id = identity(&ca, &token).await.unwrap();
    assert_eq!(id, "spiffe://cluster.local/ns/shop/sa/cart");
    let metrics = ca.monitoring.metrics();
    let fetched = r#"bulkhead_ca_token_keys_fetches_total{issuer="vms",outcome="success"} 1"#;
    assert!(metrics.contains(fetched), "{metrics}");
}

#[tokio::test]
async fn an_issuer_that_has_a_new_key_need_tell_nobody() {
    let (server, old) = (KeyServer::start().await, Outside::named("vms"));
    server.answers("/keys", 200, old.keys());
    let ca = ca_that_believes(vec![server.issuer("vms", "/keys")]).await;
    identity(&ca, &old.token(|_| {})).await.unwrap();
    let new = Outside::named("vms");
    server.answers("/keys", 200, new.keys());
    identity(&ca, &new.token(|_| {})).await.unwrap();
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn a_ca_starts_without_the_server_of_the_keys_and_callers_come_again() {
    let (server, vms) = (KeyServer::start().await, Outside::named("vms"));
    server.answers("/keys", 503, "");
    let ca = ca_that_believes(vec![server.issuer("vms", "/keys")]).await;
    let token = vms.token(|_| {});
    let refused = refusal(&ca, &token).await;
    assert_eq!(
        refused,
        (Code::Unavailable, "token_keys_missing".to_owned())
    );
    server.answers("/keys", 200, vms.keys());
    let served = async {
        while identity(&ca, &token).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let limit = Duration::from_secs(120);
    tokio::time::timeout(limit, served).await.unwrap();
}

#[tokio::test]
async fn each_issuer_speaks_for_itself_with_its_own_audience_and_namespaces() {
    let server = KeyServer::start().await;
    let (vms, lab) = (Outside::named("vms"), Outside::named("lab"));
    server.answers("/vms", 200, vms.keys());
    let mut of_vms = server.issuer("vms", "/vms");
    of_vms.audiences = vec!["mesh".into()];
    of_vms.namespaces = Some(["vms".to_owned()].into());
    let of_lab = KeySource::File(lab.issuer.jwks_path().to_owned());
    let mut of_lab = TokenIssuer::new("lab".into(), of_lab);
    of_lab.allow_without_pod = Some(true);
    let ca = ca_that_believes(vec![of_vms, of_lab]).await;

    let good = |token: &mut TokenRequest| {
        token.audience = "mesh".into();
        token.namespace = "vms".into();
    };
    let id = identity(&ca, &vms.token(good)).await.unwrap();
    assert_eq!(id, "spiffe://cluster.local/ns/vms/sa/cart");
    let id = identity(&ca, &lab.token(|token| token.pod = None)).await;
    assert_eq!(id.unwrap(), "spiffe://cluster.local/ns/shop/sa/cart");

    // Each says of itself to be the other, or asks for what is the other's.
    let (as_vms, as_lab) = (Outside::named("vms"), Outside::named("lab"));
    for (token, reason) in [
        (as_vms.token(good), "token_signature"),
        (as_lab.token(|_| {}), "token_signature"),
        (Outside::named("nobody").token(|_| {}), "token_issuer"),
        (
            vms.token(|token| token.namespace = "vms".into()),
            "token_audience",
        ),
        (
            vms.token(|token| token.audience = "mesh".into()),
            "token_namespace",
        ),
        (
            lab.token(|token| token.audience = "mesh".into()),
            "token_audience",
        ),
        (
            vms.token(|token| {
                good(token);
                token.pod = None;
            }),
            "token_without_pod",
        ),
        ("garbage".to_owned(), "token_malformed"),
    ] {
        let refused = refusal(&ca, &token).await;
        let unknown = (Code::Unavailable, "token_keys_missing".to_owned());
        // A signature by a key of another name has the keys looked for first.
        if reason != "token_signature" || refused != unknown {
            assert_eq!(refused, (Code::Unauthenticated, reason.to_owned()));
        }
    }
}

#[tokio::test]
async fn an_issuers_own_configuration_says_where_its_keys_are() {
    let server = KeyServer::start().await;
    let name = server.url("/mesh").to_string();
    let vms = Outside::named(&name);
    let configuration = json!({"issuer": name, "jwks_uri": server.url("/k").to_string()});
    let well_known = "/mesh/.well-known/openid-configuration";
    server.answers(well_known, 200, configuration.to_string());
    server.answers("/k", 200, vms.keys());
    let mut issuer = server.issuer_at(&name, KeyAddress::Discovery(server.url("/mesh")));
    let KeySource::Fetched(keys) = &mut issuer.keys else {
        panic!("{issuer:?}");
    };
    keys.access.token_file = Some(server.token_file());
    let ca = ca_that_believes(vec![issuer]).await;
    identity(&ca, &vms.token(|_| {})).await.unwrap();
    let shown = Some("Bearer for-the-key-server".to_owned());
    let expected = [well_known, "/k"].map(|path| (path.to_owned(), shown.clone()));
    assert_eq!(server.asked(), expected);
}

#[tokio::test]
async fn what_a_server_of_keys_may_not_do() {
    let (server, other) = (KeyServer::start().await, KeyServer::start().await);
    let ours = Access {
        ca_file: Some(server.ca_file()),
        token_file: None,
    };
    let to = ("location", "http://127.0.0.1:1/keys".to_owned());
    server.answers_with("/moved", (302, Some(to), Vec::new()));
    server.answers("/long", 200, vec![b' '; 1024 * 1024 + 1]);
    server.answers("/error", 500, "{}");
    let get = async |url, access: &Access| https::get(&url, access).await.unwrap_err();
    let error = get(server.url("/moved"), &ours).await;
    assert!(matches!(error, FetchError::Redirect(_)), "{error}");
    let error = get(server.url("/long"), &ours).await;
    assert!(matches!(error, FetchError::Body(_)), "{error}");
    let error = get(server.url("/error"), &ours).await;
    assert!(matches!(error, FetchError::Status(500)), "{error}");
    // Another CA signed its certificate, or it is for another name.
    let error = get(other.url("/keys"), &ours).await;
    assert!(matches!(error, FetchError::Handshake(_)), "{error}");
    let by_name = server
        .url("/keys")
        .to_string()
        .replace("127.0.0.1", "localhost");
    let error = get(by_name.parse().unwrap(), &ours).await;
    assert!(matches!(error, FetchError::Handshake(_)), "{error}");
    let no_roots = Access {
        ca_file: Some("/nowhere/ca.crt".into()),
        token_file: None,
    };
    let error = get(server.url("/keys"), &no_roots).await;
    assert!(matches!(error, FetchError::Roots(..)), "{error}");
}
