//! Leaves that another CA signed, made by OpenSSL: taken when they are what was
//! asked for and peers accept them, and refused with what to change when not.

use std::time::Duration;

use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::elsewhere::{ElsewhereError, Signed, Span};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_pki::svid::SvidChain;

use crate::openssl::{OpenSsl, P256, P384, RSA};
use crate::support::{DAY, now, trust_domain, workload};

const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";
const ID: &str = "subjectAltName=critical,URI:spiffe://cluster.local/ns/shop/sa/cart\n";
const USAGE: &str = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                     extendedKeyUsage=serverAuth,clientAuth\n";
const SPAN: Duration = Duration::from_secs(24 * 3600);

/// `root` signed `upper`, which signed `mesh`.
struct Company(OpenSsl);

impl Company {
    fn new() -> Self {
        let company = Self(OpenSsl::new());
        company.authority("root", RSA, None, 30);
        company.authority("upper", P384, Some("root"), 30);
        company.authority("mesh", P256, Some("upper"), 30);
        company
    }

    fn authority(&self, name: &str, key: &str, issuer: Option<&str>, days: u32) {
        self.0.run(&format!("genpkey {key} -out {name}.key"));
        self.sign(
            name,
            &format!("/O=Acme/CN={name}"),
            issuer,
            CA,
            &format!("-days {days}"),
        );
    }

    /// A certificate for `name`'s key; it is kept in `name.crt`.
    fn sign(&self, name: &str, subject: &str, issuer: Option<&str>, extensions: &str, more: &str) {
        self.0.write("ext", extensions);
        self.0.run(&format!(
            "req -new -key {name}.key -subj {subject} -out {name}.csr"
        ));
        let signer = match issuer {
            Some(issuer) => format!("-CA {issuer}.crt -CAkey {issuer}.key"),
            None => format!("-signkey {name}.key"),
        };
        self.0.run(&format!(
            "x509 -req -in {name}.csr {signer} {more} -extfile ext -out {name}.crt"
        ));
    }

    fn certificates(&self, names: &[&str]) -> Vec<Certificate> {
        let read = |name: &&str| self.0.certificate(&format!("{name}.crt"));
        names.iter().map(read).collect()
    }

    fn roots(&self, names: &[&str]) -> Roots {
        Roots::new(self.certificates(names)).unwrap()
    }

    /// A leaf of `mesh` with this subject and these extensions, taken at an
    /// instant when it has less than a day left.
    fn leaf(&self, subject: &str, extensions: &str) -> Result<Signed<SvidChain>, ElsewhereError> {
        self.0.run(&format!("genpkey {P256} -out leaf.key"));
        self.sign("leaf", subject, Some("mesh"), extensions, "-days 1");
        self.take(&["leaf", "mesh", "upper"], &["root"])
    }

    fn take(&self, answer: &[&str], roots: &[&str]) -> Result<Signed<SvidChain>, ElsewhereError> {
        let key = self.key("leaf");
        let id = workload("cart");
        Signed::svid(
            self.certificates(answer),
            &self.roots(roots),
            &trust_domain(),
            (&id, key.public_key()),
            span(),
        )
    }

    fn key(&self, name: &str) -> PrivateKey {
        PrivateKey::from_pem(&self.0.read(&format!("{name}.key"))).unwrap()
    }

    fn serves(&self, signed: Signed<SvidChain>) {
        let roots = Roots::new([signed.root]).unwrap();
        let bundle = TrustBundle::new(trust_domain(), roots);
        let (id, key) = (workload("cart"), self.key("leaf"));
        WorkloadIdentity::new(&id, &key, signed.certificate, bundle, later()).unwrap();
    }
}

/// OpenSSL's certificates begin when they are made.
fn later() -> std::time::SystemTime {
    now() + Duration::from_secs(3600)
}

fn span() -> Span {
    Span {
        now: later(),
        lifetime: SPAN,
    }
}

fn good() -> String {
    format!("{USAGE}{ID}")
}

#[test]
fn a_leaf_as_it_was_asked_for_is_taken_whatever_the_order_of_the_answer() {
    let company = Company::new();
    let signed = company.leaf("/", &good()).unwrap();
    assert_eq!(signed.certificate.intermediates().len(), 2);
    company.serves(signed);
    for answer in [
        &["leaf", "upper", "mesh"][..],
        &["leaf", "mesh", "upper", "root"],
        &["leaf", "root", "upper", "mesh", "mesh"],
    ] {
        let signed = company.take(answer, &["root"]).unwrap();
        assert_eq!(signed.certificate.intermediates().len(), 2, "{answer:?}");
        company.serves(signed);
    }
    // A subject that names nobody does no harm.
    let organization = company.leaf("/O=Acme", &good()).unwrap();
    company.serves(organization);
}

