//! Signing certificates that somebody else made: whether everything that they
//! came with fits together, and what is wrong where it does not.
//!
//! A CA that starts with a chain that its workloads' peers refuse stops the mesh
//! at the next renewal. So all is judged before anything is signed, rule by
//! rule, and at the end a trial SVID by the verifier that the peers have.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bulkhead_core::identity::{SpiffeId, TrustDomain};

use super::{Authority, AuthorityError};
use crate::bundle::{Roots, TrustBundle};
use crate::certificate::Certificate;
use crate::key::{self, KeyError, PrivateKey};
use crate::svid::{self, MAX_CHAIN_LENGTH, ProfileError};
use crate::verifier::{PeerError, PeerVerifier, Role};

/// The lifetime of the trial SVID, which nobody gets.
const TRIAL: Duration = Duration::from_secs(60);

impl Authority {
    /// Takes a signing certificate that somebody else made: first its own, then
    /// each signer of the one before. The root may be at the end, or not.
    ///
    /// Where no trust root vouches for the end of the chain but one does for a
    /// certificate further down, as when a root was cross-signed by an older
    /// one, what is above that is left out.
    pub fn from_elsewhere(
        trust_domain: &TrustDomain,
        mut chain: Vec<Certificate>,
        key: PrivateKey,
        roots: &Roots,
        now: SystemTime,
    ) -> Result<Self, ForeignError> {
        check_key(&chain, &key)?;
        check_algorithms(&chain, roots)?;
        check_links(&chain)?;
        let vouched = chain.iter().rposition(|certificate| {
            let mut roots = roots.certificates().iter();
            roots.any(|root| root == certificate || certificate.is_signed_by(root))
        });
        let Some(vouched) = vouched else {
            let top = chain.last().unwrap_or(&chain[0]);
            return Err(ForeignError::NoRoot(top.serial()));
        };
        chain.truncate(vouched + 1);
        let authority = Self::from_parts(trust_domain, chain, key, roots)?;
        authority.check_signers(now)?;
        authority.check_path_length(0)?;
        authority.try_out(roots, now)?;
        Ok(authority)
    }

