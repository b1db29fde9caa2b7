//! Authorities and bundles as they are stored, and identities put together.

use bulkhead_pki::authority::{Authority, AuthorityError};
use bulkhead_pki::bundle::{BundleError, Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::identity::{IdentityError, WorkloadIdentity};
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::svid::SvidChain;
use bulkhead_pki::verifier::PeerError;

use crate::support::{DAY, HOUR, Mesh, YEAR, now, trust_domain, workload};

fn reload(authority: &Authority, roots: &Roots) -> Result<Authority, AuthorityError> {
    let text: String = authority
        .intermediates()
        .iter()
        .chain([authority.root()])
        .map(Certificate::to_pem)
        .collect();
    let chain = Certificate::all_from_pem(&text, 100_000).unwrap();
    let key = PrivateKey::from_pem(&authority.key().to_pem().unwrap()).unwrap();
    Authority::from_parts(&trust_domain(), chain, key, roots)
}

#[test]
fn an_authority_survives_the_way_to_disk_and_back() {
    let mesh = Mesh::new();
    let bundle = mesh.bundle();
    for authority in [&mesh.root, &mesh.intermediate] {
        let again = reload(authority, bundle.roots()).unwrap();
        assert_eq!(again.certificate(), authority.certificate());
        assert_eq!(again.intermediates(), authority.intermediates());
        assert_eq!(again.root(), authority.root());
        let key = PrivateKey::generate().unwrap();
        let id = workload("cart");
        let chain = again.issue_svid(&id, key.public_key(), DAY, now()).unwrap();
        WorkloadIdentity::new(&id, &key, chain, bundle.clone(), now()).unwrap();
    }
    assert!(mesh.root.intermediates().is_empty(), "a root is not sent");
}

#[test]
fn parts_that_do_not_fit_together_are_refused_with_the_reason() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let roots = mesh.bundle().roots().clone();
    let intermediate = mesh.intermediate.certificate().clone();
    let load = |chain: Vec<Certificate>, key: &PrivateKey| {
        Authority::from_parts(&trust_domain(), chain, key.clone(), &roots).unwrap_err()
    };
    let key = mesh.intermediate.key();
    assert!(matches!(load(Vec::new(), key), AuthorityError::Empty));
    assert!(matches!(
        load(vec![intermediate.clone()], other.intermediate.key()),
        AuthorityError::Sign(_)
    ));
    assert!(matches!(
        load(vec![other.intermediate.certificate().clone()], key),
        AuthorityError::NoRoot(_)
    ));
    let wrong_way_round = vec![mesh.root.certificate().clone(), intermediate.clone()];
    assert!(matches!(
        load(wrong_way_round, key),
        AuthorityError::BrokenChain(_)
    ));
    let domain = bulkhead_core::identity::TrustDomain::new("other.org").unwrap();
    let foreign =
        Authority::from_parts(&domain, vec![intermediate], key.clone(), &roots).unwrap_err();
    assert!(matches!(foreign, AuthorityError::TrustDomain(_)));
}

#[test]
fn a_leaf_cannot_be_used_as_an_authority() {
    let mesh = Mesh::new();
    let key = PrivateKey::generate().unwrap();
    let leaf = mesh
        .intermediate
        .issue_svid(&workload("cart"), key.public_key(), DAY, now())
        .unwrap();
    let chain = vec![leaf.leaf().clone(), mesh.intermediate.certificate().clone()];
    let roots = mesh.bundle().roots().clone();
    let error = Authority::from_parts(&trust_domain(), chain, key, &roots).unwrap_err();
    assert!(matches!(error, AuthorityError::Profile(_)), "{error}");
}

#[test]
fn printing_an_authority_shows_no_key() {
    let mesh = Mesh::new();
    let shown = format!("{:?}", mesh.root);
    let der = mesh.root.key().to_der().unwrap();
    assert!(shown.contains("cluster.local"));
    assert!(!shown.contains(&format!("{:?}", &der[40..48])));
    assert!(shown.len() < 200, "{shown}");
}

