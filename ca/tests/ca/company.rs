//! The CAs of a company, made by OpenSSL, and the files that ours is shown.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

pub(crate) const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
pub(crate) const P384: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-384";
pub(crate) const RSA: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:3072";
pub(crate) const CA: &str =
    "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";

/// A company's CAs, and the directory that Bulkhead's CA is shown.
pub(crate) struct Company(TempDir);

impl Company {
    /// `root` signed `upper`, which signed `mesh`.
    pub(crate) fn new() -> Self {
        let company = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(company.shown()).unwrap();
        company.authority("root", P256, None, CA);
        company.authority("upper", RSA, Some("root"), CA);
        company.authority("mesh", P384, Some("upper"), CA);
        company
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub(crate) fn shown(&self) -> PathBuf {
        self.path("shown")
    }

    pub(crate) fn openssl(&self, line: &str) -> String {
        let output = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .expect("openssl is installed: Debian's package of that name has it");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {line}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn authority(&self, name: &str, key: &str, issuer: Option<&str>, extensions: &str) {
        self.openssl(&format!("genpkey {key} -out {name}.key"));
        std::fs::write(
            self.path("ext"),
            format!("{extensions}subjectKeyIdentifier=hash\n"),
        )
        .unwrap();
        self.openssl(&format!(
            "req -new -key {name}.key -subj /O=Acme/CN={name} -out {name}.csr"
        ));
        let signer = match issuer {
            Some(issuer) => format!("-CA {issuer}.crt -CAkey {issuer}.key"),
            None => format!("-signkey {name}.key"),
        };
        self.openssl(&format!(
            "x509 -req -in {name}.csr {signer} -days 30 -extfile ext -out {name}.crt"
        ));
    }

    pub(crate) fn read(&self, files: &[&str]) -> String {
        let read = |file: &&str| std::fs::read_to_string(self.path(file)).unwrap();
        files.iter().map(read).collect()
    }

    /// Shows the files of `from`, one after the other, under a name.
    pub(crate) fn show(&self, name: &str, from: &[&str]) {
        self.show_text(name, &self.read(from));
    }

    pub(crate) fn show_text(&self, name: &str, text: &str) {
        std::fs::write(self.shown().join(name), text).unwrap();
    }

    pub(crate) fn show_mesh(&self) {
        self.show("tls.crt", &["mesh.crt", "upper.crt"]);
        self.show("tls.key", &["mesh.key"]);
        self.show("ca.crt", &["root.crt"]);
    }
}
