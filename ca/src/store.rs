//! Where root and intermediate are kept: a directory ([`directory`]) or a
//! Kubernetes Secret ([`secret`]), behind one trait.
//!
//! A store holds a handful of small files that change together: whoever reads
//! sees all of one version or all of another. Whoever writes says which version
//! it read before, so that of two replicas one is told that it was overtaken.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::{Authority, AuthorityError};
use bulkhead_pki::bundle::document::DocumentError;
use bulkhead_pki::bundle::{BundleError, Roots};
use bulkhead_pki::certificate::{Certificate, CertificateError};
use bulkhead_pki::key::{KeyError, PrivateKey};
use zeroize::Zeroizing;

pub mod directory;
pub mod secret;

/// The names of the files.
mod file {
    pub(super) const ROOT_CERTIFICATE: &str = "root.crt";
    pub(super) const ROOT_KEY: &str = "root.key";
    pub(super) const INTERMEDIATE_CERTIFICATE: &str = "intermediate.crt";
    pub(super) const INTERMEDIATE_KEY: &str = "intermediate.key";
}

/// The file with all trust roots, which others may read.
pub const ROOTS: &str = "roots.pem";

/// The longest chain of signing certificates, in bytes of PEM.
const MAX_CHAIN_PEM: usize = 64 * 1024;

/// Files by name. Some are keys, so their memory is wiped.
pub type Files = BTreeMap<String, Zeroizing<String>>;

/// Keeps files for the CA.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// What is there, if anything is.
    async fn load(&self) -> Result<Option<Stored>, StoreError>;

    /// Replaces everything, if `previous` is still what is there; `None` means
    /// that nothing was.
    async fn write(&self, files: &Files, previous: Option<&Version>)
    -> Result<Written, StoreError>;
}

/// Files, and the version that they are.
pub struct Stored {
    pub files: Files,
    pub version: Version,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.files.keys().collect();
        write!(f, "Stored({names:?}, {})", self.version.0)
    }
}

/// Tells one state of a store from another; its text means nothing else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version(pub String);

/// What became of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    Done,
    /// Another replica wrote in between; nothing was changed.
    Overtaken,
}

/// What the files hold.
#[derive(Debug)]
pub struct Authorities {
    pub root: Authority,
    pub intermediate: Authority,
    /// Every root that workloads are to trust.
    pub roots: Roots,
}

impl Authorities {
    pub fn from_files(trust_domain: &TrustDomain, files: &Files) -> Result<Self, StoreError> {
        let text = |name: &'static str| {
            let text = files.get(name).ok_or(StoreError::Missing(name))?;
            Ok::<_, StoreError>(text.as_str())
        };
        let roots = Roots::from_pem(text(ROOTS)?)?;
        let authority = |certificate, key| {
            let chain = Certificate::all_from_pem(text(certificate)?, MAX_CHAIN_PEM)?;
            let key = PrivateKey::from_pem(text(key)?)?;
            Ok::<_, StoreError>(Authority::from_parts(trust_domain, chain, key, &roots)?)
        };
        Ok(Self {
            root: authority(file::ROOT_CERTIFICATE, file::ROOT_KEY)?,
            intermediate: authority(file::INTERMEDIATE_CERTIFICATE, file::INTERMEDIATE_KEY)?,
            roots,
        })
    }

    pub fn to_files(&self) -> Result<Files, StoreError> {
        let chain = |authority: &Authority| -> Zeroizing<String> {
            let intermediates = authority.intermediates().iter();
            Zeroizing::new(if authority.intermediates().is_empty() {
                authority.certificate().to_pem()
            } else {
                intermediates.map(Certificate::to_pem).collect()
            })
        };
        let files = [
            (file::ROOT_CERTIFICATE, chain(&self.root)),
            (file::ROOT_KEY, self.root.key().to_pem()?),
            (file::INTERMEDIATE_CERTIFICATE, chain(&self.intermediate)),
            (file::INTERMEDIATE_KEY, self.intermediate.key().to_pem()?),
            (ROOTS, Zeroizing::new(self.roots.to_pem())),
        ];
        Ok(files
            .into_iter()
            .map(|(name, text)| (name.to_owned(), text))
            .collect())
    }
}

/// What is stored, or what `make` makes of an empty store. Of two replicas that
/// find it empty at the same instant, both end up with what one of them made.
pub async fn load_or_create(
    store: &dyn Store,
    trust_domain: &TrustDomain,
    make: impl FnOnce() -> Result<Authorities, StoreError>,
) -> Result<Authorities, StoreError> {
    if let Some(stored) = store.load().await? {
        return Authorities::from_files(trust_domain, &stored.files);
    }
    let made = make()?;
    match store.write(&made.to_files()?, None).await? {
        Written::Done => {
            tracing::info!(
                root = made.root.certificate().serial(),
                "there was no root yet: made one, and an intermediate below it"
            );
            Ok(made)
        }
        Written::Overtaken => {
            let stored = store.load().await?.ok_or(StoreError::Vanished)?;
            tracing::info!("another replica made a root at the same time: using that one");
            Authorities::from_files(trust_domain, &stored.files)
        }
    }
}

/// Why keys could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the CA's store lacks {0}: was a part of it deleted?")]
    Missing(&'static str),
    #[error("the CA's store was emptied while it was in use")]
    Vanished,
    #[error("using {path} in the CA's directory failed: {error}")]
    Directory {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    #[error(
        "{path} is open to others (mode {mode:03o}): whoever reads it can be any workload; chmod it to {wanted:03o}, and replace the keys if they were exposed"
    )]
    Permissions {
        path: PathBuf,
        mode: u32,
        wanted: u32,
    },
    #[error("using the Secret {name} failed: {error}")]
    Secret {
        name: String,
        #[source]
        error: Box<kube::Error>,
    },
    #[error(
        "the ClusterRole that is to own the CA's Secret (BULKHEAD_CA_OWNER) is gone or being deleted: Bulkhead is being uninstalled, or the name is wrong"
    )]
    Uninstalling,
    #[error("{0} in the CA's store is not text")]
    NotText(String),
    #[error("the CA's store holds roots that cannot be used: {0}")]
    Roots(#[from] BundleError),
    #[error("the CA's store holds a certificate that cannot be read: {0}")]
    Certificate(#[from] CertificateError),
    #[error("the CA's store holds a key that cannot be used: {0}")]
    Key(#[from] KeyError),
    #[error("the CA's certificates and keys do not fit together: {0}")]
    Authority(#[from] AuthorityError),
    #[error("writing the trust bundle failed: {0}")]
    Document(#[from] DocumentError),
}
