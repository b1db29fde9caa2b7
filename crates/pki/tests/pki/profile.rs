//! Every MUST of X509-SVID: what breaks it is not accepted from a peer, and
//! what Bulkhead issues never does.

use std::sync::Arc;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::svid::{LEAF_RULES, ProfileError, SIGNING_RULES, SvidChain, SvidError};
use bulkhead_pki::verifier::{PeerError, PeerVerifier, Role};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::support::{DAY, HOUR, Mesh, YEAR, leaf_params, now, trust_domain, uri, workload};

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const ALTERNATIVE_NAMES: &[u64] = &[2, 5, 29, 17];

fn verify(mesh: &Mesh, chain: &[CertificateDer<'static>]) -> Result<(), PeerError> {
    for role in [Role::Client, Role::Server] {
        PeerVerifier::any_member(Arc::new(mesh.bundle())).verify(
            &chain[0],
            &chain[1..],
            role,
            now(),
        )?;
    }
    Ok(())
}

/// A leaf that breaks the rule with this text, and no other way of looking at
/// it lets it pass either.
fn assert_leaf_breaks(text: &str, change: impl FnOnce(&mut CertificateParams)) {
    assert!(LEAF_RULES.iter().any(|rule| rule.text == text), "{text}");
    let mesh = Mesh::new();
    let chain = mesh.leaf_with(change);
    assert!(verify(&mesh, &chain).is_err(), "{text}");
    match SvidChain::from_der(chain) {
        Err(SvidError::Profile(ProfileError::Rule { text: broken, .. })) => {
            assert_eq!(broken, text);
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_leaf_that_keeps_every_rule_is_accepted() {
    let mesh = Mesh::new();
    assert_eq!(verify(&mesh, &mesh.leaf_with(|_| {})), Ok(()));
}

#[test]
fn a_leaf_has_exactly_one_uri() {
    let text = "a certificate has exactly one URI among its alternative names";
    assert_leaf_breaks(text, |params| {
        params.subject_alt_names = vec![SanType::DnsName("cart.shop".try_into().unwrap())];
    });
    assert_leaf_breaks(text, |params| {
        params
            .subject_alt_names
            .push(uri("spiffe://cluster.local/ns/shop/sa/admin"));
    });
    assert_leaf_breaks(text, |params| {
        params.subject_alt_names.push(uri("https://example.org/"));
    });
}

#[test]
fn a_leafs_uri_is_a_spiffe_id_with_a_path() {
    let mesh = Mesh::new();
    for bad in [
        "https://cluster.local/ns/shop/sa/cart",
        "spiffe://cluster.local/ns//sa/cart",
        "spiffe://cluster.local/ns/shop/sa/cart?x=1",
        "spiffe://cluster.local/ns/shop/sa/cart/",
        "spiffe://cluster.local/ns/shop/../sa/cart",
        "spiffe://user@cluster.local/ns/shop/sa/cart",
        "spiffe://cluster.local:443/ns/shop/sa/cart",
        "spiffe://cluster.local/ns/sh%6Fp/sa/cart",
        "spiffe://cluster.local/",
        "spiffe://cluster.local",
        "spiffe:///ns/shop/sa/cart",
    ] {
        let chain = mesh.leaf_with(|params| params.subject_alt_names = vec![uri(bad)]);
        assert!(verify(&mesh, &chain).is_err(), "{bad}");
        assert!(SvidChain::from_der(chain).is_err(), "{bad}");
    }
}

#[test]
fn the_alternative_names_are_critical_where_the_subject_is_empty() {
    // SEQUENCE { [6] "spiffe://cluster.local/ns/shop/sa/cart" }
    let id = workload("cart");
    let length = u8::try_from(id.as_str().len()).unwrap();
    let mut names = vec![0x30, length + 2, 0x86, length];
    names.extend(id.as_str().bytes());
    let not_critical = CustomExtension::from_oid_content(ALTERNATIVE_NAMES, names);
    assert_leaf_breaks(
        "the alternative names are critical where the subject is empty",
        |params| {
            params.subject_alt_names.clear();
            params.custom_extensions = vec![not_critical.clone()];
        },
    );
    let mesh = Mesh::new();
    let with_subject = mesh.leaf_with(|params| {
        params.subject_alt_names.clear();
        params.custom_extensions = vec![not_critical];
        params.distinguished_name.push(DnType::CommonName, "cart");
    });
    assert_eq!(verify(&mesh, &with_subject), Ok(()));
}

#[test]
fn a_leaf_does_not_set_ca() {
    assert_leaf_breaks("a leaf does not set cA", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
}

#[test]
fn key_usage_is_there_and_critical() {
    let text = "key usage is there and critical";
    assert_leaf_breaks(text, |params| params.key_usages.clear());
    assert_leaf_breaks(text, |params| {
        params.key_usages.clear();
        // BIT STRING digitalSignature
        let content = vec![3, 2, 7, 0x80];
        params.custom_extensions = vec![CustomExtension::from_oid_content(KEY_USAGE, content)];
    });
}

#[test]
fn a_leafs_key_usage_has_digital_signature() {
    assert_leaf_breaks("a leaf's key usage has digitalSignature", |params| {
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    });
}

#[test]
fn a_leafs_key_usage_signs_neither_certificates_nor_revocation_lists() {
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        assert_leaf_breaks(
            "a leaf's key usage has neither keyCertSign nor cRLSign",
            |params| params.key_usages.push(usage),
        );
    }
}

#[test]
fn a_leafs_extended_key_usage_is_for_both_sides_where_it_is_there() {
    for usage in [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ] {
        assert_leaf_breaks(
            "a leaf's extended key usage, if there, has both serverAuth and clientAuth",
            |params| params.extended_key_usages = vec![usage],
        );
    }
    let mesh = Mesh::new();
    let both = mesh.leaf_with(|params| {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
    });
    assert_eq!(verify(&mesh, &both), Ok(()));
}

#[test]
fn an_extension_that_is_there_twice_is_read_by_nobody() {
    let mesh = Mesh::new();
    let chain = mesh.leaf_with(|params| {
        let content = vec![3, 2, 7, 0x80];
        let mut usage = CustomExtension::from_oid_content(KEY_USAGE, content);
        usage.set_criticality(true);
        params.custom_extensions = vec![usage];
    });
    assert!(verify(&mesh, &chain).is_err());
    assert!(SvidChain::from_der(chain).is_err());
}

/// A leaf below an intermediate that `change` made of a good one.
fn chain_below(
    mesh: &Mesh,
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<CertificateDer<'static>> {
    let root = Issuer::from_ca_cert_der(mesh.root.certificate().der(), mesh.root.key().clone());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "signer");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![uri("spiffe://cluster.local")];
    change(&mut params);
    let key = PrivateKey::generate().unwrap();
    let signer = params.signed_by(&key, &root.unwrap()).unwrap();
    let issuer = Issuer::new(params, key);
    let leaf_key = PrivateKey::generate().unwrap();
    let leaf = leaf_params().signed_by(&leaf_key, &issuer).unwrap();
    vec![leaf.into(), signer.into()]
}

#[test]
fn a_signing_certificate_that_keeps_every_rule_is_accepted_with_an_id_or_without() {
    let mesh = Mesh::new();
    assert_eq!(verify(&mesh, &chain_below(&mesh, |_| {})), Ok(()));
    let nameless = chain_below(&mesh, |params| params.subject_alt_names.clear());
    assert_eq!(verify(&mesh, &nameless), Ok(()));
}

#[test]
fn a_signing_certificate_keeps_every_rule_of_its_own() {
    type Change = fn(&mut CertificateParams);
    let broken: [(&str, Change); 6] = [
        ("a signing certificate sets cA", |params| {
            params.is_ca = IsCa::ExplicitNoCa;
        }),
        ("key usage is there and critical", |params| {
            params.key_usages.clear();
        }),
        ("key usage is there and critical", |params| {
            params.key_usages.clear();
            // BIT STRING keyCertSign
            let content = vec![3, 2, 2, 4];
            params.custom_extensions = vec![CustomExtension::from_oid_content(KEY_USAGE, content)];
        }),
        (
            "a signing certificate's key usage has keyCertSign",
            |params| {
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            },
        ),
        (
            "a signing certificate has one URI among its alternative names at most",
            |params| params.subject_alt_names.push(uri("spiffe://other.org")),
        ),
        (
            "the SPIFFE ID of a signing certificate, if there, has no path",
            |params| params.subject_alt_names = vec![uri(workload("cart").as_str())],
        ),
    ];
    for rule in SIGNING_RULES {
        assert!(
            broken.iter().any(|(text, _)| *text == rule.text),
            "no test breaks the rule: {}",
            rule.text
        );
    }
    let mesh = Mesh::new();
    for (text, change) in broken {
        let error = verify(&mesh, &chain_below(&mesh, change)).unwrap_err();
        match error {
            PeerError::Profile(ProfileError::Rule { text: broken, .. }) => assert_eq!(broken, text),
            // A path through a certificate without cA is no path at all.
            PeerError::Path(_) => assert_eq!(text, "a signing certificate sets cA"),
            other => panic!("{text}: {other}"),
        }
    }
}

#[test]
fn a_signing_certificate_never_authenticates_anybody() {
    let mesh = Mesh::new();
    let own = [mesh.intermediate.certificate().der().clone()];
    assert!(verify(&mesh, &own).is_err());
    assert!(SvidChain::from_der(own.to_vec()).is_err());
}

#[test]
fn a_path_must_be_valid_in_time_and_end_in_the_bundle() {
    let mesh = Mesh::new();
    let chain = mesh.leaf_with(|_| {});
    let verifier = PeerVerifier::any_member(Arc::new(mesh.bundle()));
    let at = |time| verifier.verify(&chain[0], &chain[1..], Role::Server, time);
    assert!(at(now()).is_ok());
    assert!(at(now() + 2 * HOUR).is_err(), "expired");
    assert!(at(now() - 2 * HOUR).is_err(), "not yet valid");
    assert!(verify(&Mesh::new(), &chain).is_err(), "another root");
    assert!(verify(&mesh, &chain[..1]).is_err(), "without intermediate");
}

#[test]
fn an_expired_root_vouches_for_nobody() {
    let domain = trust_domain();
    let root = Authority::new_root(&domain, HOUR, now() - 2 * HOUR).unwrap();
    let key = PrivateKey::generate().unwrap();
    // The root itself would not sign any more; a careless one would.
    let issuer = Issuer::from_ca_cert_der(root.certificate().der(), root.key().clone()).unwrap();
    let leaf = leaf_params().signed_by(&key, &issuer).unwrap();
    let fresh = Mesh::new();
    for roots in [
        vec![root.certificate().clone()],
        vec![root.certificate().clone(), fresh.root.certificate().clone()],
    ] {
        let bundle = TrustBundle::new(domain.clone(), Roots::new(roots).unwrap());
        let result = PeerVerifier::any_member(Arc::new(bundle))
            .verify(leaf.der(), &[], Role::Client, now())
            .unwrap_err();
        assert!(matches!(result, PeerError::Path(_)), "{result}");
    }
}

#[test]
fn a_root_speaks_only_for_its_own_trust_domain() {
    let mesh = Mesh::new();
    let chain =
        mesh.leaf_with(|params| params.subject_alt_names = vec![uri("spiffe://other.org/x")]);
    let error = verify(&mesh, &chain).unwrap_err();
    assert!(matches!(error, PeerError::ForeignTrustDomain(_)), "{error}");
}

#[test]
fn what_is_issued_has_exactly_what_the_standard_and_the_design_say() {
    let mesh = Mesh::new();
    let key = PrivateKey::generate().unwrap();
    let chain = mesh
        .intermediate
        .issue_svid(&workload("cart"), key.public_key(), DAY, now())
        .unwrap();
    let der = chain.to_der();
    let (_, leaf) = X509Certificate::from_der(&der[0]).unwrap();

    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(
        names.value.general_names,
        [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]
    );
    assert!(leaf.subject().iter().next().is_none());
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert_eq!(usage.value.flags, 1, "digitalSignature and nothing else");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);

    let at = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_secs()).unwrap()
    };
    let validity = leaf.validity();
    assert_eq!(validity.not_before.timestamp(), at(now()) - 120);
    assert_eq!(validity.not_after.timestamp(), at(now()) + 24 * 3600);
    verify(&mesh, &der).unwrap();
}