    /// A new intermediate below this one that peers accept, for a key that
    /// somebody has already.
    pub fn try_intermediate(
        &self,
        key: &PrivateKey,
        roots: &Roots,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, ForeignError> {
        self.check_path_length(1)?;
        let intermediate = self.new_intermediate_for(key, lifetime, now)?;
        intermediate.try_out(roots, now)?;
        Ok(intermediate)
    }

    fn signers(&self) -> impl Iterator<Item = &Certificate> {
        self.intermediates.iter().chain([&self.root])
    }

    /// Each signer's own rules, the root's included.
    fn check_signers(&self, now: SystemTime) -> Result<(), ForeignError> {
        for certificate in self.signers() {
            let facts = certificate.facts();
            let serial = certificate.serial();
            if let Err(error) = certificate.public_key() {
                return Err(ForeignError::Key { serial, error });
            }
            if now < facts.not_before {
                return Err(ForeignError::NotYetValid {
                    serial,
                    not_before: unix(facts.not_before),
                });
            }
            if facts.not_after < now {
                return Err(ForeignError::Expired {
                    serial,
                    not_after: unix(facts.not_after),
                });
            }
        }
        Ok(())
    }

    /// Whether the chain leaves room for `more` intermediates below this one.
    fn check_path_length(&self, more: u32) -> Result<(), ForeignError> {
        for (needed, certificate) in (more..).zip(self.signers()) {
            match certificate.facts().path_length {
                Some(allowed) if allowed < needed => {
                    return Err(ForeignError::PathLength {
                        serial: certificate.serial(),
                        allowed,
                        needed,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Issues an SVID that nobody gets, and judges it as its peers would: what
    /// else there is to break, such as name constraints, they would find.
    fn try_out(&self, roots: &Roots, now: SystemTime) -> Result<(), ForeignError> {
        let trust_domain = self.trust_domain();
        let id = SpiffeId::workload(trust_domain, "bulkhead", "trial")
            .expect("these are names that Kubernetes could have given");
        let key = PrivateKey::generate()?;
        let chain = self.issue_svid(&id, key.public_key(), TRIAL, now)?;
        let bundle = TrustBundle::new(trust_domain.clone(), roots.clone());
        let verifier = PeerVerifier::only(Arc::new(bundle), id);
        let presented = chain.to_der();
        let (leaf, intermediates) = presented
            .split_first()
            .expect("a chain begins with its leaf");
        for role in [Role::Client, Role::Server] {
            let verified = verifier.verify(leaf, intermediates, role, now);
            verified.map_err(ForeignError::from_trial)?;
        }
        Ok(())
    }
}

/// Whether the first certificate is the key's and may sign.
fn check_key(chain: &[Certificate], key: &PrivateKey) -> Result<(), ForeignError> {
    let Some(own) = chain.first() else {
        return Err(ForeignError::Empty);
    };
    if chain.len() >= MAX_CHAIN_LENGTH {
        return Err(ForeignError::TooLong(chain.len()));
    }
    for certificate in chain {
        if let Err(error) = certificate.public_key() {
            let serial = certificate.serial();
            return Err(ForeignError::Key { serial, error });
        }
    }
    let is_of_key =
        |certificate: &&Certificate| certificate.public_key().as_ref() == Ok(key.public_key());
    if !is_of_key(&own) {
        return Err(match chain.iter().find(is_of_key) {
            Some(other) => ForeignError::KeyOfAnother {
                first: own.serial(),
                other: other.serial(),
            },
            None => ForeignError::KeyMismatch(own.serial()),
        });
    }
    for certificate in chain {
        if !certificate.facts().is_ca {
            return Err(ForeignError::NotAnAuthority(certificate.serial()));
        }
        svid::check_signing(certificate.facts()).map_err(|error| ForeignError::Profile {
            serial: certificate.serial(),
            error,
        })?;
    }
    Ok(())
}

/// Whether peers read the signatures at all. Nobody looks at a root's own.
fn check_algorithms(chain: &[Certificate], roots: &Roots) -> Result<(), ForeignError> {
    let mut signed = chain
        .iter()
        .filter(|certificate| !roots.certificates().contains(certificate));
    let refused = signed
        .find(|certificate| !key::is_signature_accepted(&certificate.facts().signature_algorithm));
    refused.map_or(Ok(()), |certificate| {
        let algorithm = &certificate.facts().signature_algorithm;
        Err(ForeignError::Algorithm {
            serial: certificate.serial(),
            algorithm: named(algorithm).unwrap_or(algorithm).to_owned(),
        })
    })
}

/// The names of algorithms that are still met, and are not accepted.
fn named(algorithm: &str) -> Option<&'static str> {
    Some(match algorithm {
        "1.2.840.113549.1.1.4" => "MD5 with RSA",
        "1.2.840.113549.1.1.5" => "SHA-1 with RSA",
        "1.2.840.113549.1.1.10" => "RSASSA-PSS",
        "1.2.840.10045.4.1" => "ECDSA with SHA-1",
        "1.2.840.10045.4.3.4" => "ECDSA with SHA-512",
        _ => return None,
    })
}

fn check_links(chain: &[Certificate]) -> Result<(), ForeignError> {
    for pair in chain.windows(2) {
        if pair[0].is_signed_by(&pair[1]) {
            continue;
        }
        let serial = pair[0].serial();
        let signer = chain.iter().find(|other| pair[0].is_signed_by(other));
        return Err(match signer {
            Some(signer) => ForeignError::Order {
                serial,
                signer: signer.serial(),
            },
            None => ForeignError::Gap {
                serial,
                next: pair[1].serial(),
            },
        });
    }
    Ok(())
}

fn unix(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// What is wrong with signing certificates from elsewhere, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    #[error("there is no signing certificate")]
    Empty,
    #[error("the chain has {0} certificates, and peers accept {MAX_CHAIN_LENGTH} with the leaf")]
    TooLong(usize),
    #[error(
        "the private key is not that of signing certificate {0}: were files of two sets mixed, or only one of them replaced?"
    )]
    KeyMismatch(String),
    #[error(
        "the private key is that of certificate {other}, and certificate {first} comes first: put the signing certificate first, then each signer of the one before"
    )]
    KeyOfAnother { first: String, other: String },
    #[error("certificate {serial} has a key that is refused: {error}")]
    Key { serial: String, error: KeyError },
    #[error(
        "certificate {0} is not a CA's (its basicConstraints lack CA:TRUE): was a server's certificate put there?"
    )]
    NotAnAuthority(String),
    #[error("certificate {serial} is not fit to sign: {error}")]
    Profile { serial: String, error: ProfileError },
    #[error(
        "certificate {serial} was signed with {algorithm}, which peers do not accept: have it issued with SHA-256 or SHA-384 (ECDSA, or RSA PKCS#1 v1.5)"
    )]
    Algorithm { serial: String, algorithm: String },
    #[error(
        "the chain is in the wrong order: certificate {signer} signed {serial} and must come right after it"
    )]
    Order { serial: String, signer: String },
    #[error(
        "the chain has a gap: certificate {next} comes after {serial} and did not sign it; add the certificate that did"
    )]
    Gap { serial: String, next: String },
    #[error(
        "none of the trust roots signed certificate {0}, the last of the chain: is the root missing, or that of another chain?"
    )]
    NoRoot(String),
    #[error(
        "certificate {serial} expired at {not_after} (seconds since 1970): replace it, and the key with it if that changed"
    )]
    Expired { serial: String, not_after: u64 },
    #[error(
        "certificate {serial} is valid from {not_before} (seconds since 1970) on: is this machine's clock right?"
    )]
    NotYetValid { serial: String, not_before: u64 },
    #[error(
        "certificate {serial} permits {allowed} intermediates below it (pathlen) and {needed} are needed: have it issued with more, because the CA keeps an intermediate of its own below it"
    )]
    PathLength {
        serial: String,
        allowed: u32,
        needed: u32,
    },
    #[error(
        "the name constraints of the chain exclude the SPIFFE IDs of the trust domain, or are of a kind (URI, directory name) that peers take for an exclusion: have the CA issued without them"
    )]
    NameConstraints,
    #[error("peers would refuse what this chain issues: {0}")]
    Trial(PeerError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    NewKey(#[from] KeyError),
}

impl ForeignError {
    fn from_trial(error: PeerError) -> Self {
        match error {
            PeerError::Path(webpki::Error::NameConstraintViolation) => Self::NameConstraints,
            other => Self::Trial(other),
        }
    }
}
