//! The JWT-SVID profile.

use std::time::Duration;

use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::jwt::{JwtAuthorities, JwtKey};
use bulkhead_proto::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, SpiffeWorkloadApi,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use futures::StreamExt as _;
use tonic::{Code, Request, Status, Streaming};

use crate::credentials;
use crate::workload_api::service::Service;
use crate::workload_api::tokens::Tokens;

use super::mesh::{Mesh, Pod, TOKEN_LIFETIME, cart, domain, secured, unix};

async fn fetch(pod: &Pod, audience: &[&str], spiffe_id: &str) -> Result<String, Status> {
    let request = secured(JwtsvidRequest {
        audience: audience.iter().map(|name| (*name).to_owned()).collect(),
        spiffe_id: spiffe_id.to_owned(),
    });
    let response = pod.client().await.fetch_jwtsvid(request).await?;
    let mut svids = response.into_inner().svids;
    assert_eq!(svids.len(), 1);
    assert_eq!(svids[0].spiffe_id, cart().as_str());
    Ok(svids.remove(0).svid)
}

async fn validate(
    pod: &Pod,
    svid: &str,
    audience: &str,
) -> Result<ValidateJwtsvidResponse, Status> {
    let request = secured(ValidateJwtsvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    });
    let response = pod.client().await.validate_jwtsvid(request).await?;
    Ok(response.into_inner())
}

/// The keys on a stream, as soon as the CA has answered once.
async fn bundles(pod: &Pod) -> Streaming<JwtBundlesResponse> {
    loop {
        let request = secured(JwtBundlesRequest {});
        match pod.client().await.fetch_jwt_bundles(request).await {
            Ok(stream) => return stream.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::Unavailable),
        }
    }
}

async fn next_keys(stream: &mut Streaming<JwtBundlesResponse>) -> JwtAuthorities {
    keys_of(stream.message().await.unwrap().unwrap())
}

fn keys_of(message: JwtBundlesResponse) -> JwtAuthorities {
    assert_eq!(message.bundles.len(), 1);
    let text = std::str::from_utf8(&message.bundles["spiffe://cluster.local"]).unwrap();
    JwtAuthorities::from_json(domain(), text).unwrap()
}

#[tokio::test]
async fn api_6_2_1_a_token_is_for_this_workload_and_the_audiences_that_were_named() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    for id in ["", cart().as_str()] {
        let token = fetch(&pod, &["reports", "bills"], id).await.unwrap();
        let keys = next_keys(&mut bundles(&pod).await).await;
        let svid = keys.validate(&token, "bills", mesh.clock.now()).unwrap();
        assert_eq!(svid.id(), &cart());
        assert_eq!(svid.audiences(), ["bills", "reports"]);
    }
}