#[test]
fn roots_and_intermediates_are_signing_certificates_of_the_trust_domain() {
    let mesh = Mesh::new();
    for authority in [&mesh.root, &mesh.intermediate] {
        let der = authority.certificate().der();
        let (_, parsed) = X509Certificate::from_der(der).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(
            names.general_names,
            [GeneralName::URI("spiffe://cluster.local")]
        );
        let constraints = parsed.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign());
        assert!(!usage.value.digital_signature());
    }
}

#[test]
fn serial_numbers_are_128_bits_that_nobody_foresees() {
    let mesh = Mesh::new();
    let key = PrivateKey::generate().unwrap();
    let mut ones = [0_u32; 128];
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        let chain = mesh
            .intermediate
            .issue_svid(&workload("cart"), key.public_key(), DAY, now())
            .unwrap();
        let serial = u128::from_str_radix(&chain.serial(), 16).unwrap();
        assert!(seen.insert(serial));
        for (bit, count) in ones.iter_mut().enumerate() {
            *count += u32::from(serial >> bit & 1 == 1);
        }
    }
    // Chance leaves a bit out of these bounds once in 10^11 runs.
    assert!(
        ones.iter().all(|count| (45..155).contains(count)),
        "{ones:?}"
    );
}

#[test]
fn nothing_is_issued_outside_the_trust_domain_or_for_the_trust_domain_itself() {
    let mesh = Mesh::new();
    let key = PrivateKey::generate().unwrap();
    let other = TrustDomain::new("other.org").unwrap();
    for id in [
        bulkhead_core::identity::SpiffeId::workload(&other, "shop", "cart").unwrap(),
        trust_domain().id(),
    ] {
        let issued = mesh
            .intermediate
            .issue_svid(&id, key.public_key(), DAY, now());
        assert!(issued.is_err(), "{id}");
    }
}

