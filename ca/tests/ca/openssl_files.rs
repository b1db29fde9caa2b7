//! Files of a CA in every form that OpenSSL and people leave them in: each is taken
//! as it is, or refused with what to do.

use std::sync::Arc;

use bulkhead_ca::issuer::status::UpstreamSigns;

use crate::company::{CA, Company, P256};
use crate::upstream_files::{intermediate, serves_workloads};

/// What somebody did to the files, or what those are called that they left behind.
type Change = fn(&Company);

/// OpenSSL's own words stand in the way of none of these.
const TAKEN: [(&str, Change); 11] = [
    ("a PKCS#8 key", |company| {
        company.openssl("pkcs8 -topk8 -nocrypt -in mesh.key -out tls.key");
        company.show("tls.key", &["tls.key"]);
    }),
    ("a SEC 1 key with its curve before it", |company| {
        company.openssl("ecparam -name secp384r1 -out curve.pem");
        company.openssl("ec -in mesh.key -out sec1.key");
        company.show("tls.key", &["curve.pem", "sec1.key"]);
    }),
    ("a PKCS#1 key", |company| {
        company.openssl("rsa -in upper.key -traditional -out pkcs1.key");
        company.show("tls.crt", &["upper.crt"]);
        company.show("tls.key", &["pkcs1.key"]);
    }),
    ("what came out of a PKCS#12 file", |company| {
        let wrap = "pkcs12 -export -in mesh.crt -inkey mesh.key -name mesh -passout pass:x";
        company.openssl(&format!("{wrap} -out mesh.p12"));
        company.openssl("pkcs12 -in mesh.p12 -passin pass:x -nokeys -out bag.crt");
        company.openssl("pkcs12 -in mesh.p12 -passin pass:x -nocerts -nodes -out bag.key");
        assert!(company.read(&["bag.key"]).contains("Bag Attributes"));
        company.show("tls.crt", &["bag.crt", "upper.crt"]);
        company.show("tls.key", &["bag.key"]);
    }),
    ("certificates with their text", |company| {
        company.openssl("x509 -in mesh.crt -text -out text.crt");
        company.show("tls.crt", &["text.crt", "upper.crt"]);
    }),
    ("line ends of Windows", |company| {
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            rewrite(company, name, |text| text.replace('\n', "\r\n"));
        }
    }),
    ("a byte order mark before each file", |company| {
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            rewrite(company, name, |text| format!("\u{feff}{text}"));
        }
    }),
    ("and between files that were joined", |company| {
        let [mesh, upper] = ["mesh.crt", "upper.crt"].map(|name| company.read(&[name]));
        company.show_text("tls.crt", &format!("\u{feff}{mesh}\u{feff}{upper}"));
    }),
    ("no line feed at the end", |company| {
        rewrite(company, "tls.key", |text| text.trim_end().to_owned());
    }),
    ("a root that signed itself with SHA-1", |company| {
        company.openssl(
            "x509 -req -in root.csr -signkey root.key -days 30 -extfile ext -sha1 -out old.crt",
        );
        company.show("ca.crt", &["old.crt"]);
    }),
    ("a root that also ends the chain", |company| {
        company.show("tls.crt", &["mesh.crt", "upper.crt", "root.crt"]);
    }),
];

