//! An application in a pod that asks its sidecar for its own SVIDs, with go-spiffe,
//! and somebody outside the mesh who is shown its token.

use std::net::SocketAddr;

use bulkhead_core::ports::MONITORING;
use bulkhead_tests::cluster::apps::{self, APP_CONTAINER, App, server};
use bulkhead_tests::cluster::exec::exec;
use bulkhead_tests::cluster::{Cluster, beside_others, until};
use bulkhead_tests::namespace::Namespace;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::programs::{CA, pods_of};

const GO_SPIFFE_IMAGE: &str = concat!("ghcr.io/bulkhead/go-spiffe:", env!("CARGO_PKG_VERSION"));
/// What `tests/cluster/run-tests` tells the CA that it is called outside.
const ISSUER: &str = "https://tokens.example.org";
const AUDIENCE: &str = "https://bank.example.org";

/// A pod with go-spiffe in it, which says what it gets.
async fn start_application(namespace: &Namespace) -> App<'_> {
    let application = server("application")
        .annotations(&[("bulkhead.io/workload-api", "enabled")])
        .container(json!({
            "image": GO_SPIFFE_IMAGE, "args": ["watch", AUDIENCE], "ports": [],
            "readinessProbe": null,
        }));
    application.start(namespace).await
}

#[tokio::test]
async fn an_application_gets_its_own_svids_and_outsiders_verify_its_token_by_openid_connect() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let application = start_application(&namespace).await;
    let identity = format!("spiffe://cluster.local/ns/{}/sa/default", namespace.name());
    let pods: Api<Pod> = namespace.api();
    let name = application.pod().await.name_any();
    let parameters = LogParams {
        container: Some(APP_CONTAINER.to_owned()),
        ..LogParams::default()
    };
    // It has verified both by then, with the bundles that it was given.
    until("the application has both SVIDs", async || {
        let said = pods.logs(&name, &parameters).await.ok()?;
        let has = |kind: &str| {
            said.lines()
                .any(|line| line == format!("{kind} {identity}"))
        };
        (has("x509") && has("jwt")).then_some(())
    })
    .await;

    let asked = exec(
        &pods,
        &name,
        APP_CONTAINER,
        &["/go-spiffe", "token", AUDIENCE],
    )
    .await;
    assert!(asked.succeeded, "{}", asked.stderr);
    let claims = verified(&cluster, asked.stdout.trim()).await;
    assert_eq!(claims["sub"], identity.as_str());
}

/// What a token says, verified as somebody does who knows its issuer's address and
/// the standard, and nothing else.
async fn verified(cluster: &Cluster, token: &str) -> Value {
    let configuration: Value = public(cluster, "/.well-known/openid-configuration").await;
    assert_eq!(configuration["issuer"], ISSUER);
    let keys = configuration["jwks_uri"].as_str().unwrap();
    let keys = public(cluster, keys.strip_prefix(ISSUER).unwrap()).await;
    let keys: JwkSet = serde_json::from_value(keys).unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let key = keys.find(&header.kid.unwrap()).expect("its key is public");
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_audience(&[AUDIENCE]);
    rules.set_issuer(&[ISSUER]);
    let key = DecodingKey::from_jwk(key).unwrap();
    jsonwebtoken::decode(token, &key, &rules).unwrap().claims
}

/// A document that the CA shows everybody.
async fn public(cluster: &Cluster, path: &str) -> Value {
    let body = until("a replica of the CA answers", async || {
        let pods = pods_of(cluster, CA).await;
        let pod = pods
            .iter()
            .find(|pod| bulkhead_tests::cluster::is_ready(pod))?;
        let address = SocketAddr::new(apps::ip(pod), MONITORING);
        let reply = apps::get(address, path, &[]).await.ok()?;
        (reply.status == Some(200)).then_some(reply.body)
    })
    .await;
    serde_json::from_str(&body).unwrap()
}