#[test]
fn a_leaf_that_is_not_what_was_asked_for_is_refused_with_what_to_change() {
    let company = Company::new();
    let other = ID.replace("cart", "till");
    let path = ID.replace("/ns/shop/sa/cart", "");
    let two = ID.trim_end().to_owned() + ",URI:spiffe://cluster.local/ns/shop/sa/till\n";
    for (subject, extensions, expected) in [
        ("/CN=cart", good(), "common name \"cart\""),
        (
            "/",
            format!("{USAGE}{other}"),
            "names must come from the request",
        ),
        ("/", format!("{USAGE}{path}"), "permit URI names"),
        ("/", format!("{USAGE}{two}"), "exactly one URI"),
        ("/O=Acme", USAGE.to_owned(), "exactly one URI"),
        (
            "/",
            format!(
                "{USAGE}{},DNS:bulkhead-ca.bulkhead-system.svc\n",
                ID.trim_end()
            ),
            "\"bulkhead-ca.bulkhead-system.svc\" among its names",
        ),
        (
            "/",
            format!("{USAGE}{},IP:192.0.2.1\n", ID.trim_end()),
            "192.0.2.1",
        ),
        (
            "/",
            format!("{USAGE}{},email:a@b\n", ID.trim_end()),
            "unusual kind",
        ),
        (
            "/",
            good().replace("serverAuth,clientAuth", "serverAuth"),
            "both serverAuth and clientAuth",
        ),
        (
            "/",
            good().replace("digitalSignature", "keyAgreement"),
            "digitalSignature",
        ),
        (
            "/",
            good().replace("keyUsage=critical,", "keyUsage="),
            "critical",
        ),
        ("/", good().replace("CA:FALSE", "CA:TRUE"), "is a CA's"),
    ] {
        let refused = company.leaf(subject, &extensions).unwrap_err().to_string();
        assert!(refused.contains(expected), "{extensions}: {refused}");
    }
}

#[test]
fn a_leaf_for_another_key_or_for_longer_or_later_is_refused() {
    let company = Company::new();
    company.leaf("/", &good()).unwrap();
    company.0.run(&format!("genpkey {P256} -out leaf.key"));
    let refused = company.take(&["leaf", "mesh", "upper"], &["root"]);
    assert!(matches!(refused, Err(ElsewhereError::Key)), "{refused:?}");

    company.sign("leaf", "/", Some("mesh"), &good(), "-days 2");
    let refused = company.take(&["leaf", "mesh", "upper"], &["root"]);
    let Err(ElsewhereError::Lifetime { asked, signed }) = refused else {
        panic!("{refused:?}");
    };
    assert!(asked == 24 * 3600 && signed > asked, "{signed}");

    company.sign("leaf", "/", Some("mesh"), &good(), "-days 1");
    let early = Span {
        now: now() - DAY,
        lifetime: 3 * DAY,
    };
    let (id, key) = (workload("cart"), company.key("leaf"));
    let answer = company.certificates(&["leaf", "mesh", "upper"]);
    let wanted = (&id, key.public_key());
    let refused = Signed::svid(
        answer,
        &company.roots(&["root"]),
        &trust_domain(),
        wanted,
        early,
    );
    assert!(
        matches!(refused, Err(ElsewhereError::NotYetValid(_))),
        "{refused:?}"
    );
}

#[test]
fn a_leaf_that_would_outlive_what_signed_it_is_refused() {
    let company = Company::new();
    company.leaf("/", &good()).unwrap();
    company.sign("upper", "/O=Acme/CN=upper", Some("root"), CA, "-days 1");
    company.sign("mesh", "/O=Acme/CN=mesh", Some("upper"), CA, "-days 1");
    company.sign("leaf", "/", Some("mesh"), &good(), "-days 2");
    let (id, key) = (workload("cart"), company.key("leaf"));
    let answer = company.certificates(&["leaf", "mesh", "upper"]);
    let span = Span {
        now: later(),
        lifetime: 3 * DAY,
    };
    let wanted = (&id, key.public_key());
    let refused = Signed::svid(
        answer,
        &company.roots(&["root"]),
        &trust_domain(),
        wanted,
        span,
    );
    assert!(
        matches!(refused, Err(ElsewhereError::Outlives(_))),
        "{refused:?}"
    );
}

