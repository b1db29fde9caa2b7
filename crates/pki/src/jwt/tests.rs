use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;

use super::*;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

fn cart() -> SpiffeId {
    SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap()
}

fn audiences(names: &[&str]) -> Audiences {
    Audiences::new(names.iter().map(|name| (*name).to_owned())).unwrap()
}

fn authorities(key: &JwtKey) -> JwtAuthorities {
    JwtAuthorities::new(domain(), [key.jwk()])
}

fn token(key: &JwtKey) -> Zeroizing<String> {
    let claims = Claims {
        id: &cart(),
        audiences: &audiences(&["reports", "bills"]),
        issued_at: at(NOW),
        lifetime: Duration::from_secs(300),
        issuer: None,
    };
    key.sign(&claims).unwrap()
}

/// A token with any header and claims, signed by the key.
fn forged(key: &JwtKey, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = key.pair.sign(&SystemRandom::new(), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.unwrap()))
}

fn good_header(key: &JwtKey) -> Value {
    json!({"alg": "ES256", "kid": key.id(), "typ": "JWT"})
}

fn good_claims() -> Value {
    json!({"sub": cart(), "aud": ["reports"], "exp": NOW + 300, "iat": NOW})
}

/// A value with members put in, or taken out where there is null.
fn with(mut value: Value, changes: Value) -> Value {
    let members = value.as_object_mut().unwrap();
    for (name, change) in changes.as_object().unwrap() {
        match change {
            Value::Null => members.remove(name),
            change => members.insert(name.clone(), change.clone()),
        };
    }
    value
}

#[test]
fn a_token_says_who_it_is_for_whom_and_until_when_and_nothing_else() {
    let key = JwtKey::generate().unwrap();
    let svid = authorities(&key).validate(&token(&key), "bills", at(NOW + 299));
    let svid = svid.unwrap();
    assert_eq!(svid.id(), &cart());
    assert_eq!(svid.key_id(), key.id());
    assert_eq!(svid.audiences(), ["bills", "reports"]);
    assert_eq!(svid.expires_at(), at(NOW + 300));
    let expected = json!({
        "sub": "spiffe://cluster.local/ns/shop/sa/cart",
        "aud": ["bills", "reports"],
        "iat": NOW,
        "exp": NOW + 300,
    });
    assert_eq!(Value::Object(svid.claims().clone()), expected);
}

#[test]
fn section_2_the_header_has_no_other_member_than_the_standard_names() {
    let key = JwtKey::generate().unwrap();
    let token = token(&key);
    let (header, _) = token.split_once('.').unwrap();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    assert_eq!(header, good_header(&key));
}

