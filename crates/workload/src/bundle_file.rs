//! The trust bundle in a file, which changes while the workload runs: the
//! kubelet swaps a link when the CA has written the namespace's ConfigMap.

use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::bundle::document::{DocumentError, TrustBundleDocument};
use bulkhead_pki::bundle::{BundleError, TrustBundle};

use crate::settings::Settings;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// `bundle.json`, which says its version, or else the PEM file with the roots,
/// which does not.
pub(crate) struct BundleFile {
    document: PathBuf,
    roots: PathBuf,
    trust_domain: TrustDomain,
    /// What was there when it was dealt with last.
    dealt_with: Option<Content>,
}

/// What a file said, and as what it is to be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Content {
    Document(String),
    Roots(String),
}

/// Something that was not dealt with yet.
pub(crate) struct News {
    pub(crate) content: Content,
    /// Whether something else was there before, as far as anybody looked.
    pub(crate) is_change: bool,
}

impl BundleFile {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            document: settings.bundle_path(),
            roots: PathBuf::from(&settings.ca_roots_path),
            trust_domain: settings.trust_domain.clone(),
            dealt_with: None,
        }
    }

    /// What is there now, unless it was dealt with already.
    pub(crate) async fn look(&self) -> Result<Option<News>, FileError> {
        let (document, roots) = (self.document.clone(), self.roots.clone());
        let content = tokio::task::spawn_blocking(move || {
            match read_to_string(&document) {
                Ok(text) => return Ok(Content::Document(text)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(FileError::Read(document, error)),
            }
            match read_to_string(&roots) {
                Ok(text) => Ok(Content::Roots(text)),
                Err(error) => Err(FileError::Read(roots, error)),
            }
        });
        let content = content
            .await
            .map_err(|error| FileError::Read(self.document.clone(), io::Error::other(error)))??;
        let is_new = self.dealt_with.as_ref() != Some(&content);
        Ok(is_new.then(|| News {
            content,
            is_change: self.dealt_with.is_some(),
        }))
    }

    /// The bundle that a content says.
    pub(crate) fn parse(&self, content: &Content) -> Result<TrustBundle, FileError> {
        match content {
            Content::Document(text) => {
                let document = TrustBundleDocument::from_json(text)
                    .map_err(|error| FileError::Document(self.document.clone(), error))?;
                document
                    .trust_bundle(self.trust_domain.clone())
                    .map_err(|error| FileError::Roots(self.document.clone(), error))
            }
            Content::Roots(text) => TrustBundle::from_pem(self.trust_domain.clone(), text)
                .map_err(|error| FileError::Roots(self.roots.clone(), error)),
        }
    }

    /// Nothing more is to be said of this content.
    pub(crate) fn deal_with(&mut self, content: Content) {
        self.dealt_with = Some(content);
    }
}

/// Reads a file that is a text of bounded length.
pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        let problem = format!("it has more than {MAX_FILE} bytes");
        return Err(io::Error::other(problem));
    }
    Ok(text)
}

/// Why a file does not say which roots to trust.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("reading the trust bundle from {0:?} failed: {1}")]
    Read(PathBuf, io::Error),
    #[error("the trust bundle in {0:?} cannot be used: {1}")]
    Document(PathBuf, DocumentError),
    #[error("the trust roots in {0:?} cannot be used: {1}")]
    Roots(PathBuf, BundleError),
}
