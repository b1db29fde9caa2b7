//! Keys, requests and chains that OpenSSL made, not our own code.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::csr::{CsrError, ParsedCsr};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::{KeyError, KeyKind, PrivateKey};
use bulkhead_pki::verifier::{PeerVerifier, Role};
use tempfile::TempDir;

use crate::support::{DAY, Mesh, now, trust_domain, workload};

/// A directory that OpenSSL works in.
pub(crate) struct OpenSsl(TempDir);

impl OpenSsl {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs the program with the words of `line`.
    pub(crate) fn run(&self, line: &str) -> String {
        let output = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(self.path())
            .output()
            .expect("openssl is installed: Debian's package of that name has it");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {line}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path().join(file)).unwrap()
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path().join(file), text).unwrap();
    }

    pub(crate) fn certificate(&self, file: &str) -> Certificate {
        Certificate::all_from_pem(&self.read(file), 100_000)
            .unwrap()
            .remove(0)
    }

    /// A CA below `issuer`, or a root where there is none.
    fn authority(&self, name: &str, key: &str, issuer: Option<&str>) {
        self.run(&format!("genpkey {key} -out {name}.key"));
        let extensions = "basicConstraints=critical,CA:TRUE\n\
                          subjectAltName=URI:spiffe://cluster.local\n\
                          keyUsage=critical,keyCertSign,cRLSign\n";
        self.certify(name, issuer, extensions);
    }

    /// A certificate for the key `name`, from `issuer` or itself.
    pub(crate) fn certify(&self, name: &str, issuer: Option<&str>, extensions: &str) {
        self.write(
            &format!("{name}.ext"),
            &format!("{extensions}subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"),
        );
        self.run(&format!(
            "req -new -key {name}.key -subj /O=Acme/OU=Security/CN={name} -out {name}.csr"
        ));
        let signer = match issuer {
            Some(issuer) => format!("-CA {issuer}.crt -CAkey {issuer}.key"),
            None => format!("-signkey {name}.key"),
        };
        self.run(&format!(
            "x509 -req -in {name}.csr {signer} -days 30 -extfile {name}.ext -out {name}.crt"
        ));
    }
}

pub(crate) const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
pub(crate) const P384: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-384";
pub(crate) const RSA: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";

#[test]
fn a_chain_of_many_levels_and_kinds_of_key_issues_what_openssl_and_peers_accept() {
    let openssl = OpenSsl::new();
    openssl.authority("root", RSA, None);
    openssl.authority("upper", P384, Some("root"));
    openssl.authority("lower", RSA, Some("upper"));
    openssl.authority("last", P256, Some("lower"));
    let roots = Roots::from_pem(&openssl.read("root.crt")).unwrap();
    for below in [
        vec!["last", "lower", "upper"],
        vec!["lower", "upper"],
        vec!["upper"],
    ] {
        let chain = below
            .iter()
            .map(|name| openssl.certificate(&format!("{name}.crt")))
            .collect();
        let key = PrivateKey::from_pem(&openssl.read(&format!("{}.key", below[0]))).unwrap();
        let authority = Authority::from_parts(&trust_domain(), chain, key, &roots).unwrap();
        let key = PrivateKey::generate().unwrap();
        let id = workload("cart");
        let svid = authority
            .issue_svid(&id, key.public_key(), DAY, now())
            .unwrap();
        assert_eq!(svid.intermediates().len(), below.len());
        openssl.write("leaf.pem", &svid.leaf().to_pem());
        let untrusted: String = svid
            .intermediates()
            .iter()
            .map(Certificate::to_pem)
            .collect();
        openssl.write("untrusted.pem", &untrusted);
        let said = openssl.run(
            "verify -x509_strict -purpose sslserver -CAfile root.crt \
             -untrusted untrusted.pem leaf.pem",
        );
        assert!(said.contains("leaf.pem: OK"), "{said}");
        let bundle = TrustBundle::new(trust_domain(), roots.clone());
        WorkloadIdentity::new(&id, &key, svid, bundle, now()).unwrap();
    }
}