#[tokio::test]
async fn api_4_5_a_request_without_its_mandatory_fields_is_refused() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    for audience in [&[][..], &[""]] {
        let refused = fetch(&pod, audience, "").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let token = fetch(&pod, &["reports"], "").await.unwrap();
    for (svid, audience) in [("", "reports"), (token.as_str(), "")] {
        let refused = validate(&pod, svid, audience).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn nobody_elses_token_can_be_had() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let admin = "spiffe://cluster.local/ns/shop/sa/admin";
    let refused = fetch(&pod, &["reports"], admin).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = fetch(&pod, &["reports"], "cart").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    mesh.ca.lock().unwrap().answers_for = SpiffeId::parse(admin).unwrap();
    let refused = fetch(&pod, &["reports"], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_token_is_kept_until_half_of_its_life_has_passed() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let first = fetch(&pod, &["reports"], "").await.unwrap();
    mesh.clock
        .advance(TOKEN_LIFETIME / 2 - Duration::from_secs(1));
    assert_eq!(fetch(&pod, &["reports"], "").await.unwrap(), first);
    let other = fetch(&pod, &["bills"], "").await.unwrap();
    assert_ne!(other, first, "another audience has a token of its own");
    mesh.clock.advance(Duration::from_secs(1));
    assert_ne!(fetch(&pod, &["reports"], "").await.unwrap(), first);
    assert_eq!(mesh.ca.lock().unwrap().minted, 3);
}

#[tokio::test]
async fn while_the_ca_is_away_a_token_serves_to_its_end() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let first = fetch(&pod, &["reports"], "").await.unwrap();
    mesh.ca.lock().unwrap().is_away = true;
    mesh.clock.advance(TOKEN_LIFETIME - Duration::from_secs(1));
    assert_eq!(fetch(&pod, &["reports"], "").await.unwrap(), first);
    mesh.clock.advance(Duration::from_secs(1));
    let refused = fetch(&pod, &["reports"], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn the_number_of_tokens_that_are_kept_is_bounded() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let first = fetch(&pod, &["audience-0"], "").await.unwrap();
    mesh.clock.advance(Duration::from_secs(1));
    for number in 1..=64 {
        fetch(&pod, &[&format!("audience-{number}")], "")
            .await
            .unwrap();
    }
    assert_eq!(mesh.ca.lock().unwrap().minted, 65);
    assert_ne!(fetch(&pod, &["audience-0"], "").await.unwrap(), first);
    assert_eq!(mesh.ca.lock().unwrap().minted, 66);
}

#[tokio::test]
async fn without_the_ca_the_jwt_profile_is_unavailable() {
    let mesh = Mesh::new();
    mesh.ca.lock().unwrap().is_away = true;
    let pod = Pod::start(&mesh).await;
    let request = secured(JwtBundlesRequest {});
    let refused = pod.client().await.fetch_jwt_bundles(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    let refused = fetch(&pod, &["reports"], "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let refused = validate(&pod, "a.b.c", "reports").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

/// The service behind the socket. Time stands still in these tests and passes
/// when everybody waits, which is not for sockets.
fn service(mesh: &Mesh) -> Service<Mesh> {
    let tokens = Tokens::new(mesh.clone(), mesh.clock.clone());
    let following = std::sync::Arc::clone(&tokens);
    tokio::spawn(async move { following.follow().await });
    let (_, latest) = credentials::channel();
    Service {
        id: cart(),
        latest,
        tokens,
        clock: mesh.clock.clone(),
    }
}

#[tokio::test]
async fn api_6_2_2_jwt_bundles_have_the_own_trust_domains_keys_for_tokens_and_no_others() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let message = bundles(&pod).await.message().await.unwrap().unwrap();
    assert_eq!(message.bundles.len(), 1);
    let set = &message.bundles["spiffe://cluster.local"];
    let set: serde_json::Value = serde_json::from_slice(set).unwrap();
    let keys = set["keys"].as_array().unwrap();
    let names = keys.iter().map(|key| key["kid"].as_str().unwrap());
    let signs = mesh.ca.lock().unwrap();
    assert!(names.eq(signs.keys.iter().map(JwtKey::id)));
    assert!(keys.iter().all(|key| key["use"] == "jwt-svid"));
    assert!(keys.iter().all(|key| key.get("d").is_none()), "public ones");
}

#[tokio::test(start_paused = true)]
async fn api_4_3_keys_come_at_once_and_new_ones_are_pushed() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    tokio::task::yield_now().await;
    let request = Request::new(JwtBundlesRequest {});
    let stream = service.fetch_jwt_bundles(request).await.unwrap();
    let mut stream = stream.into_inner();
    let mut keys = async || {
        let message = stream.next().await.unwrap().unwrap();
        keys_of(message).jwks().len()
    };
    assert_eq!(keys().await, 1);
    let another = JwtKey::generate().unwrap();
    mesh.ca.lock().unwrap().keys.push(another);
    assert_eq!(keys().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_by_a_key_that_is_new_is_valid_at_once() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    tokio::task::yield_now().await;
    let another = JwtKey::generate().unwrap();
    mesh.ca.lock().unwrap().keys.push(another);
    tokio::time::advance(Duration::from_secs(10)).await;
    let request = Request::new(JwtsvidRequest {
        audience: vec!["reports".into()],
        spiffe_id: String::new(),
    });
    let token = service.fetch_jwtsvid(request).await.unwrap().into_inner();
    let request = Request::new(ValidateJwtsvidRequest {
        audience: "reports".into(),
        svid: token.svids[0].svid.clone(),
    });
    assert!(service.validate_jwtsvid(request).await.is_ok());
}

#[tokio::test]
async fn api_6_2_3_a_valid_token_is_read_for_the_application() {
    let mesh = Mesh::new();
    let pod = Pod::start(&mesh).await;
    let token = fetch(&pod, &["reports"], "").await.unwrap();
    let answer = validate(&pod, &token, "reports").await.unwrap();
    assert_eq!(answer.spiffe_id, cart().as_str());
    let claims = answer.claims.unwrap().fields;
    let expires = unix(mesh.clock.now() + TOKEN_LIFETIME) as f64;
    let number = prost_types::value::Kind::NumberValue(expires);
    assert_eq!(claims["exp"].kind, Some(number));
    let refused = validate(&pod, &token, "bills").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    mesh.clock.advance(TOKEN_LIFETIME);
    let refused = validate(&pod, &token, "reports").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
