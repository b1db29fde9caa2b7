//! Signing certificates that OpenSSL made: taken where peers accept what they
//! issue, and refused with the reason where not.

use bulkhead_pki::authority::Authority;
use bulkhead_pki::authority::foreign::ForeignError;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::{KeyError, PrivateKey};

use crate::openssl::{OpenSsl, P256, P384, RSA};
use crate::support::{DAY, now, trust_domain, workload};

/// What a company's CA has: no SPIFFE ID.
const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";

impl OpenSsl {
    /// A CA as companies have them.
    fn company(&self, name: &str, key: &str, issuer: Option<&str>) {
        self.company_with(name, key, issuer, CA);
    }

    fn company_with(&self, name: &str, key: &str, issuer: Option<&str>, extensions: &str) {
        self.run(&format!("genpkey {key} -out {name}.key"));
        self.certify(name, issuer, extensions);
    }

    fn roots(&self, names: &[&str]) -> Roots {
        let certificates = names.iter().map(|name| self.ca(name));
        Roots::new(certificates).unwrap()
    }

    fn ca(&self, name: &str) -> Certificate {
        self.certificate(&format!("{name}.crt"))
    }

    /// The authority of these files: the key is `key`'s, the chain and roots are
    /// those named.
    fn load(&self, key: &str, chain: &[&str], roots: &[&str]) -> Result<Authority, ForeignError> {
        let chain = chain.iter().map(|name| self.ca(name)).collect();
        let key = PrivateKey::from_pem(&self.read(&format!("{key}.key"))).unwrap();
        Authority::from_elsewhere(&trust_domain(), chain, key, &self.roots(roots), now())
    }
}

/// A workload gets a certificate from it that its peers and OpenSSL accept.
fn issues_what_peers_accept(openssl: &OpenSsl, authority: &Authority, roots: &Roots) {
    let (key, id) = (PrivateKey::generate().unwrap(), workload("cart"));
    let svid = authority
        .issue_svid(&id, key.public_key(), DAY, now())
        .unwrap();
    openssl.write("leaf.pem", &svid.leaf().to_pem());
    // OpenSSL wants at least one, and a root does no harm there.
    let untrusted: String = svid
        .intermediates()
        .iter()
        .chain(roots.certificates())
        .map(Certificate::to_pem)
        .collect();
    openssl.write("untrusted.pem", &untrusted);
    openssl.write("roots.pem", &roots.to_pem());
    let said = openssl.run(
        "verify -x509_strict -purpose sslserver -CAfile roots.pem -untrusted untrusted.pem leaf.pem",
    );
    assert!(said.contains("leaf.pem: OK"), "{said}");
    let bundle = TrustBundle::new(trust_domain(), roots.clone());
    WorkloadIdentity::new(&id, &key, svid, bundle, now()).unwrap();
}

#[test]
fn any_level_of_a_companys_chain_signs_leaves_and_intermediates_of_ours() {
    let rsa_4096 = "-algorithm RSA -pkeyopt rsa_keygen_bits:4096";
    let openssl = OpenSsl::new();
    openssl.company("root", rsa_4096, None);
    openssl.company("policy", P384, Some("root"));
    openssl.company("issuing", RSA, Some("policy"));
    openssl.company("mesh", P256, Some("issuing"));
    let roots = openssl.roots(&["root"]);
    for chain in [
        &["mesh", "issuing", "policy", "root"][..],
        &["issuing", "policy"],
        &["policy"],
        &["root"],
    ] {
        let authority = openssl.load(chain[0], chain, &["root"]).unwrap();
        issues_what_peers_accept(&openssl, &authority, &roots);
        let key = PrivateKey::generate().unwrap();
        let ours = authority
            .try_intermediate(&key, &roots, DAY, now())
            .unwrap();
        assert_eq!(ours.key().public_key(), key.public_key());
        issues_what_peers_accept(&openssl, &ours, &roots);
    }
}

