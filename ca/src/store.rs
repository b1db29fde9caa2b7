//! Where keys and certificates are kept: a directory ([`directory`]) or a
//! Kubernetes Secret ([`secret`]), behind one trait. Neither is waited for for ever
//! ([`deadline`]).
//!
//! A store holds a handful of small files that change together: whoever reads
//! sees all of one version or all of another. Whoever writes says which version
//! it read before, so that of two replicas one is told that it was overtaken.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_pki::authority::AuthorityError;
use bulkhead_pki::bundle::BundleError;
use bulkhead_pki::bundle::document::DocumentError;
use bulkhead_pki::certificate::CertificateError;
use bulkhead_pki::key::KeyError;
use bulkhead_pki::serving::ServingError;
use zeroize::Zeroizing;

pub mod deadline;
pub mod directory;
pub mod secret;

/// The file with all trust roots, which others may read.
pub const ROOTS: &str = "roots.pem";

/// The file with the same as a SPIFFE bundle.
pub const BUNDLE: &str = "bundle.json";

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

    /// Resolves when what is there may have changed; never, where nobody says so.
    /// Whoever follows looks now and then all the same.
    async fn changed(&self) {
        std::future::pending().await
    }
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

/// Why keys could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the CA's store lacks {0}: was a part of it deleted?")]
    Missing(String),
    #[error(
        "the CA's store was emptied while it was in use: restore it from a backup; until then no replica begins another CA by itself"
    )]
    Vanished,
    #[error(
        "there is no Secret {name}, and root {root} of this CA still signs, as the CertificateAuthority says: workloads trust that root and would trust nothing of a new one. Restore the Secret from a backup. Only to give up that root: end all replicas of the CA, `kubectl delete certificateauthority bulkhead`, start them, and restart all workloads"
    )]
    Lost { name: String, root: u32 },
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
    #[error(
        "{link} is gone, and a CA was kept here: put the link back{}, or restore the directory; to begin a new CA, which no workload trusts yet, move the directory away",
        restored_by(.version.as_deref())
    )]
    Unlinked {
        link: PathBuf,
        version: Option<PathBuf>,
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
    #[error(
        "the CA's store did not answer within {0:?}: is the API server or the disk overloaded, or the way to it broken?"
    )]
    Silent(Duration),
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
    #[error("the CA's own server certificate in the store cannot be used: {0}")]
    Serving(#[from] ServingError),
    #[error("the CA's store holds a state.json that cannot be read: {0}")]
    State(#[source] serde_json::Error),
    #[error("{0} in the CA's store is not what state.json says: was it replaced by hand?")]
    Foreign(String),
    #[error("the CA's store holds nothing that could sign: was a part of it deleted?")]
    NothingSigns,
    #[error("writing the trust bundle failed: {0}")]
    Document(#[from] DocumentError),
}

/// How the link to a version is put back, if there is one.
fn restored_by(version: Option<&Path>) -> String {
    let name = version
        .and_then(Path::file_name)
        .map(OsStr::to_string_lossy);
    name.map_or_else(String::new, |name| format!(" (ln -s {name} current)"))
}