#[test]
fn a_signer_with_a_name_of_any_form_issues_chains_that_hold() {
    let openssl = OpenSsl::new();
    openssl.write(
        "ca.ext",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n\
         subjectKeyIdentifier=none\n",
    );
    openssl.run(&format!("genpkey {P256} -out ca.key"));
    // Two values in one part, a part that is there twice, one with an umlaut.
    openssl.run(
        "req -new -key ca.key -multivalue-rdn -utf8 -out ca.csr \
         -subj /O=Acme+OU=Security/OU=One/OU=Two/L=Zürich/CN=ca/emailAddress=a@b",
    );
    openssl.run("x509 -req -in ca.csr -signkey ca.key -days 30 -extfile ca.ext -out ca.crt");
    let roots = Roots::from_pem(&openssl.read("ca.crt")).unwrap();
    let key = PrivateKey::from_pem(&openssl.read("ca.key")).unwrap();
    let chain = vec![openssl.certificate("ca.crt")];
    let authority = Authority::from_parts(&trust_domain(), chain, key, &roots).unwrap();
    let key = PrivateKey::generate().unwrap();
    let id = workload("cart");
    let svid = authority
        .issue_svid(&id, key.public_key(), DAY, now())
        .unwrap();
    openssl.write("leaf.pem", &svid.leaf().to_pem());
    let said = openssl.run("verify -CAfile ca.crt leaf.pem");
    assert!(said.contains("leaf.pem: OK"), "{said}");
    let bundle = TrustBundle::new(trust_domain(), roots);
    WorkloadIdentity::new(&id, &key, svid, bundle, now()).unwrap();
}

#[test]
fn what_we_make_ourselves_openssl_accepts_to_the_letter() {
    let openssl = OpenSsl::new();
    let mesh = Mesh::new();
    let identity = mesh.identity(&workload("cart"));
    openssl.write("root.pem", &mesh.root.certificate().to_pem());
    openssl.write("untrusted.pem", &mesh.intermediate.certificate().to_pem());
    openssl.write("leaf.pem", &identity.chain().leaf().to_pem());
    for purpose in ["sslclient", "sslserver"] {
        let said = openssl.run(&format!(
            "verify -x509_strict -purpose {purpose} -CAfile root.pem \
             -untrusted untrusted.pem leaf.pem"
        ));
        assert!(said.contains("leaf.pem: OK"), "{said}");
    }
    let text = openssl.run("x509 -in leaf.pem -noout -text");
    assert!(text.contains("X509v3 Subject Alternative Name: critical"));
    assert!(text.contains("URI:spiffe://cluster.local/ns/shop/sa/cart"));
}

#[test]
fn chains_that_do_not_hold_are_refused() {
    let openssl = OpenSsl::new();
    openssl.authority("root", P256, None);
    openssl.authority("stranger", P256, None);
    openssl.authority("ca", P256, Some("root"));
    let roots = Roots::from_pem(&openssl.read("stranger.crt")).unwrap();
    let key = PrivateKey::from_pem(&openssl.read("ca.key")).unwrap();
    let chain = vec![openssl.certificate("ca.crt")];
    assert!(Authority::from_parts(&trust_domain(), chain.clone(), key.clone(), &roots).is_err());
    let roots = Roots::from_pem(&openssl.read("root.crt")).unwrap();
    let stranger = PrivateKey::from_pem(&openssl.read("stranger.key")).unwrap();
    assert!(Authority::from_parts(&trust_domain(), chain.clone(), stranger, &roots).is_err());
    let domain = TrustDomain::new("other.org").unwrap();
    assert!(Authority::from_parts(&domain, chain, key, &roots).is_err());
}

#[test]
fn a_leaf_that_expired_is_refused() {
    let openssl = OpenSsl::new();
    openssl.authority("root", P256, None);
    openssl.run(&format!("genpkey {P256} -out leaf.key"));
    openssl.write(
        "leaf.ext",
        "subjectAltName=critical,URI:spiffe://cluster.local/ns/shop/sa/cart\n\
         keyUsage=critical,digitalSignature\n",
    );
    openssl.run("req -new -key leaf.key -subj / -out leaf.csr");
    openssl.run(
        "x509 -req -in leaf.csr -CA root.crt -CAkey root.key -days 1 \
         -extfile leaf.ext -out leaf.crt",
    );
    let roots = Roots::from_pem(&openssl.read("root.crt")).unwrap();
    let bundle = Arc::new(TrustBundle::new(trust_domain(), roots));
    let verifier = PeerVerifier::any_member(bundle);
    let leaf = openssl.certificate("leaf.crt");
    let at = |time| verifier.verify(leaf.der(), &[], Role::Client, time);
    assert_eq!(at(now()).unwrap().id(), &workload("cart"));
    assert!(at(now() + 2 * DAY).is_err());
}