/// What is said of the rest.
const REFUSED: [(&str, Change, &str); 15] = [
    (
        "a PKCS#8 key with a passphrase",
        |company| {
            company.openssl("pkcs8 -topk8 -in mesh.key -passout pass:secret -out locked.key");
            company.show("tls.key", &["locked.key"]);
        },
        "openssl pkey -in",
    ),
    (
        "an old key with a passphrase",
        |company| {
            company.openssl("ec -in mesh.key -aes256 -passout pass:secret -out locked.key");
            assert!(company.read(&["locked.key"]).contains("Proc-Type"));
            company.show("tls.key", &["locked.key"]);
        },
        "openssl pkey -in",
    ),
    (
        "two keys",
        |company| company.show("tls.key", &["mesh.key", "upper.key"]),
        "tls.key: there are 2 private keys",
    ),
    (
        "a certificate in place of the key",
        |company| company.show("tls.key", &["mesh.crt"]),
        "tls.key: there are 0 private keys",
    ),
    (
        "the key beside its certificate",
        |company| company.show("tls.crt", &["mesh.crt", "mesh.key", "upper.crt"]),
        "tls.crt: the PEM text has a block \"PRIVATE KEY\"",
    ),
    (
        "a certificate in DER",
        |company| {
            company.openssl("x509 -in mesh.crt -outform DER -out mesh.der");
            std::fs::copy(company.path("mesh.der"), company.shown().join("tls.crt")).unwrap();
        },
        "openssl x509 -inform DER",
    ),
    (
        "a key in DER",
        |company| {
            company.openssl("pkey -in mesh.key -outform DER -out mesh.der");
            std::fs::copy(company.path("mesh.der"), company.shown().join("tls.key")).unwrap();
        },
        "openssl pkey -inform DER",
    ),
    (
        "text of two bytes a letter",
        |company| {
            let text = company.read(&["mesh.crt"]);
            let wide = text.encode_utf16().flat_map(u16::to_le_bytes);
            let marked: Vec<u8> = [0xff, 0xfe].into_iter().chain(wide).collect();
            std::fs::write(company.shown().join("tls.crt"), marked).unwrap();
        },
        "it is not text",
    ),
    (
        "the root's certificate before the others",
        |company| company.show("tls.crt", &["root.crt", "upper.crt", "mesh.crt"]),
        "put the signing certificate first",
    ),
    (
        "the chain in the wrong order",
        |company| {
            company.authority("deep", P256, Some("mesh"), CA);
            company.show("tls.crt", &["deep.crt", "upper.crt", "mesh.crt"]);
            company.show("tls.key", &["deep.key"]);
        },
        "the chain is in the wrong order",
    ),
    (
        "a chain with a gap",
        |company| company.show("tls.crt", &["mesh.crt"]),
        "none of the trust roots signed",
    ),
    (
        "a signature with SHA-1",
        |company| signed_with(company, "-sha1"),
        "signed with SHA-1 with RSA",
    ),
    (
        "a signature with MD5",
        |company| signed_with(company, "-md5"),
        "signed with MD5 with RSA",
    ),
    (
        "a signature with another padding",
        |company| signed_with(company, "-sha256 -sigopt rsa_padding_mode:pss"),
        "signed with RSASSA-PSS",
    ),
    (
        "a key of a kind that peers refuse",
        |company| {
            company.authority("edwards", "-algorithm ED25519", Some("upper"), CA);
            company.show("tls.crt", &["edwards.crt", "upper.crt"]);
            company.show("tls.key", &["edwards.key"]);
        },
        "tls.key: the key is of no accepted kind",
    ),
];

fn rewrite(company: &Company, name: &str, change: impl Fn(&str) -> String) {
    let shown = std::fs::read_to_string(company.shown().join(name)).unwrap();
    company.show_text(name, &change(&shown));
}

/// `mesh`, signed again in another way.
fn signed_with(company: &Company, how: &str) {
    company.openssl(&format!(
        "x509 -req -in mesh.csr -CA upper.crt -CAkey upper.key -days 30 -extfile ext {how} -out odd.crt"
    ));
    company.show("tls.crt", &["odd.crt", "upper.crt"]);
}

/// As careful programs write.
fn move_over(company: &Company, name: &str, from: &[&str]) {
    let unfinished = company.path("unfinished");
    std::fs::write(&unfinished, company.read(from)).unwrap();
    std::fs::rename(unfinished, company.shown().join(name)).unwrap();
}

#[tokio::test]
async fn whatever_openssl_writes_of_a_good_chain_is_taken_as_it_is() {
    let company = Company::new();
    for (what, change) in TAKEN {
        company.show_mesh();
        change(&company);
        let files = company.files(UpstreamSigns::Intermediate).await;
        let signed = intermediate(&files).await;
        let signed = signed.unwrap_or_else(|error| panic!("{what}: {error}"));
        serves_workloads(signed);
    }
}

#[tokio::test]
async fn whatever_cannot_be_used_is_refused_with_what_is_wrong() {
    let company = Company::new();
    for (what, change, words) in REFUSED {
        company.show_mesh();
        change(&company);
        let said = company.refusal().await;
        assert!(said.contains(words), "{what}: {said}");
        assert!(said.len() < 500, "{what}: {said}");
    }
}

#[tokio::test]
async fn files_that_are_moved_over_others_while_they_are_read_never_mix() {
    let company = Arc::new(Company::new());
    company.authority("next", P256, Some("root"), CA);
    company.show_mesh();
    let files = company.files(UpstreamSigns::Intermediate).await;
    let somebody = Arc::clone(&company);
    let replacing = tokio::task::spawn_blocking(move || {
        let sets = [
            (&["next.crt"][..], "next.key"),
            (&["mesh.crt", "upper.crt"][..], "mesh.key"),
        ];
        for (chain, key) in sets.iter().cycle().take(41) {
            move_over(&somebody, "tls.crt", chain);
            move_over(&somebody, "tls.key", &[key]);
        }
    });
    while !replacing.is_finished() {
        serves_workloads(intermediate(&files).await.unwrap());
    }
    replacing.await.unwrap();
    let (key, signed) = intermediate(&files).await.unwrap();
    assert_eq!(signed.chain.len(), 2, "ours, next");
    serves_workloads((key, signed));
}
