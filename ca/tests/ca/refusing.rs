//! Who gets nothing, and what they learn: a code, and nothing else.

use bulkhead_ca::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::pem;
use bulkhead_proto::ca::CertificateRequest;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, SanType};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Ca, HOUR, ISSUER, Logs, cart, now, request, token_for_cart, wanting};

/// A call that must be refused with this code and, in the log, for this reason.
async fn assert_refused(
    ca: &Ca,
    token: Option<&str>,
    request: CertificateRequest,
    code: Code,
    reason: &str,
) {
    let logs = Logs::capture();
    let status = ca.call(token, request).await.unwrap_err();
    let records = logs.records();
    assert_eq!(records.len(), 1, "{records:#?}");
    let record = &records[0];
    assert_eq!(record["outcome"], "refused");
    assert_eq!(record["reason"], reason, "{record}");
    assert_eq!(status.code(), code, "{reason}");
    let request = record["request"].as_str().unwrap();
    assert_eq!(
        status.message(),
        format!("nothing was issued; the CA's log has the reason, request {request}")
    );
}

#[tokio::test]
async fn a_call_without_a_good_token_is_unauthenticated() {
    let ca = Ca::start().await;
    let (_, good) = request(None);
    let stranger = tempfile::tempdir().unwrap();
    let stranger = LocalIssuer::open(stranger.path(), ISSUER).unwrap();
    let mint = |change: fn(&mut TokenRequest)| {
        let mut request = token_for_cart();
        change(&mut request);
        ca.token(&request)
    };
    let at = |time| ca.place.issuer.mint(&token_for_cart(), time).unwrap();
    for (token, reason) in [
        (None, "token_missing"),
        (Some("garbage".to_owned()), "token_malformed"),
        (Some("a.b.c".to_owned()), "token_malformed"),
        (Some("x".repeat(9000)), "token_malformed"),
        (
            Some(mint(|token| token.audience = "istio-ca".into())),
            "token_audience",
        ),
        (Some(mint(|token| token.pod = None)), "token_without_pod"),
        (Some(at(now() - 2 * HOUR)), "token_expired"),
        (Some(at(now() + HOUR)), "token_not_yet_valid"),
        (
            Some(stranger.mint(&token_for_cart(), now()).unwrap()),
            "token_signature",
        ),
        (
            Some(mint(|token| token.namespace = String::new())),
            "not_a_service_account",
        ),
        (
            Some(mint(|token| token.service_account = "a/sa/b".into())),
            "not_a_service_account",
        ),
    ] {
        let code = Code::Unauthenticated;
        assert_refused(&ca, token.as_deref(), good.clone(), code, reason).await;
    }
}

/// A token with these claims, signed by the issuer's real key.
fn signed(ca: &Ca, claims: &Value) -> String {
    let key = EncodingKey::from_rsa_pem(ca.place.issuer_key().as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::RS256), claims, &key).unwrap()
}

fn claims() -> Value {
    let now = now().duration_since(std::time::UNIX_EPOCH).unwrap();
    json!({
        "iss": ISSUER,
        "sub": "system:serviceaccount:shop:cart",
        "aud": ["bulkhead-ca", "another"],
        "exp": now.as_secs() + 600,
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": {"name": "cart", "uid": "1"},
            "pod": {"name": "cart-0", "uid": "2"},
            "node": {"name": "worker", "uid": "3"},
        },
    })
}

#[tokio::test]
async fn a_token_as_kubernetes_writes_it_is_believed() {
    let ca = Ca::start().await;
    for audience in [json!(["bulkhead-ca", "another"]), json!("bulkhead-ca")] {
        let mut claims = claims();
        claims["aud"] = audience;
        let (_, request) = request(Some(&cart()));
        let token = signed(&ca, &claims);
        ca.call(Some(&token), request).await.unwrap();
    }
}

#[tokio::test]
async fn claims_that_say_too_little_or_contradict_each_other_are_refused() {
    let ca = Ca::start().await;
    let (_, good) = request(None);
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 13] = [
        (
            |claims| claims["iss"] = json!("https://other"),
            "token_issuer",
        ),
        (|claims| claims["iss"] = json!(1), "token_malformed"),
        (|claims| claims["aud"] = json!([]), "token_audience"),
        (|claims| claims["aud"] = json!({"a": 1}), "token_malformed"),
        (|claims| claims["exp"] = json!("soon"), "token_malformed"),
        (|claims| claims["exp"] = json!(-1), "token_malformed"),
        (|claims| claims["exp"] = Value::Null, "token_malformed"),
        (
            |claims| claims["nbf"] = json!(u64::MAX),
            "token_not_yet_valid",
        ),
        (|claims| claims["sub"] = json!("x"), "token_malformed"),
        (
            |claims| claims["sub"] = json!("system:serviceaccount:shop:admin"),
            "token_malformed",
        ),
        (
            |claims| claims["kubernetes.io"] = Value::Null,
            "token_without_pod",
        ),
        (
            |claims| claims["kubernetes.io"]["pod"] = Value::Null,
            "token_without_pod",
        ),
        (
            |claims| {
                claims["sub"] = json!("system:serviceaccount:a:b:c");
                claims["kubernetes.io"] = Value::Null;
            },
            "not_a_service_account",
        ),
    ];
    for (change, reason) in cases {
        let mut claims = claims();
        change(&mut claims);
        let token = signed(&ca, &claims);
        let code = Code::Unauthenticated;
        assert_refused(&ca, Some(&token), good.clone(), code, reason).await;
    }
}

