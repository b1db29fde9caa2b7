//! JWT-SVIDs: who gets one, for whom, for how long, and who can verify it.

use std::time::Duration;

use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::jwt::{JwtAuthorities, JwtSvid};
use bulkhead_proto::workload_tokens::{JwtBundleRequest, MintJwtSvidRequest, WorkloadTokensClient};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::{Ca, Logs, cart, channel, now, token_for_cart};

struct Tokens(WorkloadTokensClient<Channel>, String);

impl Tokens {
    async fn of(ca: &Ca) -> Self {
        let roots = ca.app.trust_bundle();
        let channel = channel(ca.app.address(), roots.roots()).await;
        Self(
            WorkloadTokensClient::new(channel),
            ca.token(&token_for_cart()),
        )
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let header = format!("Bearer {}", self.1).parse().unwrap();
        request.metadata_mut().insert("authorization", header);
        request
    }

    async fn mint(&mut self, audiences: &[&str], lifetime: u32) -> Result<String, Status> {
        let request = self.request(MintJwtSvidRequest {
            audiences: audiences.iter().map(|name| (*name).to_owned()).collect(),
            lifetime,
        });
        let response = self.0.mint_jwt_svid(request).await?;
        Ok(response.into_inner().token)
    }

    async fn authorities(&mut self) -> JwtAuthorities {
        let request = self.request(JwtBundleRequest {});
        let response = self.0.jwt_bundle(request).await.unwrap().into_inner();
        JwtAuthorities::from_json(default_trust_domain(), &response.jwks).unwrap()
    }

    /// What a token says to `reports`.
    async fn svid(&mut self, lifetime: u32) -> JwtSvid {
        let token = self.mint(&["reports"], lifetime).await.unwrap();
        let authorities = self.authorities().await;
        authorities.validate(&token, "reports", now()).unwrap()
    }
}

#[tokio::test]
async fn a_workload_gets_a_token_that_the_trust_domains_keys_verify() {
    let ca = Ca::start().await;
    let mut tokens = Tokens::of(&ca).await;
    let svid = tokens.svid(0).await;
    assert_eq!(svid.id(), &cart());
    assert_eq!(svid.audiences(), ["reports"]);
    assert!(svid.claims().get("iss").is_none());
}

#[tokio::test]
async fn a_token_is_short_whatever_was_asked_for() {
    let ca = Ca::start().await;
    let mut tokens = Tokens::of(&ca).await;
    for (asked, expected) in [(0, 300), (60, 60), (1, 10), (u32::MAX, 3600)] {
        let svid = tokens.svid(asked).await;
        let claim = |name: &str| svid.claims()[name].as_u64().unwrap();
        assert_eq!(claim("exp") - claim("iat"), expected, "{asked}");
    }
}

#[tokio::test]
async fn nobody_gets_a_token_who_has_not_proved_who_it_is() {
    let ca = Ca::start().await;
    let mut tokens = Tokens::of(&ca).await;
    let mut other = token_for_cart();
    other.audience = "somebody-else".into();
    for token in [String::new(), "garbage".into(), ca.token(&other)] {
        tokens.1 = token;
        let refused = tokens.mint(&["reports"], 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let request = tokens.request(JwtBundleRequest {});
        let refused = tokens.0.jwt_bundle(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn a_token_for_nobody_in_particular_is_refused() {
    let ca = Ca::start().await;
    let mut tokens = Tokens::of(&ca).await;
    let long = "x".repeat(4096);
    for audiences in [&[][..], &[""], &["a", ""], &[&long], &["a"; 17]] {
        let refused = tokens.mint(audiences, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{audiences:?}");
    }
}

#[tokio::test]
async fn a_token_is_on_record_and_is_not_in_the_record() {
    let logs = Logs::capture();
    let ca = Ca::start().await;
    let mut tokens = Tokens::of(&ca).await;
    let token = tokens.mint(&["reports", "bills"], 60).await.unwrap();
    let authorities = tokens.authorities().await;
    let svid = authorities.validate(&token, "bills", now()).unwrap();
    let records = logs.records();
    assert_eq!(records.len(), 1, "asking for public keys leaves no record");
    let record = &records[0];
    assert_eq!(record["outcome"], "token_issued");
    assert_eq!(record["caller"], cart().as_str());
    assert_eq!(record["identity"], cart().as_str());
    assert_eq!(record["pod"], "cart-0");
    assert_eq!(record["audiences"], "bills reports");
    assert_eq!(record["key_id"], svid.key_id());
    assert_eq!(record["not_after"], svid.claims()["exp"]);
    let (_, signature) = token.rsplit_once('.').unwrap();
    assert!(!logs.text().contains(signature));
    assert!(
        ca.monitoring
            .metrics()
            .contains("bulkhead_ca_tokens_issued_total 1")
    );
}

#[tokio::test]
async fn tokens_name_their_issuer_whose_keys_are_found_by_openid_connect_discovery() {
    const ISSUER: &str = "https://tokens.example.org/mesh";
    let ca = Ca::start_with(|config| config.jwt_issuer = Some(ISSUER.to_owned())).await;
    let svid = Tokens::of(&ca).await.svid(0).await;
    assert_eq!(svid.claims()["iss"], ISSUER);

    let configuration = get(&ca, "/.well-known/openid-configuration").await.unwrap();
    assert_eq!(configuration["issuer"], ISSUER);
    assert_eq!(
        configuration["id_token_signing_alg_values_supported"][0],
        "ES256"
    );
    let keys = configuration["jwks_uri"].as_str().unwrap();
    let keys = get(&ca, keys.strip_prefix(ISSUER).unwrap()).await.unwrap();
    let key = &keys["keys"][0];
    assert_eq!(key["kid"], svid.key_id());
    assert_eq!(key["use"], "sig");
    assert_eq!(key["alg"], "ES256");
    assert!(key.get("d").is_none(), "no private half");
}

#[tokio::test]
async fn there_is_no_discovery_where_nobody_named_an_issuer() {
    let ca = Ca::start().await;
    for path in ["/.well-known/openid-configuration", "/openid/v1/jwks"] {
        assert_eq!(get(&ca, path).await, None);
    }
}

/// A document of the monitoring port.
async fn get(ca: &Ca, path: &str) -> Option<serde_json::Value> {
    let stream = tokio::net::TcpStream::connect(ca.app.monitoring_address());
    let stream = TokioIo::new(stream.await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header("host", "ca.test");
    let request = request.body(String::new()).unwrap();
    let asked = sender.send_request(request);
    let answer = tokio::time::timeout(Duration::from_secs(20), asked).await;
    let answer = answer.unwrap().unwrap();
    if answer.status() != 200 {
        return None;
    }
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    Some(serde_json::from_slice(&body).unwrap())
}
