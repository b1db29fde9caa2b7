//! A signing certificate with its key, in a directory of PEM files that somebody
//! else keeps: cert-manager, a Secret volume, a vault's agent, or people.
//!
//! | what | as Kubernetes has it | as Istio's `cacerts` has it |
//! |---|---|---|
//! | signing certificate, chain | `tls.crt` | `ca-cert.pem`, `cert-chain.pem` |
//! | its private key | `tls.key` | `ca-key.pem` |
//! | trust roots | `ca.crt` | `root-cert.pem` |
//!
//! The files are looked at every few seconds and compared by content, because a
//! kubelet replaces them by moving a link. A set that does not fit together, as
//! one that is being written, changes nothing: the set before it signs on.

mod set;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::authority::foreign::ForeignError;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::elsewhere::Signed;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;
use bulkhead_pki::svid::SvidChain;
use bulkhead_runtime::clock::Clock;

use self::set::{Digest, FileSet};
use super::answer::root_first;
use super::{Reason, SignedChain, SignedServing, Upstream, UpstreamError};
use crate::issuer::status::UpstreamSigns;
use crate::vet::VettedCsr;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Signs with the files of a directory.
pub struct Files {
    directory: PathBuf,
    trust_domain: TrustDomain,
    signs: UpstreamSigns,
    clock: Clock,
    seen: Mutex<Seen>,
}

/// What the last look at the files found.
#[derive(Default)]
struct Seen {
    /// Of the files as they were then, good or not.
    digest: Option<Digest>,
    /// What is wrong with them.
    problem: Option<UpstreamError>,
    /// The last that fitted together.
    good: Option<Arc<Good>>,
}

/// Files that fit together.
struct Good {
    authority: Authority,
    roots: Roots,
}

/// What a look found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    Changed,
    Same,
}

impl Files {
    /// Looks at a directory. One that cannot be used is an error only when
    /// something is to be signed, because it may be repaired before.
    pub async fn open(
        directory: PathBuf,
        trust_domain: TrustDomain,
        signs: UpstreamSigns,
        clock: Clock,
    ) -> Self {
        let files = Self {
            directory,
            trust_domain,
            signs,
            clock,
            seen: Mutex::default(),
        };
        files.look().await;
        files
    }

    /// Reads the files and takes them over if they are others and fit together.
    async fn look(&self) -> Found {
        let read = FileSet::read(&self.directory).await;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let set = match read {
            Ok(set) if seen.digest == Some(set.digest()) && seen.problem.is_none() => {
                return Found::Same;
            }
            Ok(set) => set,
            Err(error) => {
                seen.found_problem(&self.directory, error);
                return Found::Same;
            }
        };
        let digest = set.digest();
        match self.judge(&set) {
            Ok(good) => {
                let found = match &seen.good {
                    Some(before) if before.is_same(&good) => Found::Same,
                    _ => Found::Changed,
                };
                if found == Found::Changed {
                    tracing::info!(
                        directory = %self.directory.display(),
                        serial = good.authority.certificate().serial(),
                        root = good.authority.root().serial(),
                        "the files of the upstream CA were read"
                    );
                    set.warn_of_what_is_not_used(&self.directory);
                }
                seen.good = Some(Arc::new(good));
                seen.problem = None;
                seen.digest = Some(digest);
                found
            }
            Err(error) => {
                seen.found_problem(&self.directory, error);
                seen.digest = Some(digest);
                Found::Same
            }
        }
    }

    /// Whether the files fit together, for what they are to sign.
    fn judge(&self, set: &FileSet) -> Result<Good, UpstreamError> {
        let (chain, key, roots) = set.parse()?;
        let now = self.clock.now();
        let fits = || {
            let authority = Authority::from_elsewhere(&self.trust_domain, chain, key, &roots, now)?;
            if self.signs == UpstreamSigns::Intermediate {
                let trial = PrivateKey::generate()?;
                authority.try_intermediate(&trial, &roots, Duration::from_secs(60), now)?;
            }
            Ok(authority)
        };
        let authority = fits().map_err(|error: ForeignError| {
            UpstreamError::new(
                Reason::Unusable,
                format!(
                    "the files in {} do not fit together: {error}",
                    self.directory.display()
                ),
            )
        })?;
        Ok(Good {
            roots: root_first(authority.root(), &roots),
            authority,
        })
    }

    fn good(&self) -> Result<Arc<Good>, UpstreamError> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match (&seen.good, &seen.problem) {
            (Some(good), _) => Ok(Arc::clone(good)),
            (None, Some(problem)) => Err(problem.clone()),
            (None, None) => Err(UpstreamError::new(
                Reason::Unusable,
                "the files were not looked at yet",
            )),
        }
    }
}

impl Seen {
    /// Says once of each problem what it is.
    fn found_problem(&mut self, directory: &Path, error: UpstreamError) {
        if self.problem.as_ref() != Some(&error) {
            tracing::warn!(
                directory = %directory.display(),
                %error,
                earlier_set = self.good.is_some(),
                "the files of the upstream CA cannot be used; an earlier set, if any, signs on"
            );
        }
        self.problem = Some(error);
    }
}

impl Good {
    /// Of everything that is told to others.
    fn fingerprint(&self) -> String {
        let told = self.authority.intermediates().iter();
        let told = told.chain(self.roots.certificates());
        told.map(|part| part.fingerprint().to_string())
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn is_same(&self, other: &Self) -> bool {
        self.authority.intermediates() == other.authority.intermediates()
            && self.authority.root() == other.authority.root()
            && self.roots == other.roots
    }
}

#[tonic::async_trait]
impl Upstream for Files {
    fn kind(&self) -> &'static str {
        "files"
    }

    async fn sign_intermediate(
        &self,
        key: &PrivateKey,
        _trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<SignedChain, UpstreamError> {
        // Rare enough to look first: nobody waits for a file repaired just now.
        self.look().await;
        let good = self.good()?;
        let now = self.clock.now();
        let intermediate = good
            .authority
            .try_intermediate(key, &good.roots, lifetime, now);
        let intermediate = intermediate.map_err(|error| not_signed(&self.directory, &error))?;
        Ok(SignedChain::of(&intermediate, &good.roots))
    }

    async fn sign_leaf(
        &self,
        csr: &VettedCsr,
        lifetime: Duration,
    ) -> Result<Signed<SvidChain>, UpstreamError> {
        let good = self.good()?;
        let now = self.clock.now();
        let certificate = good
            .authority
            .issue_svid(csr.id(), csr.public_key(), lifetime, now)
            .map_err(|error| not_signed(&self.directory, &error))?;
        let root = good.authority.root().clone();
        Ok(Signed { certificate, root })
    }

    async fn sign_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<SignedServing, UpstreamError> {
        self.look().await;
        let good = self.good()?;
        let now = self.clock.now();
        let certificate = good
            .authority
            .issue_serving(names, lifetime, now)
            .map_err(|error| not_signed(&self.directory, &error))?;
        let roots = good.roots.clone();
        Ok(SignedServing { certificate, roots })
    }

    /// The set that signs, wherever it lies.
    fn origin(&self) -> String {
        match self.good() {
            Ok(good) => format!("files {}", good.fingerprint()),
            Err(_) => "files".to_owned(),
        }
    }

    async fn changed(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.look().await == Found::Changed {
                return;
            }
        }
    }
}

fn not_signed(directory: &Path, error: &dyn std::fmt::Display) -> UpstreamError {
    UpstreamError::new(
        Reason::Unusable,
        format!("the CA in {} signed nothing: {error}", directory.display()),
    )
}