#[tokio::test]
async fn tokens_with_no_signature_or_a_symmetric_one_are_refused() {
    let ca = Ca::start().await;
    let (_, good) = request(None);
    let part = |value: Value| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let unsigned = |alg: &str| {
        let header = part(json!({"alg": alg, "typ": "JWT"}));
        format!("{header}.{}.", part(claims()))
    };
    // The public key, which everybody has, used as if it were a shared secret.
    let public = std::fs::read(ca.place.issuer.jwks_path()).unwrap();
    let symmetric = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims(),
        &EncodingKey::from_secret(&public),
    )
    .unwrap();
    for token in [unsigned("none"), unsigned("RS256"), symmetric] {
        let code = Code::Unauthenticated;
        assert_refused(&ca, Some(&token), good.clone(), code, "token_signature").await;
    }
}

#[tokio::test]
async fn a_token_without_a_pod_is_good_where_the_settings_say_so() {
    let ca = Ca::start_with(|config| config.tokens.allow_without_pod = true).await;
    let mut unbound = token_for_cart();
    unbound.pod = None;
    let (_, request) = request(None);
    let token = ca.token(&unbound);
    assert!(ca.call(Some(&token), request).await.is_ok());
}

#[tokio::test]
async fn nobody_gets_the_identity_of_somebody_else() {
    let ca = Ca::start().await;
    let token = ca.token(&token_for_cart());
    let domain = default_trust_domain();
    for id in [
        SpiffeId::workload(&domain, "shop", "admin").unwrap(),
        SpiffeId::workload(&domain, "kube-system", "cart").unwrap(),
        SpiffeId::parse("spiffe://other.org/ns/shop/sa/cart").unwrap(),
        SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/Cart").unwrap(),
        domain.id(),
    ] {
        let (_, foreign) = request(Some(&id));
        let code = Code::PermissionDenied;
        assert_refused(&ca, Some(&token), foreign, code, "csr_foreign_identity").await;
    }
    let (_, mut impersonating) = request(None);
    impersonating.on_behalf_of = Some("spiffe://cluster.local/ns/shop/sa/admin".into());
    let code = Code::PermissionDenied;
    assert_refused(&ca, Some(&token), impersonating, code, "impersonation").await;
}

fn csr_with(change: impl FnOnce(&mut CertificateParams)) -> CertificateRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(cart().as_str().try_into().unwrap())];
    change(&mut params);
    let key = PrivateKey::generate().unwrap();
    let der = params.serialize_request(&key).unwrap();
    wanting(pem::encode(pem::CERTIFICATE_REQUEST, der.der()).as_str())
}

#[tokio::test]
async fn an_svid_carries_no_other_name() {
    let ca = Ca::start().await;
    let token = ca.token(&token_for_cart());
    for (name, reason) in [
        (
            SanType::DnsName("cart.shop.svc".try_into().unwrap()),
            "csr_other_name",
        ),
        (SanType::IpAddress([10, 0, 0, 1].into()), "csr_other_name"),
        (
            SanType::Rfc822Name("cart@shop".try_into().unwrap()),
            "csr_other_name",
        ),
        (
            SanType::URI("https://cart.shop".try_into().unwrap()),
            "csr_foreign_identity",
        ),
    ] {
        let request = csr_with(|params| params.subject_alt_names.push(name));
        let code = Code::PermissionDenied;
        assert_refused(&ca, Some(&token), request, code, reason).await;
    }
    let request = csr_with(|params| params.distinguished_name.push(DnType::CommonName, "cart"));
    let code = Code::PermissionDenied;
    assert_refused(&ca, Some(&token), request, code, "csr_other_name").await;
}

#[tokio::test]
async fn a_request_that_is_bad_in_itself_is_an_invalid_argument() {
    let ca = Ca::start().await;
    let token = ca.token(&token_for_cart());
    let (_, good) = request(Some(&cart()));
    let mut bent = pem::decode(&good.csr, 10_000).unwrap().remove(0).der;
    let last = bent.len() - 1;
    bent[last] ^= 1;
    for (request, reason) in [
        (wanting(include_str!("testdata/rsa1024.csr")), "csr_key"),
        (
            wanting(pem::encode(pem::CERTIFICATE_REQUEST, &bent).as_str()),
            "csr_signature",
        ),
        (
            csr_with(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            "csr_asks_for_ca",
        ),
        (
            csr_with(|params| {
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
            }),
            "csr_extension",
        ),
        (wanting(""), "csr_malformed"),
        (wanting("not a CSR"), "csr_malformed"),
        (wanting("x".repeat(20_000)), "csr_malformed"),
    ] {
        let code = Code::InvalidArgument;
        assert_refused(&ca, Some(&token), request, code, reason).await;
    }
}