#[test]
fn an_intermediate_below_a_name_of_any_form_holds() {
    let openssl = OpenSsl::new();
    openssl.write("ca.ext", CA);
    openssl.run(&format!("genpkey {P256} -out ca.key"));
    openssl.run(
        "req -new -key ca.key -multivalue-rdn -utf8 -out ca.csr \
         -subj /O=Acme+OU=Security/OU=One/OU=Two/L=Zürich/CN=ca/emailAddress=a@b",
    );
    openssl.run("x509 -req -in ca.csr -signkey ca.key -days 30 -extfile ca.ext -out ca.crt");
    let authority = openssl.load("ca", &["ca"], &["ca"]).unwrap();
    let key = PrivateKey::generate().unwrap();
    let roots = openssl.roots(&["ca"]);
    let ours = authority
        .try_intermediate(&key, &roots, DAY, now())
        .unwrap();
    issues_what_peers_accept(&openssl, &ours, &roots);
}

#[test]
fn a_root_that_an_older_one_signed_is_taken_with_either_or_both_trusted() {
    let openssl = OpenSsl::new();
    openssl.company("old", P256, None);
    openssl.company("new", P256, None);
    openssl.company("mesh", P256, Some("new"));
    // The new root's key and name, signed by the old root.
    openssl.write("cross.ext", &format!("{CA}subjectKeyIdentifier=hash\n"));
    openssl.run(
        "x509 -req -in new.csr -CA old.crt -CAkey old.key -days 30 -extfile cross.ext -out cross.crt",
    );
    for trusted in [&["old"][..], &["new"], &["old", "new"], &["new", "old"]] {
        let authority = openssl.load("mesh", &["mesh", "cross"], trusted).unwrap();
        issues_what_peers_accept(&openssl, &authority, &openssl.roots(trusted));
        let is_new = authority.root() == &openssl.ca("new");
        assert_eq!(is_new, trusted == ["new"], "{trusted:?}");
    }
    let authority = openssl.load("mesh", &["mesh"], &["new"]).unwrap();
    issues_what_peers_accept(&openssl, &authority, &openssl.roots(&["new"]));
}

#[test]
fn files_that_do_not_fit_together_are_refused_with_the_reason() {
    let openssl = OpenSsl::new();
    openssl.company("root", P256, None);
    openssl.company("upper", P256, Some("root"));
    openssl.company("mesh", P256, Some("upper"));
    openssl.company("stranger", P256, None);
    let refused = |key: &str, chain: &[&str], roots: &[&str]| {
        openssl.load(key, chain, roots).unwrap_err().to_string()
    };
    let serial = |name: &str| openssl.ca(name).serial();

    let said = refused("stranger", &["mesh", "upper"], &["root"]);
    assert!(said.contains("private key is not that of"), "{said}");
    let said = refused("mesh", &["upper", "mesh"], &["root"]);
    assert!(said.contains("put the signing certificate first"), "{said}");
    let said = refused("mesh", &["mesh", "root", "upper"], &["root"]);
    assert!(said.contains("wrong order"), "{said}");
    assert!(said.contains(&serial("upper")), "{said}");
    let said = refused("mesh", &["mesh", "root"], &["root"]);
    assert!(said.contains("has a gap"), "{said}");
    let said = refused("mesh", &["mesh", "upper"], &["stranger"]);
    assert!(said.contains("none of the trust roots"), "{said}");
    assert!(said.contains(&serial("upper")), "{said}");
    let said = refused("mesh", &["mesh"], &["root"]);
    assert!(said.contains(&serial("mesh")), "{said}");
    assert!(matches!(
        openssl.load("mesh", &[], &["root"]),
        Err(ForeignError::Empty)
    ));
}

#[test]
fn a_certificate_that_may_not_sign_is_refused() {
    let openssl = OpenSsl::new();
    openssl.company("root", P256, None);
    let leaf = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n";
    openssl.company_with("leaf", P256, Some("root"), leaf);
    let refused = openssl.load("leaf", &["leaf"], &["root"]).unwrap_err();
    assert!(
        matches!(refused, ForeignError::NotAnAuthority(_)),
        "{refused}"
    );
    let usage = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,cRLSign\n";
    openssl.company_with("usage", P256, Some("root"), usage);
    let refused = openssl.load("usage", &["usage"], &["root"]).unwrap_err();
    assert!(matches!(refused, ForeignError::Profile { .. }), "{refused}");
    // Of another mesh: its own members would be strangers to it.
    let other = format!("{CA}subjectAltName=URI:spiffe://other.example\n");
    openssl.company_with("other", P256, Some("root"), &other);
    let refused = openssl.load("other", &["other"], &["root"]).unwrap_err();
    assert!(
        refused.to_string().contains("another trust domain"),
        "{refused}"
    );
}