#[test]
fn a_leaf_whose_chain_has_a_gap_or_ends_elsewhere_or_is_weak_is_refused() {
    let company = Company::new();
    company.leaf("/", &good()).unwrap();
    company.authority("stranger", P256, None, 30);
    for (answer, roots) in [
        (&["leaf", "upper"][..], &["root"][..]),
        (&["leaf", "mesh"], &["root"]),
        (&["leaf"], &["root"]),
        (&["leaf", "mesh", "upper"], &["stranger"]),
    ] {
        let refused = company.take(answer, roots);
        assert!(
            matches!(refused, Err(ElsewhereError::NoRoot(_))),
            "{answer:?}: {refused:?}"
        );
    }
    let refused = company.take(&["mesh", "upper"], &["root"]);
    assert!(
        matches!(refused, Err(ElsewhereError::NotALeaf(_))),
        "{refused:?}"
    );
    let refused = company.take(&["root"], &["root"]);
    assert!(matches!(refused, Err(ElsewhereError::Empty)), "{refused:?}");
    // By name it is signed, but by a hash that nobody accepts any more.
    company.sign("leaf", "/", Some("mesh"), &good(), "-days 1 -sha1");
    assert!(company.take(&["leaf", "mesh", "upper"], &["root"]).is_err());
    // One above it may sign no CA.
    company.0.run(&format!("genpkey {P256} -out last.key"));
    let last = CA.replace("CA:TRUE", "CA:TRUE,pathlen:0");
    company.sign("last", "/CN=last", Some("root"), &last, "-days 30");
    company.authority("below", P256, Some("last"), 30);
    company.sign("leaf", "/", Some("below"), &good(), "-days 1");
    let refused = company.take(&["leaf", "below", "last"], &["root"]);
    assert!(
        matches!(refused, Err(ElsewhereError::Peers(_))),
        "{refused:?}"
    );
}

#[test]
fn of_two_ways_to_a_root_the_shortest_that_is_trusted_is_taken() {
    let company = Company::new();
    company.authority("old", P256, None, 30);
    company.authority("new", P256, None, 30);
    company.authority("issuing", P256, Some("new"), 30);
    company.0.run(&format!("genpkey {P256} -out leaf.key"));
    company.sign("leaf", "/", Some("issuing"), &good(), "-days 1");
    // The new root's key and name, signed by the old one.
    company.0.write("cross.ext", CA);
    company.0.run(
        "x509 -req -in new.csr -CA old.crt -CAkey old.key -days 30 -extfile cross.ext -out cross.crt",
    );
    for (trusted, length) in [(&["old"][..], 2), (&["new"], 1), (&["old", "new"], 1)] {
        let signed = company
            .take(&["leaf", "cross", "issuing"], trusted)
            .unwrap();
        assert_eq!(
            signed.certificate.intermediates().len(),
            length,
            "{trusted:?}"
        );
        company.serves(signed);
    }
}

#[test]
fn a_servers_certificate_has_exactly_the_names_that_were_asked_for() {
    let company = Company::new();
    let names = ["ca.system.svc", "192.0.2.1"].map(|name| ServerName::parse(name).unwrap());
    let server = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                  extendedKeyUsage=serverAuth\n";
    company.0.run(&format!("genpkey {P256} -out own.key"));
    let take = |alternative: &str| {
        let extensions = format!("{server}subjectAltName=critical,{alternative}\n");
        company.sign("own", "/", Some("mesh"), &extensions, "-days 1");
        let answer = company.certificates(&["own", "mesh", "upper"]);
        let (roots, key) = (company.roots(&["root"]), company.key("own"));
        Signed::<ServingCertificate>::serving(answer, &roots, &names, key, span())
    };
    let signed = take("IP:192.0.2.1,DNS:ca.system.svc").unwrap();
    assert_eq!(signed.certificate.chain().len(), 3);
    let refused = take("DNS:ca.system.svc").unwrap_err();
    assert!(
        matches!(refused, ElsewhereError::MissingName(_)),
        "{refused}"
    );
    for more in [
        "DNS:*.system.svc",
        "URI:spiffe://cluster.local/ns/shop/sa/cart",
    ] {
        let refused = take(&format!("IP:192.0.2.1,DNS:ca.system.svc,{more}")).unwrap_err();
        assert!(
            matches!(refused, ElsewhereError::ForeignName(_)),
            "{refused}"
        );
    }
}