#[test]
fn a_bundle_is_read_with_comments_and_blank_lines_and_written_without() {
    let (first, second) = (Mesh::new(), Mesh::new());
    let one = first.root.certificate().to_pem();
    let two = second.root.certificate().to_pem();
    let text = format!("# the old root\n{one}\n\n# the new one\n{two}{one}\n\n");
    let bundle = TrustBundle::from_pem(trust_domain(), &text).unwrap();
    assert_eq!(bundle.roots().certificates().len(), 2, "twice counts once");
    assert_eq!(bundle.to_pem(), format!("{one}{two}"));
    let again = TrustBundle::from_pem(trust_domain(), &bundle.to_pem()).unwrap();
    assert_eq!(again, bundle);
}

#[test]
fn an_empty_or_wrong_bundle_is_refused_with_the_reason() {
    let mesh = Mesh::new();
    let identity = mesh.identity(&workload("cart"));
    for text in ["", "\n\n", "# nothing yet\n", "garbage"] {
        assert_eq!(Roots::from_pem(text), Err(BundleError::Empty), "{text:?}");
    }
    let leaf = identity.chain().leaf().to_pem();
    assert_eq!(
        Roots::from_pem(&leaf),
        Err(BundleError::NotAnAuthority(identity.serial()))
    );
    let key = mesh.root.key().to_pem().unwrap();
    assert!(matches!(
        Roots::from_pem(&key),
        Err(BundleError::Certificate(_))
    ));
    let cut = &mesh.bundle().to_pem()[..200];
    assert!(matches!(
        Roots::from_pem(cut),
        Err(BundleError::Certificate(_))
    ));
}

#[test]
fn an_identity_is_made_only_of_parts_that_its_peers_accept() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let id = workload("cart");
    let key = PrivateKey::generate().unwrap();
    let chain = mesh
        .intermediate
        .issue_svid(&id, key.public_key(), HOUR, now())
        .unwrap();
    let make = |id, key, chain: &SvidChain, bundle, now| {
        WorkloadIdentity::new(id, key, chain.clone(), bundle, now)
    };
    let identity = make(&id, &key, &chain, mesh.bundle(), now()).unwrap();
    assert_eq!(identity.id(), &id);
    assert_eq!(identity.not_after(), now() + HOUR);

    let admin = workload("admin");
    let another_key = PrivateKey::generate().unwrap();
    assert!(matches!(
        make(&id, &another_key, &chain, mesh.bundle(), now()),
        Err(IdentityError::KeyMismatch)
    ));
    assert!(matches!(
        make(&admin, &key, &chain, mesh.bundle(), now()),
        Err(IdentityError::Peer(PeerError::UnexpectedIdentity { .. }))
    ));
    assert!(matches!(
        make(&id, &key, &chain, other.bundle(), now()),
        Err(IdentityError::Peer(PeerError::Path(_)))
    ));
    for time in [now() - HOUR, now() + HOUR + HOUR] {
        assert!(matches!(
            make(&id, &key, &chain, mesh.bundle(), time),
            Err(IdentityError::Peer(PeerError::Path(_)))
        ));
    }
    let leaf_only = SvidChain::new(chain.leaf().clone(), []).unwrap();
    assert!(make(&id, &key, &leaf_only, mesh.bundle(), now()).is_err());
}

#[test]
fn a_chain_survives_the_way_as_text() {
    let mesh = Mesh::new();
    let identity = mesh.identity(&workload("cart"));
    let chain = identity.chain();
    assert_eq!(&SvidChain::from_pem(&chain.to_pem()).unwrap(), chain);
    assert_eq!(&SvidChain::from_der(chain.to_der()).unwrap(), chain);
    assert_eq!(chain.intermediates().len(), 1);
}

#[test]
fn a_lifetime_that_is_no_lifetime_is_refused() {
    for lifetime in [std::time::Duration::ZERO, std::time::Duration::MAX] {
        assert!(Authority::new_root(&trust_domain(), lifetime, now()).is_err());
    }
    assert!(Authority::new_root(&trust_domain(), YEAR * 9000, now()).is_err());
}