#[test]
fn a_weak_key_anywhere_in_the_chain_is_refused() {
    let openssl = OpenSsl::new();
    let weak = "-algorithm RSA -pkeyopt rsa_keygen_bits:1024";
    openssl.company("root", P256, None);
    openssl.company("upper", weak, Some("root"));
    openssl.company("mesh", P256, Some("upper"));
    let refused = openssl.load("mesh", &["mesh", "upper"], &["root"]);
    let Err(ForeignError::Key { error, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error, KeyError::RsaSize(1024));
    openssl.company("weak", weak, None);
    openssl.company("below", P256, Some("weak"));
    assert!(openssl.load("below", &["below"], &["weak"]).is_err());
}

#[test]
fn a_chain_is_refused_before_its_time_and_after_whichever_part_expired() {
    let openssl = OpenSsl::new();
    openssl.company("root", P256, None);
    openssl.company("mesh", P256, Some("root"));
    let load = |at| {
        let key = PrivateKey::from_pem(&openssl.read("mesh.key")).unwrap();
        let roots = openssl.roots(&["root"]);
        Authority::from_elsewhere(&trust_domain(), vec![openssl.ca("mesh")], key, &roots, at)
    };
    assert!(load(now()).is_ok());
    let refused = load(now() + 31 * DAY).unwrap_err();
    assert!(matches!(refused, ForeignError::Expired { .. }), "{refused}");
    let refused = load(now() - DAY).unwrap_err();
    assert!(
        matches!(refused, ForeignError::NotYetValid { .. }),
        "{refused}"
    );
    // The root is what expires first.
    openssl.run("x509 -req -in root.csr -signkey root.key -days 2 -extfile root.ext -out root.crt");
    let refused = load(now() + 3 * DAY).unwrap_err();
    let ForeignError::Expired { serial, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(*serial, openssl.ca("root").serial());
}

#[test]
fn a_ca_that_may_have_nothing_below_it_signs_leaves_and_says_so_of_intermediates() {
    let openssl = OpenSsl::new();
    openssl.company("root", P256, None);
    let last = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n";
    openssl.company_with("mesh", P256, Some("root"), last);
    let authority = openssl.load("mesh", &["mesh"], &["root"]).unwrap();
    let roots = openssl.roots(&["root"]);
    issues_what_peers_accept(&openssl, &authority, &roots);
    let key = PrivateKey::generate().unwrap();
    let refused = authority.try_intermediate(&key, &roots, DAY, now());
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("keeps an intermediate of its own"),
        "{refused}"
    );

    // A limit of the root counts too, though whoever trusts a root need not look.
    let limited = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n";
    openssl.company_with("limited", P256, None, limited);
    openssl.company("below", P256, Some("limited"));
    let refused = openssl.load("below", &["below"], &["limited"]).unwrap_err();
    assert!(
        matches!(refused, ForeignError::PathLength { needed: 1, .. }),
        "{refused}"
    );
}

#[test]
fn name_constraints_that_peers_would_not_accept_are_refused_and_others_are_not() {
    let openssl = OpenSsl::new();
    openssl.company("root", P256, None);
    for (constraints, fits) in [
        ("permitted;DNS:corp.example", true),
        ("excluded;email:.example", true),
        ("permitted;URI:corp.example", false),
        ("excluded;URI:cluster.local", false),
    ] {
        let extensions = format!("{CA}nameConstraints=critical,{constraints}\n");
        openssl.company_with("mesh", P256, Some("root"), &extensions);
        match openssl.load("mesh", &["mesh"], &["root"]) {
            Ok(authority) => {
                assert!(fits, "{constraints}");
                issues_what_peers_accept(&openssl, &authority, &openssl.roots(&["root"]));
            }
            Err(refused) => {
                assert!(!fits, "{constraints}: {refused}");
                assert!(
                    matches!(refused, ForeignError::NameConstraints),
                    "{constraints}: {refused}"
                );
            }
        }
    }
}
