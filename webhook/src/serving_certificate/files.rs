//! A certificate that somebody else makes, renews and puts into files:
//! cert-manager, a platform team, a mounted Secret.
//!
//! The files are read whenever they differ from what was read last, and used
//! only where all three fit together: a mounted Secret changes by a switched
//! symbolic link, but plain files are written one after the other, and in
//! between they are no pair.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bulkhead_pki::bundle::Roots;
use bulkhead_pki::serving::{ServerName, ServingCertificate};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use tokio::time::sleep;

use super::{Credential, CredentialError, Publisher, verify};
use crate::metrics::Metrics;

/// How often the files are read. They are a few kilobytes; a watch would have
/// to follow the symbolic links of every kind of mount.
const POLL: Duration = Duration::from_secs(1);
/// The longest file that is read, in bytes.
const MAX_FILE: usize = 1024 * 1024;

/// Where the certificate is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsFiles {
    /// PEM: the leaf, then intermediates.
    pub certificate: PathBuf,
    /// PEM: the leaf's private key.
    pub key: PathBuf,
    /// PEM: the CAs that the API server is to verify it by.
    pub authorities: PathBuf,
}

/// The texts of the files.
#[derive(Eq, PartialEq)]
struct Texts {
    certificate: String,
    key: String,
    authorities: String,
}

impl TlsFiles {
    async fn read(&self) -> Result<Texts, CredentialError> {
        let files = self.clone();
        let read = move || {
            let read = |path: &PathBuf| {
                read_bounded(path).map_err(|error| CredentialError::File {
                    path: path.display().to_string(),
                    error,
                })
            };
            Ok(Texts {
                certificate: read(&files.certificate)?,
                key: read(&files.key)?,
                authorities: read(&files.authorities)?,
            })
        };
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| {
                Err(CredentialError::File {
                    path: self.certificate.display().to_string(),
                    error: io::Error::other(error),
                })
            })
    }
}

fn read_bounded(path: &PathBuf) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX);
    std::fs::File::open(path)?
        .take(limit + 1)
        .read_to_string(&mut text)?;
    if text.len() > MAX_FILE {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_FILE} bytes"
        )));
    }
    Ok(text)
}

/// A credential of three texts that fit together.
fn credential(
    texts: &Texts,
    names: &[ServerName],
    now: SystemTime,
) -> Result<Credential, CredentialError> {
    let certificate = ServingCertificate::from_pem(&texts.certificate, &texts.key)?;
    let roots = Roots::from_pem(&texts.authorities)?;
    let mut refusals = Vec::new();
    for authority in roots.certificates() {
        match verify(&certificate, authority, names, now) {
            Ok(()) => {
                return Ok(Credential {
                    certificate,
                    authority: authority.clone(),
                    bundle: roots.certificates().to_vec(),
                });
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    let refusal = refusals.pop().unwrap_or(CredentialError::Slot("ca.crt"));
    Err(CredentialError::NoAuthority(Box::new(refusal)))
}

/// Keeps up with the files, as one task.
pub(crate) struct Keeper {
    pub(crate) files: TlsFiles,
    pub(crate) names: Vec<ServerName>,
    pub(crate) publisher: Publisher,
    pub(crate) loaded: Condition,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

impl Keeper {
    pub(crate) async fn run(mut self, mut drain: drain::Watch) {
        let mut used: Option<Texts> = None;
        let mut said = String::new();
        loop {
            let now = self.clock.now();
            let taken = match self.files.read().await {
                Ok(texts) if used.as_ref() == Some(&texts) => Ok(None),
                Ok(texts) => credential(&texts, &self.names, now).map(|made| Some((texts, made))),
                Err(error) => Err(error),
            };
            match taken {
                Ok(fresh) => {
                    if let Some((texts, credential)) = fresh {
                        self.publisher.offer(credential, now);
                        self.loaded.set(true);
                        used = Some(texts);
                    }
                    said.clear();
                }
                Err(error) => self.failed(&error, &mut said),
            }
            tokio::select! {
                () = sleep(POLL) => {}
                () = self.publisher.changed() => {}
                () = drain.started() => return,
            }
            self.publisher.pass(self.clock.now());
        }
    }

    /// The same problem is logged once, however often the files are read.
    fn failed(&self, error: &CredentialError, said: &mut String) {
        self.metrics.certificate_errors.inc();
        let error = error.to_string();
        if *said != error {
            tracing::error!(
                error,
                "the files of the serving certificate cannot be used and will be read again; \
                 the certificate in use stays"
            );
            *said = error;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_pki::serving::ServingAuthority;
    use std::time::UNIX_EPOCH;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        UNIX_EPOCH + 500_000 * HOUR
    }

    fn names() -> Vec<ServerName> {
        vec![ServerName::parse("webhook.test.svc").unwrap()]
    }

    fn texts() -> Texts {
        let authority = ServingAuthority::new("test", 24 * HOUR, now()).unwrap();
        let certificate = authority.issue(&names(), HOUR, now()).unwrap();
        Texts {
            certificate: certificate.chain_pem(),
            key: certificate.key().to_pem().unwrap().to_string(),
            authorities: authority.certificate().to_pem(),
        }
    }

    #[test]
    fn files_of_one_pair_are_used_and_the_ca_that_vouches_is_found_among_others() {
        let (texts, other) = (texts(), texts());
        let both = Texts {
            authorities: other.authorities + &texts.authorities,
            ..texts
        };
        let credential = credential(&both, &names(), now()).unwrap();
        assert_eq!(credential.bundle.len(), 2);
        assert_eq!(credential.authority, credential.bundle[1]);
    }

    #[test]
    fn files_that_are_no_pair_are_not_used() {
        let (mine, other) = (texts(), texts());
        let with = |certificate: &Texts, key: &Texts, authorities: &Texts| Texts {
            certificate: certificate.certificate.clone(),
            key: key.key.clone(),
            authorities: authorities.authorities.clone(),
        };
        let refused = |texts: &Texts| credential(texts, &names(), now()).unwrap_err().to_string();
        assert!(refused(&with(&mine, &other, &mine)).contains("private key"));
        assert!(refused(&with(&mine, &mine, &other)).contains("no CA"));
        let empty = Texts {
            authorities: String::new(),
            ..with(&mine, &mine, &mine)
        };
        assert!(refused(&empty).contains("CA file"));
        let cut = Texts {
            certificate: mine.certificate[..200].to_owned(),
            ..with(&mine, &mine, &mine)
        };
        assert!(refused(&cut).contains("PEM"));
    }

    #[test]
    fn a_certificate_for_another_name_or_another_time_is_not_used() {
        let mine = texts();
        let other = [ServerName::parse("other.test.svc").unwrap()];
        let error = credential(&mine, &other, now()).unwrap_err().to_string();
        assert!(error.contains("other.test.svc"), "{error}");
        assert!(credential(&mine, &names(), now() + 2 * HOUR).is_err());
    }
}
