//! Trust bundles, their names, and the documents that carry them: each MUST of
//! SPIFFE Trust Domain and Bundle (section 4), X509-SVID (section 6) and JWT-SVID
//! (section 6) that concerns them.

use std::time::Duration;

use bulkhead_pki::bundle::document::{DocumentError, JwtAuthority, TrustBundleDocument};
use bulkhead_pki::bundle::{BundleId, Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::key::PrivateKey;
use serde_json::{Value, json};

use crate::support::{Mesh, trust_domain};

fn root() -> Certificate {
    Mesh::new().root.certificate().clone()
}

fn document() -> TrustBundleDocument {
    TrustBundleDocument {
        x509_authorities: vec![root(), root()],
        jwt_authorities: vec![JwtAuthority {
            key_id: "first".to_owned(),
            key: PrivateKey::generate().unwrap().public_key().clone(),
        }],
        sequence: u64::MAX,
        refresh_hint: Some(Duration::from_secs(300)),
    }
}

fn as_value(document: &TrustBundleDocument) -> Value {
    serde_json::from_str(&document.to_json().unwrap()).unwrap()
}

fn read(value: &Value) -> Result<TrustBundleDocument, DocumentError> {
    TrustBundleDocument::from_json(&value.to_string())
}

#[test]
fn the_same_roots_in_another_order_are_the_same_bundle() {
    let (one, two, three) = (root(), root(), root());
    let ahead = Roots::new([one.clone(), two.clone()]).unwrap();
    let behind = Roots::new([two.clone(), one.clone(), two.clone()]).unwrap();
    assert_eq!(ahead, behind);
    assert_eq!(ahead.id(), behind.id());
    assert_eq!(behind.certificates()[0], two, "the order itself is kept");
    for other in [
        Roots::new([one.clone()]).unwrap(),
        Roots::new([one.clone(), three.clone()]).unwrap(),
        Roots::new([one, two, three]).unwrap(),
    ] {
        assert_ne!(ahead, other);
        assert_ne!(ahead.id(), other.id());
    }
}

#[test]
fn a_trailing_newline_or_a_comment_makes_no_other_bundle() {
    let pem = Roots::new([root(), root()]).unwrap().to_pem();
    let plain = Roots::from_pem(&pem).unwrap();
    let windows = pem.replace('\n', "\r\n");
    for text in [
        format!("{pem}\n\n"),
        format!("# our roots\n\n{pem}  \n"),
        pem.trim_end().to_owned(),
        windows,
    ] {
        let read = Roots::from_pem(&text).unwrap();
        assert_eq!(read, plain);
        assert_eq!(read.id(), plain.id());
    }
}

#[test]
fn the_name_of_a_bundle_is_what_the_contract_says() {
    let (one, two) = (root(), root());
    let roots = Roots::new([one.clone(), two.clone()]).unwrap();
    let mut prints = [one.fingerprint(), two.fingerprint()];
    prints.sort();
    let bytes: Vec<u8> = prints.iter().flat_map(|print| *print.as_bytes()).collect();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let expected: String = digest.as_ref()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(roots.id().to_string(), expected);
    assert_eq!(expected.parse(), Ok(roots.id()));
    for bad in ["", "00", &expected.to_uppercase(), &format!("{expected}0")] {
        assert!(bad.parse::<BundleId>().is_err(), "{bad:?}");
    }
}

#[test]
fn two_versions_of_a_bundle_are_told_apart_by_their_numbers() {
    let roots = Roots::new([root()]).unwrap();
    let bundle = TrustBundle::new(trust_domain(), roots);
    assert_eq!(bundle.sequence(), 0, "nobody said which it is");
    let later = bundle.clone().with_sequence(7);
    assert_eq!(later.sequence(), 7);
    assert_eq!(later.id(), bundle.id());
    assert_ne!(later, bundle);
}

/// Trust Domain and Bundle 4.1.1 to 4.2.2; X509-SVID 6.1; JWT-SVID 6.1.
#[test]
fn what_we_publish_has_what_it_must_and_nothing_that_it_must_not() {
    let document = document();
    let value = as_value(&document);
    assert_eq!(value["spiffe_sequence"], json!(u64::MAX), "an integer");
    assert_eq!(value["spiffe_refresh_hint"], json!(300));
    let keys = value["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 3);
    for (key, root) in keys.iter().zip(&document.x509_authorities) {
        assert_eq!(key["use"], "x509-svid");
        assert_eq!(key["kty"], "EC");
        assert!(key.get("kid").is_none(), "kid must not be set");
        let certificates = key["x5c"].as_array().unwrap();
        assert_eq!(certificates.len(), 1, "exactly one certificate");
        let text = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            certificates[0].as_str().unwrap()
        );
        assert_eq!(&Certificate::all_from_pem(&text, 10_000).unwrap()[0], root);
    }
    let jwt = &keys[2];
    assert_eq!(jwt["use"], "jwt-svid");
    assert_eq!(jwt["kid"], "first");
    assert!(jwt.get("x5c").is_none());
    assert_eq!(read(&value).unwrap(), document);
}

#[test]
fn a_bundle_of_unknown_version_says_no_version() {
    let document = TrustBundleDocument {
        sequence: 0,
        refresh_hint: None,
        ..document()
    };
    let value = as_value(&document);
    assert!(value.get("spiffe_sequence").is_none());
    assert!(value.get("spiffe_refresh_hint").is_none());
    assert_eq!(read(&value).unwrap(), document);
}

/// Trust Domain and Bundle 4.1.3: `keys` must be there; an empty set takes all
/// trust back.
#[test]
fn no_keys_at_all_is_a_mistake_and_an_empty_list_is_the_end_of_all_trust() {
    assert!(matches!(
        read(&json!({"spiffe_sequence": 1})),
        Err(DocumentError::Json(_))
    ));
    let empty = read(&json!({"keys": []})).unwrap();
    assert_eq!(empty.x509_authorities, []);
    assert!(empty.trust_bundle(trust_domain()).is_err());
}

/// Trust Domain and Bundle 4.1.3, 4.2.1, 4.2.2; X509-SVID 6.2.
#[test]
fn what_a_consumer_must_ignore_is_ignored() {
    let document = document();
    let mut value = as_value(&document);
    let keys = value["keys"].as_array_mut().unwrap();
    let other = keys[1]["x5c"][0].clone();
    keys[0]["x5c"].as_array_mut().unwrap().push(other);
    keys[1]["x5c"]
        .as_array_mut()
        .unwrap()
        .push(json!("garbage"));
    let certificate = keys[0]["x5c"].clone();
    for ignored in [
        json!({"kty": "OKP", "crv": "Ed25519", "use": "x509-svid", "x5c": certificate}),
        json!({"kty": "EC", "use": "wit-svid", "x5c": certificate}),
        json!({"kty": "EC", "use": "X509-SVID", "x5c": certificate}),
        json!({"kty": "EC", "x5c": certificate}),
        json!({"use": "x509-svid", "x5c": certificate}),
        json!({"kty": "EC", "use": "x509-svid"}),
        json!({"kty": "EC", "use": "x509-svid", "x5c": []}),
        json!({"kty": "EC", "use": "jwt-svid", "crv": "P-256", "x": "AA", "y": "AA"}),
        json!({"kty": "oct", "use": "jwt-svid", "kid": "secret", "k": "AA"}),
    ] {
        keys.push(ignored);
    }
    keys[2]["something_new"] = json!({"a": 1});
    value["something_else"] = json!([1]);
    assert_eq!(read(&value).unwrap(), document);
}

#[test]
fn an_entry_that_is_meant_for_us_and_cannot_be_read_is_named() {
    for (bad, at) in [
        (json!({"kty": "EC", "use": "x509-svid", "x5c": ["!"]}), 1),
        (
            json!({"kty": "RSA", "use": "x509-svid", "x5c": ["AAAA"]}),
            1,
        ),
        (json!({"kty": "EC", "use": "jwt-svid", "kid": "x"}), 1),
    ] {
        let value = json!({"keys": [{"kty": "OKP"}, bad]});
        let error = read(&value).unwrap_err();
        assert!(
            matches!(&error, DocumentError::Certificate { at: found, .. }
                | DocumentError::Key { at: found, .. } if *found == at),
            "{error}"
        );
        assert!(error.to_string().contains("key 1 of the bundle"), "{error}");
    }
    for bad in [
        json!([]),
        json!({"keys": {}}),
        json!({"keys": [], "spiffe_sequence": -1}),
        json!({"keys": [], "spiffe_sequence": 1.5}),
        json!({"keys": [], "spiffe_refresh_hint": "often"}),
    ] {
        assert!(matches!(read(&bad), Err(DocumentError::Json(_))), "{bad}");
    }
    let long = " ".repeat(2 * 1024 * 1024);
    let error = TrustBundleDocument::from_json(&long).unwrap_err();
    assert!(matches!(error, DocumentError::TooLong));
}

/// Trust Domain and Bundle 6.3: whoever takes the first of two and whoever takes the
/// last would trust different keys.
#[test]
fn a_document_that_says_something_twice_is_refused() {
    for twice in [
        r#"{"keys": [], "keys": []}"#,
        r#"{"keys": [], "spiffe_sequence": 1, "spiffe_sequence": 2}"#,
        r#"{"keys": [{"kty": "EC", "use": "wit-svid", "use": "x509-svid"}]}"#,
        r#"{"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [], "x5c": ["AA"]}]}"#,
    ] {
        let refused = TrustBundleDocument::from_json(twice);
        assert!(matches!(refused, Err(DocumentError::Json(_))), "{twice}");
    }
}

#[test]
fn roots_of_every_kind_of_key_can_be_published() {
    for kind in [
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P256_SHA256,
    ] {
        let key = rcgen::KeyPair::generate_for(kind).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let document = TrustBundleDocument {
            x509_authorities: vec![Certificate::from_der(certificate.der().clone()).unwrap()],
            ..document()
        };
        assert_eq!(read(&as_value(&document)).unwrap(), document);
    }
    let rsa = TrustBundleDocument {
        jwt_authorities: vec![JwtAuthority {
            key_id: "rsa".to_owned(),
            key: PrivateKey::generate_rsa().unwrap().public_key().clone(),
        }],
        ..document()
    };
    assert_eq!(read(&as_value(&rsa)).unwrap(), rsa);
}