#[test]
fn a_spiffe_id_of_2048_bytes_is_issued_and_accepted() {
    let mesh = Mesh::new();
    let prefix = "spiffe://cluster.local/ns/shop/sa/";
    let text = format!("{prefix}{}", "x".repeat(2048 - prefix.len()));
    let id = bulkhead_core::identity::SpiffeId::parse(&text).unwrap();
    assert_eq!(mesh.identity(&id).id(), &id);
}

#[test]
fn nothing_outlives_what_signed_it() {
    let root = Authority::new_root(&trust_domain(), 10 * HOUR, now()).unwrap();
    let intermediate = root.new_intermediate(YEAR, now()).unwrap();
    assert_eq!(
        intermediate.certificate().not_after(),
        root.certificate().not_after()
    );
    let key = PrivateKey::generate().unwrap();
    let chain = intermediate
        .issue_svid(&workload("cart"), key.public_key(), DAY, now())
        .unwrap();
    assert_eq!(chain.not_after(), root.certificate().not_after());
    assert!(chain.not_before() >= root.certificate().not_before());
    let expired =
        intermediate.issue_svid(&workload("cart"), key.public_key(), DAY, now() + 10 * HOUR);
    assert!(expired.is_err(), "an expired signer signs nothing");
    assert!(root.new_intermediate(DAY, now() + 10 * HOUR).is_err());
    assert!(
        intermediate
            .issue_svid(&workload("cart"), key.public_key(), DAY, now() - HOUR)
            .is_err(),
        "a signer that is not valid yet signs nothing"
    );
}

