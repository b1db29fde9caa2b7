//! Certificate requests: what is let pass, and what is refused and why.

use bulkhead_pki::csr::{self, CsrError, MAX_CSR_PEM, OtherName, ParsedCsr};
use bulkhead_pki::key::{KeyKind, PrivateKey};
use bulkhead_pki::pem;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};

use crate::support::{uri, workload};

fn request(change: impl FnOnce(&mut CertificateParams)) -> Result<ParsedCsr, CsrError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    let key = PrivateKey::generate().unwrap();
    ParsedCsr::from_der(params.serialize_request(&key).unwrap().der())
}

#[test]
fn a_request_asks_for_one_identity_or_for_none() {
    let key = PrivateKey::generate().unwrap();
    let id = workload("cart");
    let named = ParsedCsr::from_pem(&csr::create(&key, Some(&id)).unwrap()).unwrap();
    assert_eq!(named.uris(), [id.as_str()]);
    assert_eq!(named.other_names(), []);
    assert_eq!(named.public_key(), key.public_key());
    assert_eq!(named.public_key().kind(), KeyKind::EcdsaP256);
    let nameless = ParsedCsr::from_pem(&csr::create(&key, None).unwrap()).unwrap();
    assert!(nameless.uris().is_empty());
}

#[test]
fn names_of_other_kinds_are_reported() {
    let csr = request(|params| {
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.subject_alt_names = vec![
            uri("spiffe://a/b"),
            uri("spiffe://a/c"),
            SanType::DnsName("a.b".try_into().unwrap()),
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::Rfc822Name("a@b".try_into().unwrap()),
            SanType::OtherName((vec![1, 2, 3], "x".into())),
        ];
    })
    .unwrap();
    assert_eq!(csr.uris(), ["spiffe://a/b", "spiffe://a/c"]);
    assert_eq!(
        csr.other_names(),
        [
            OtherName::Subject,
            OtherName::Dns,
            OtherName::Ip,
            OtherName::Email,
            OtherName::Unusual
        ]
    );
}

#[test]
fn a_subject_of_no_letters_as_istio_agent_writes_it_names_nobody() {
    let csr = request(|params| {
        params.distinguished_name.push(DnType::OrganizationName, "");
    })
    .unwrap();
    assert_eq!(csr.other_names(), []);
}

#[test]
fn the_usual_extensions_of_a_leaf_do_no_harm() {
    request(|params| {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
    })
    .unwrap();
}

#[test]
fn what_only_a_ca_may_do_is_refused() {
    assert_eq!(
        request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)).unwrap_err(),
        CsrError::CertificateAuthority
    );
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        assert_eq!(
            request(|params| params.key_usages = vec![usage]).unwrap_err(),
            CsrError::KeyUsage
        );
    }
}

#[test]
fn usages_and_extensions_that_no_svid_has_are_refused() {
    for usage in [
        ExtendedKeyUsagePurpose::Any,
        ExtendedKeyUsagePurpose::CodeSigning,
        ExtendedKeyUsagePurpose::Other(vec![1, 2, 3]),
    ] {
        assert_eq!(
            request(|params| params.extended_key_usages = vec![usage]).unwrap_err(),
            CsrError::ExtendedKeyUsage
        );
    }
    assert_eq!(
        request(|params| {
            params.custom_extensions =
                vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
        })
        .unwrap_err(),
        CsrError::Extension("1.2.3.4".into())
    );
}

#[test]
fn an_attribute_beside_the_extensions_is_refused() {
    let params = CertificateParams::default();
    let key = PrivateKey::generate().unwrap();
    // challengePassword (RFC 2985, 5.4.1), SET { UTF8String "x" }
    let password = rcgen::Attribute {
        oid: &[1, 2, 840, 113_549, 1, 9, 7],
        values: vec![0x31, 3, 0x0c, 1, b'x'],
    };
    let der = params
        .serialize_request_with_attributes(&key, vec![password])
        .unwrap();
    assert!(matches!(
        ParsedCsr::from_der(der.der()).unwrap_err(),
        CsrError::Attribute(_)
    ));
}

#[test]
fn who_does_not_hold_the_key_is_refused() {
    let key = PrivateKey::generate().unwrap();
    let text = csr::create(&key, Some(&workload("cart"))).unwrap();
    let der = pem::decode(&text, MAX_CSR_PEM).unwrap().remove(0).der;
    // ecdsa-with-SHA256: what says how it was signed is not signed itself.
    let oid = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let algorithm = der
        .windows(oid.len())
        .position(|window| window == oid)
        .unwrap();
    let mut wrong = 0;
    for at in (0..der.len()).filter(|at| !(algorithm..algorithm + oid.len()).contains(at)) {
        let mut bent = der.to_vec();
        bent[at] ^= 1;
        let error = ParsedCsr::from_der(&bent).unwrap_err();
        wrong += usize::from(error == CsrError::Signature);
    }
    assert!(wrong > 150, "{wrong} of {} changes", der.len());
    for length in 0..der.len() {
        assert!(ParsedCsr::from_der(&der[..length]).is_err());
    }
}

#[test]
fn a_text_that_is_not_one_request_is_refused() {
    let key = PrivateKey::generate().unwrap();
    let good = csr::create(&key, None).unwrap();
    let certificate = pem::encode(pem::CERTIFICATE, b"x");
    for (text, error) in [
        (String::new(), CsrError::NotOneRequest),
        ("no PEM at all".to_owned(), CsrError::NotOneRequest),
        (format!("{good}{good}"), CsrError::NotOneRequest),
        (certificate.to_string(), CsrError::NotOneRequest),
        (
            pem::encode(pem::CERTIFICATE_REQUEST, b"x").to_string(),
            CsrError::Malformed,
        ),
        (
            "x".repeat(MAX_CSR_PEM + 1),
            CsrError::Pem(pem::PemError::TooLong { limit: MAX_CSR_PEM }),
        ),
    ] {
        assert_eq!(ParsedCsr::from_pem(&text).unwrap_err(), error);
    }
}
