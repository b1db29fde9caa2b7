//! The files of one directory, in either layout, before they are believed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::key::PrivateKey;
use zeroize::Zeroizing;

use crate::upstream::{Reason, UpstreamError};

/// The longest file that is read, in bytes.
const MAX_FILE: usize = 256 * 1024;

/// Where one layout has what.
struct Layout {
    certificate: &'static str,
    key: &'static str,
    /// More of the chain, which may be missing or repeat the certificate.
    chain: Option<&'static str>,
    roots: &'static str,
}

const KUBERNETES: Layout = Layout {
    certificate: "tls.crt",
    key: "tls.key",
    chain: None,
    roots: "ca.crt",
};

const ISTIO: Layout = Layout {
    certificate: "ca-cert.pem",
    key: "ca-key.pem",
    chain: Some("cert-chain.pem"),
    roots: "root-cert.pem",
};

/// Revocation lists, which Istio's layout may have and nobody here uses.
const REVOCATIONS: &str = "ca-crl.pem";

/// The SHA-256 of all files and their names.
pub(super) type Digest = [u8; 32];

/// The files as they were at one look.
pub(super) struct FileSet {
    layout: &'static Layout,
    texts: BTreeMap<&'static str, Zeroizing<String>>,
}

impl FileSet {
    /// Reads whichever layout the directory has.
    pub(super) async fn read(directory: &Path) -> Result<Self, UpstreamError> {
        // A kubelet moves this link: behind it is one version of all files.
        let version = tokio::fs::canonicalize(directory.join("..data")).await;
        let directory = version.as_deref().unwrap_or(directory);
        let has = async |layout: &Layout| -> Result<bool, UpstreamError> {
            Ok(read(directory, layout.certificate).await?.is_some()
                || read(directory, layout.key).await?.is_some())
        };
        let layout = match (has(&KUBERNETES).await?, has(&ISTIO).await?) {
            (true, false) => &KUBERNETES,
            (false, true) => &ISTIO,
            (true, true) => {
                return Err(unusable(format!(
                    "{} has both tls.crt and ca-cert.pem: remove the files of one layout",
                    directory.display()
                )));
            }
            (false, false) => {
                return Err(unusable(format!(
                    "{} has neither tls.crt and tls.key nor ca-cert.pem and ca-key.pem: is the \
                     Secret mounted, and named right?",
                    directory.display()
                )));
            }
        };
        let mut texts = BTreeMap::new();
        let names = [layout.certificate, layout.key, layout.roots, REVOCATIONS];
        for name in names.into_iter().chain(layout.chain) {
            if let Some(text) = read(directory, name).await? {
                texts.insert(name, text);
            }
        }
        Ok(Self { layout, texts })
    }

    pub(super) fn digest(&self) -> Digest {
        let mut context = Context::new(&SHA256);
        for (name, text) in &self.texts {
            for part in [name.as_bytes(), text.as_bytes()] {
                context.update(&part.len().to_be_bytes());
                context.update(part);
            }
        }
        let digest = context.finish();
        *digest
            .as_ref()
            .first_chunk()
            .expect("a SHA-256 digest has 32 bytes")
    }

    /// The signing certificate with what is above it, its key, and the roots.
    pub(super) fn parse(&self) -> Result<(Vec<Certificate>, PrivateKey, Roots), UpstreamError> {
        let mut chain = self.certificates(self.layout.certificate)?;
        if let Some(name) = self
            .layout
            .chain
            .filter(|name| self.texts.contains_key(name))
        {
            for certificate in self.certificates(name)? {
                if !chain.contains(&certificate) {
                    chain.push(certificate);
                }
            }
        }
        let key = self.text(self.layout.key)?;
        let key = PrivateKey::from_pem(key)
            .map_err(|error| unusable(format!("{}: {error}", self.layout.key)))?;
        let roots = match self.texts.contains_key(self.layout.roots) {
            true => self.certificates(self.layout.roots)?,
            // A root that signs itself needs no file of its own.
            false => chain
                .iter()
                .filter(|part| part.is_self_signed())
                .cloned()
                .collect(),
        };
        let roots = Roots::new(roots).map_err(|error| {
            let name = self.layout.roots;
            unusable(match self.texts.contains_key(name) {
                true => format!("{name}: {error}"),
                false => format!("{name} is missing, and the chain does not end in a root"),
            })
        })?;
        Ok((chain, key, roots))
    }

    /// Says what somebody may rely on and nobody does.
    pub(super) fn warn_of_what_is_not_used(&self, directory: &Path) {
        if self.texts.contains_key(REVOCATIONS) {
            tracing::warn!(
                directory = %directory.display(),
                "ca-crl.pem is there and is not used: workloads get no revocation lists, so a \
                 certificate is good until it expires"
            );
        }
    }

    fn certificates(&self, name: &str) -> Result<Vec<Certificate>, UpstreamError> {
        Certificate::all_from_pem(self.text(name)?, MAX_FILE)
            .map_err(|error| unusable(format!("{name}: {error}")))
    }

    fn text(&self, name: &str) -> Result<&str, UpstreamError> {
        let text = self.texts.get(name).map(|text| text.as_str());
        text.ok_or_else(|| unusable(format!("{name} is missing, and its companions are there")))
    }
}

/// A file, if it is there.
async fn read(directory: &Path, name: &str) -> Result<Option<Zeroizing<String>>, UpstreamError> {
    let path = directory.join(name);
    let problem = |what: &dyn std::fmt::Display| {
        unusable(format!("{} cannot be read: {what}", path.display()))
    };
    let bytes = match tokio::fs::read(&path).await {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(problem(&error)),
    };
    if bytes.len() > MAX_FILE {
        return Err(problem(&"it is longer than 256 KiB"));
    }
    // As every certificate and key in DER begins: a SEQUENCE (X.690, 8.9).
    if bytes.starts_with(&[0x30]) {
        return Err(problem(
            &"it is DER, and PEM is expected; `openssl x509 -inform DER` converts a certificate, \
              `openssl pkey -inform DER` a key",
        ));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| problem(&"it is not text, but PEM is"))?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

fn unusable(message: String) -> UpstreamError {
    UpstreamError::new(Reason::Unusable, message)
}