#[test]
fn names_below_a_constrained_signer_stay_inside_what_it_may_name() {
    let mesh = Mesh::new();
    // webpki cannot judge a constraint on URIs, and refuses what it cannot judge.
    // NameConstraints { permittedSubtrees [0] { { [6] "other.org" } } }
    let mut content = vec![0x30, 15, 0xa0, 13, 0x30, 11, 0x86, 9];
    content.extend(b"other.org");
    let mut constraint = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    constraint.set_criticality(true);
    let chain = chain_below(&mesh, |params| params.custom_extensions = vec![constraint]);
    assert!(verify(&mesh, &chain).is_err());
}

#[test]
fn a_block_that_is_no_certificate_is_named_by_no_more_than_the_beginning_of_its_label() {
    let label = "A".repeat(10_000);
    let text = format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let error = Certificate::all_from_pem(&text, 100_000).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
}

#[test]
fn bytes_that_are_no_certificate_are_refused_wherever_they_are_cut_or_bent() {
    let mesh = Mesh::new();
    let good = mesh.leaf_with(|_| {});
    let leaf = good[0].to_vec();
    for length in 0..leaf.len() {
        assert!(Certificate::from_der(leaf[..length].to_vec().into()).is_err());
    }
    let mut longer = leaf.clone();
    longer.push(0);
    assert!(Certificate::from_der(longer.into()).is_err());
    for at in 0..leaf.len() {
        let mut bent = leaf.clone();
        bent[at] ^= 0x40;
        let chain = [bent.into(), good[1].clone()];
        assert!(verify(&mesh, &chain).is_err(), "byte {at}");
    }
}

#[test]
fn a_chain_of_absurd_length_is_refused_before_it_costs_anything() {
    let mesh = Mesh::new();
    let mut chain = mesh.leaf_with(|_| {});
    chain.extend(vec![chain[1].clone(); 30]);
    assert_eq!(verify(&mesh, &chain), Err(PeerError::ChainTooLong));
    assert_eq!(SvidChain::from_der(chain), Err(SvidError::Length(32)));
    assert_eq!(SvidChain::from_der(Vec::new()), Err(SvidError::Length(0)));
}