#[test]
fn section_2_a_header_with_any_other_member_is_refused() {
    let key = JwtKey::generate().unwrap();
    for (name, value) in [
        ("jku", json!("https://elsewhere.example/keys")),
        ("jwk", serde_json::to_value(key.jwk()).unwrap()),
        ("x5u", json!("https://elsewhere.example/chain")),
        ("x5c", json!(["AA"])),
        ("x5t", json!("AA")),
        ("x5t#S256", json!("AA")),
        ("cty", json!("JWT")),
        ("https://example.org/private", json!({"deep": [1]})),
        ("", json!(null)),
    ] {
        let mut header = good_header(&key);
        header[name] = value;
        let token = forged(&key, &header, &good_claims());
        let refused = authorities(&key).validate(&token, "reports", at(NOW));
        assert!(
            matches!(&refused, Err(JwtError::HeaderMember(named)) if named == name),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn the_issuer_is_there_where_its_keys_can_be_discovered() {
    let key = JwtKey::generate().unwrap();
    let claims = Claims {
        id: &cart(),
        audiences: &audiences(&["a"]),
        issued_at: at(NOW),
        lifetime: Duration::from_secs(1),
        issuer: Some("https://tokens.example.org"),
    };
    let token = key.sign(&claims).unwrap();
    let svid = authorities(&key).validate(&token, "a", at(NOW)).unwrap();
    assert_eq!(svid.claims()["iss"], "https://tokens.example.org");
}

#[test]
fn a_key_that_was_kept_signs_under_the_same_name() {
    let key = JwtKey::generate().unwrap();
    let pem = key.private_key().to_pem().unwrap();
    let again = JwtKey::new(PrivateKey::from_pem(&pem).unwrap()).unwrap();
    assert_eq!(again.jwk(), key.jwk());
    let svid = authorities(&key).validate(&token(&again), "bills", at(NOW));
    assert!(svid.is_ok());
}

#[test]
fn the_thumbprint_is_that_of_another_implementation() {
    let key = JwtKey::generate().unwrap();
    let jwk: jsonwebtoken::jwk::Jwk =
        serde_json::from_value(serde_json::to_value(key.jwk()).unwrap()).unwrap();
    let thumbprint = jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256);
    assert_eq!(thumbprint.unwrap(), key.id());
}

#[test]
fn another_implementation_accepts_the_signature() {
    let key = JwtKey::generate().unwrap();
    let jwk: jsonwebtoken::jwk::Jwk =
        serde_json::from_value(serde_json::to_value(key.jwk()).unwrap()).unwrap();
    let decoding = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    validation.set_audience(&["reports"]);
    validation.validate_exp = false;
    let decoded = jsonwebtoken::decode::<Value>(token(&key).as_str(), &decoding, &validation);
    assert_eq!(decoded.unwrap().claims["sub"], cart().as_str());
}

#[test]
fn only_a_p256_key_signs_and_nothing_that_prints_shows_it() {
    let rsa = PrivateKey::generate_rsa().unwrap();
    assert_eq!(JwtKey::new(rsa).unwrap_err(), KeyError::Unsupported);
    let key = JwtKey::generate().unwrap();
    assert_eq!(format!("{key:?}"), format!("JwtKey({})", key.id()));
    assert_eq!(
        format!("{:?}", authorities(&key)),
        format!("[{:?}]", key.id())
    );
}

#[test]
fn section_2_1_any_other_algorithm_is_refused_and_so_is_none() {
    let key = JwtKey::generate().unwrap();
    for algorithm in [
        "none", "None", "HS256", "ES256K", "EdDSA", "RS256", "es256", "",
    ] {
        let header = with(good_header(&key), json!({ "alg": algorithm }));
        let token = forged(&key, &header, &good_claims());
        let refused = authorities(&key).validate(&token, "reports", at(NOW));
        assert!(refused.is_err(), "{algorithm}");
        let unsigned = &token[..=token.rfind('.').unwrap()];
        assert!(
            authorities(&key)
                .validate(unsigned, "reports", at(NOW))
                .is_err()
        );
    }
}

#[test]
fn section_2_1_a_token_by_p521_is_valid() {
    let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(66);
    let jwk = Jwk {
        kty: "EC".into(),
        public_key_use: Some(KEY_USE.into()),
        kid: Some("p521".into()),
        crv: Some("P-521".into()),
        x: Some(URL_SAFE_NO_PAD.encode(x)),
        y: Some(URL_SAFE_NO_PAD.encode(y)),
        ..Jwk::default()
    };
    let header = json!({"alg": "ES512", "kid": "p521"}).to_string();
    let signed = [header, good_claims().to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
    let signed = signed.join(".");
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    let authorities = JwtAuthorities::new(domain(), [&jwk]);
    assert!(authorities.validate(&token, "reports", at(NOW)).is_ok());
}

#[test]
fn section_2_3_a_type_is_jwt_or_jose_or_absent() {
    let key = JwtKey::generate().unwrap();
    let validate = |typ: Value| {
        let header = with(good_header(&key), json!({ "typ": typ }));
        let token = forged(&key, &header, &good_claims());
        authorities(&key).validate(&token, "reports", at(NOW))
    };
    for typ in [json!("JWT"), json!("JOSE"), Value::Null] {
        assert!(validate(typ).is_ok());
    }
    for typ in ["jwt", "at+jwt", "JWS", ""] {
        assert!(matches!(validate(json!(typ)), Err(JwtError::Type)), "{typ}");
    }
}

#[test]
fn a_token_that_names_no_key_or_an_unknown_one_is_refused() {
    let key = JwtKey::generate().unwrap();
    for kid in [Value::Null, json!("another"), json!("")] {
        let header = with(good_header(&key), json!({ "kid": kid }));
        let token = forged(&key, &header, &good_claims());
        assert!(
            authorities(&key)
                .validate(&token, "reports", at(NOW))
                .is_err()
        );
    }
}

#[test]
fn section_3_a_token_without_a_claim_that_must_be_there_is_refused() {
    let key = JwtKey::generate().unwrap();
    let header = good_header(&key);
    for change in [
        json!({"sub": null}),
        json!({"aud": null}),
        json!({"exp": null}),
        json!({"sub": ""}),
        json!({"sub": "cart"}),
        json!({"sub": "spiffe://cluster.local"}),
        json!({"sub": "spiffe://elsewhere.org/ns/shop/sa/cart"}),
        json!({"aud": []}),
        json!({"aud": "bills"}),
        json!({"aud": ["bills", "Reports"]}),
        json!({"aud": {"reports": true}}),
        json!({"exp": NOW}),
        json!({"exp": NOW - 1}),
        json!({"exp": -1}),
        json!({"exp": 1e300}),
        json!({"exp": "tomorrow"}),
        json!({"exp": (NOW + 300).to_string()}),
        json!({"nbf": NOW + 1}),
    ] {
        let token = forged(&key, &header, &with(good_claims(), change.clone()));
        let refused = authorities(&key).validate(&token, "reports", at(NOW));
        assert!(refused.is_err(), "{change}");
    }
    for change in [
        json!({}),
        json!({"aud": "reports"}),
        json!({"aud": ["bills", "reports"]}),
        json!({"exp": NOW as f64 + 0.5}),
        json!({"nbf": NOW}),
        json!({"iat": null}),
        json!({"https://example.org/role": {"deep": [1]}}),
    ] {
        let token = forged(&key, &header, &with(good_claims(), change.clone()));
        let svid = authorities(&key).validate(&token, "reports", at(NOW));
        assert!(svid.is_ok(), "{change}");
    }
}

#[test]
fn section_5_1_only_the_compact_serialization_is_read() {
    let key = JwtKey::generate().unwrap();
    let token = token(&key);
    let parts: Vec<_> = token.split('.').collect();
    let json = json!({
        "protected": parts[0], "payload": parts[1], "signature": parts[2],
    });
    for other in [
        json.to_string(),
        format!("{}.", *token),
        parts[1..].join("."),
    ] {
        assert!(
            authorities(&key)
                .validate(&other, "bills", at(NOW))
                .is_err()
        );
    }
}

#[test]
fn section_6_1_only_keys_of_jwt_svids_with_a_name_are_taken_from_a_bundle() {
    let key = JwtKey::generate().unwrap();
    let jwk = || serde_json::to_value(key.jwk()).unwrap();
    let other = JwtKey::generate().unwrap();
    for change in [
        json!({"use": "x509-svid"}),
        json!({"use": "sig"}),
        json!({"use": null}),
        json!({"kid": null}),
        json!({"kid": ""}),
        json!({"kty": "unheard-of"}),
        json!({"crv": "unheard-of"}),
        json!({"x": "AA"}),
    ] {
        let bundle = json!({"keys": [with(jwk(), change.clone()), other.jwk()]}).to_string();
        let authorities = JwtAuthorities::from_json(domain(), &bundle).unwrap();
        assert_eq!(authorities.jwks(), [other.jwk().clone()], "{change}");
        let refused = authorities.validate(&token(&key), "bills", at(NOW));
        assert!(refused.is_err());
    }
}

#[test]
fn a_bundle_without_keys_makes_every_token_untrusted() {
    let key = JwtKey::generate().unwrap();
    let authorities = JwtAuthorities::from_json(domain(), r#"{"keys": []}"#).unwrap();
    assert!(
        authorities
            .validate(&token(&key), "bills", at(NOW))
            .is_err()
    );
    assert!(JwtAuthorities::from_json(domain(), "{}").is_err());
    let long = " ".repeat(MAX_BUNDLE + 1);
    let refused = JwtAuthorities::from_json(domain(), &long);
    assert!(matches!(refused, Err(JwtError::BundleTooLong)));
}

#[test]
fn authorities_survive_the_way_over_the_wire() {
    let (one, two) = (JwtKey::generate().unwrap(), JwtKey::generate().unwrap());
    let authorities = JwtAuthorities::new(domain(), [one.jwk(), two.jwk()]);
    let again = JwtAuthorities::from_json(domain(), &authorities.to_json()).unwrap();
    assert_eq!(again, authorities);
}

#[test]
fn a_token_that_is_too_long_is_not_looked_at() {
    let key = JwtKey::generate().unwrap();
    let long = with(good_claims(), json!({"pad": "x".repeat(MAX_TOKEN)}));
    let token = forged(&key, &good_header(&key), &long);
    let refused = authorities(&key).validate(&token, "reports", at(NOW));
    assert!(matches!(refused, Err(JwtError::TooLong)));
}

#[test]
fn audiences_are_some_and_not_too_many() {
    let names = |names: &[&str]| Audiences::new(names.iter().map(|name| (*name).to_owned()));
    assert_eq!(names(&["b", "a", "b"]).unwrap().as_slice(), ["a", "b"]);
    assert_eq!(names(&[]), Err(AudienceError::None));
    assert_eq!(names(&["a", ""]), Err(AudienceError::Empty));
    assert_eq!(
        names(&["a"; MAX_AUDIENCES + 1]),
        Err(AudienceError::TooMany)
    );
    let long = "a".repeat(MAX_AUDIENCE + 1);
    assert_eq!(names(&[&long]), Err(AudienceError::TooLong));
}