#[test]
fn requests_with_keys_of_every_accepted_kind_are_read() {
    let openssl = OpenSsl::new();
    for (key, kind) in [
        (P256, KeyKind::EcdsaP256),
        (P384, KeyKind::EcdsaP384),
        (RSA, KeyKind::Rsa { bits: 2048 }),
        (
            "-algorithm RSA -pkeyopt rsa_keygen_bits:3072",
            KeyKind::Rsa { bits: 3072 },
        ),
    ] {
        openssl.run(&format!("genpkey {key} -out a.key"));
        let digest = if key == P384 { "-sha384" } else { "-sha256" };
        openssl.run(&format!(
            "req -new {digest} -key a.key -subj / -out a.csr \
             -addext subjectAltName=URI:spiffe://cluster.local/ns/shop/sa/cart"
        ));
        let csr = ParsedCsr::from_pem(&openssl.read("a.csr")).unwrap();
        assert_eq!(csr.public_key().kind(), kind);
        assert_eq!(csr.uris(), ["spiffe://cluster.local/ns/shop/sa/cart"]);
        assert_eq!(csr.other_names(), []);
        let own = PrivateKey::from_pem(&openssl.read("a.key")).unwrap();
        assert_eq!(own.public_key(), csr.public_key());
        let mesh = Mesh::new();
        let chain = mesh
            .intermediate
            .issue_svid(&workload("cart"), csr.public_key(), DAY, now())
            .unwrap();
        WorkloadIdentity::new(&workload("cart"), &own, chain, mesh.bundle(), now()).unwrap();
    }
}

#[test]
fn requests_with_weak_or_unusual_keys_are_refused() {
    let openssl = OpenSsl::new();
    for (key, error) in [
        (
            "-algorithm RSA -pkeyopt rsa_keygen_bits:1024",
            CsrError::Key(KeyError::RsaSize(1024)),
        ),
        (
            "-algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3",
            CsrError::Key(KeyError::RsaExponent),
        ),
        ("-algorithm ED25519", CsrError::Key(KeyError::Unsupported)),
        (
            "-algorithm EC -pkeyopt ec_paramgen_curve:P-521",
            CsrError::Key(KeyError::Unsupported),
        ),
        (
            "-algorithm EC -pkeyopt ec_paramgen_curve:secp256k1",
            CsrError::Key(KeyError::Unsupported),
        ),
    ] {
        openssl.run(&format!("genpkey {key} -out a.key"));
        openssl.run("req -new -key a.key -subj / -out a.csr");
        let refused = ParsedCsr::from_pem(&openssl.read("a.csr")).unwrap_err();
        assert_eq!(refused, error, "{key}");
    }
}

#[test]
fn requests_signed_with_sha1_are_refused() {
    let openssl = OpenSsl::new();
    for key in [P256, RSA] {
        openssl.run(&format!("genpkey {key} -out a.key"));
        openssl.run("req -new -sha1 -key a.key -subj / -out a.csr");
        let refused = ParsedCsr::from_pem(&openssl.read("a.csr")).unwrap_err();
        assert_eq!(refused, CsrError::SignatureAlgorithm, "{key}");
    }
}

#[test]
fn keys_in_the_older_forms_of_openssl_are_read() {
    let openssl = OpenSsl::new();
    openssl.run("ecparam -name prime256v1 -genkey -out sec1.key");
    let text = openssl.read("sec1.key");
    assert!(text.contains("BEGIN EC PARAMETERS") && text.contains("BEGIN EC PRIVATE KEY"));
    let key = PrivateKey::from_pem(&text).unwrap();
    assert_eq!(key.public_key().kind(), KeyKind::EcdsaP256);
    openssl.run(&format!("genpkey {RSA} -out rsa.key"));
    openssl.run("rsa -in rsa.key -traditional -out pkcs1.key");
    let text = openssl.read("pkcs1.key");
    assert!(text.contains("BEGIN RSA PRIVATE KEY"));
    let key = PrivateKey::from_pem(&text).unwrap();
    assert_eq!(key.public_key().kind(), KeyKind::Rsa { bits: 2048 });
}
