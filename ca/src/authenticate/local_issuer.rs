//! A token issuer for meshes without a cluster.
//!
//! Inside Kubernetes the API server gives each pod its token. Whoever runs
//! proxies on virtual machines, or on a laptop, needs tokens from somewhere
//! else: this keeps a signing key in a directory, publishes its public half as
//! `jwks.json` for the CA, and signs tokens with the claims that Kubernetes
//! writes.
//!
//! Whoever can read the key can be any workload. Keep it where the CA's own keys
//! would be kept, and give workloads tokens, never the directory.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bulkhead_pki::key::{KeyError, PrivateKey};
use jsonwebtoken::jwk::{Jwk, JwkSet, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use zeroize::Zeroizing;

use super::Pod;

const KEY_FILE: &str = "issuer.key";
const JWKS_FILE: &str = "jwks.json";

/// Kubernetes signs with RSA, and verifying an RSA signature costs the CA a
/// third of what one by ECDSA does.
const ALGORITHM: Algorithm = Algorithm::RS256;

/// Signs tokens that a CA with this issuer's keys believes.
pub struct LocalIssuer {
    name: String,
    key: EncodingKey,
    header: Header,
    jwks_path: PathBuf,
}

/// Whom a token is for, and for how long.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    pub namespace: String,
    pub service_account: String,
    /// What plays the pod's part: the machine or process that holds the token.
    pub pod: Option<Pod>,
    pub audience: String,
    pub lifetime: Duration,
}

impl LocalIssuer {
    /// Opens the issuer of a directory, and makes directory and key where there
    /// are none. `name` is what the tokens say their issuer is.
    pub fn open(directory: &Path, name: &str) -> Result<Self, IssuerError> {
        let problem = |error| IssuerError::Directory {
            path: directory.to_owned(),
            error,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(problem)?;
        let key_path = directory.join(KEY_FILE);
        if !key_path.exists() {
            let pem = PrivateKey::generate_rsa()?.to_pem()?;
            write_first(&key_path, pem.as_bytes()).map_err(problem)?;
        }
        refuse_loose_permissions(&key_path)?;
        let pem = Zeroizing::new(std::fs::read_to_string(&key_path).map_err(problem)?);
        let key = EncodingKey::from_rsa_pem(pem.as_bytes())?;
        let mut jwk = Jwk::from_encoding_key(&key, ALGORITHM)?;
        let key_id = jwk.thumbprint(ThumbprintHash::SHA256)?;
        jwk.common.key_id = Some(key_id.clone());
        let jwks_path = directory.join(JWKS_FILE);
        let set = serde_json::to_vec_pretty(&JwkSet { keys: vec![jwk] })?;
        if std::fs::read(&jwks_path).ok().as_ref() != Some(&set) {
            let unfinished = beside(&jwks_path);
            write_new(&unfinished, &set, 0o644).map_err(problem)?;
            std::fs::rename(&unfinished, &jwks_path).map_err(problem)?;
        }
        let mut header = Header::new(ALGORITHM);
        header.kid = Some(key_id);
        Ok(Self {
            name: name.to_owned(),
            key,
            header,
            jwks_path,
        })
    }

    /// The file to give to the CA.
    pub fn jwks_path(&self) -> &Path {
        &self.jwks_path
    }

    /// Signs a token.
    pub fn mint(&self, request: &TokenRequest, now: SystemTime) -> Result<String, IssuerError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims {
            iss: &self.name,
            sub: format!(
                "{}{}:{}",
                super::SERVICE_ACCOUNT,
                request.namespace,
                request.service_account
            ),
            aud: [&request.audience],
            iat: now,
            nbf: now,
            exp: now.saturating_add(request.lifetime.as_secs()),
            kubernetes: Binding {
                namespace: &request.namespace,
                serviceaccount: Named {
                    name: &request.service_account,
                },
                pod: request.pod.as_ref(),
            },
        };
        Ok(jsonwebtoken::encode(&self.header, &claims, &self.key)?)
    }
}

impl std::fmt::Debug for LocalIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalIssuer({})", self.name)
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    aud: [&'a str; 1],
    iat: u64,
    nbf: u64,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Binding<'a>,
}

#[derive(Serialize)]
struct Binding<'a> {
    namespace: &'a str,
    serviceaccount: Named<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a Pod>,
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
}

fn refuse_loose_permissions(path: &Path) -> Result<(), IssuerError> {
    let mode = std::fs::metadata(path)
        .map(|metadata| metadata.permissions().mode() & 0o777)
        .map_err(|error| IssuerError::Directory {
            path: path.to_owned(),
            error,
        })?;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(IssuerError::Permissions {
            path: path.to_owned(),
            mode,
        })
    }
}

/// Writes a file that must not be there yet, and waits until it is on disk.
fn write_new(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The process's umask must not take away what readers of the keys need.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Writes a private file, unless somebody else was first: the file is there
/// whole or not at all, and never replaced.
fn write_first(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let unfinished = beside(path);
    write_new(&unfinished, content, 0o600)?;
    let linked = std::fs::hard_link(&unfinished, path);
    std::fs::remove_file(&unfinished)?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A name in the same directory that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_extension(format!("new-{}-{number}", std::process::id()))
}

/// Why no tokens can be issued.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error("using {path} for a token issuer failed: {error}")]
    Directory {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    #[error(
        "{path} can be read by others (mode {mode:03o}): whoever reads it can be any workload; chmod it to 600, and make a new key if it was exposed"
    )]
    Permissions { path: PathBuf, mode: u32 },
    #[error("the token issuer's key cannot be used: {0}")]
    Key(#[from] KeyError),
    #[error("signing a token failed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    #[error("writing the token issuer's public keys failed: {0}")]
    Encode(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_opens_an_issuer_again_or_at_the_same_time_gets_the_same_key() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("issuer");
        let open = || {
            let issuer = LocalIssuer::open(&path, "https://a").unwrap();
            std::fs::read(issuer.jwks_path()).unwrap()
        };
        let (one, two) = std::thread::scope(|scope| {
            let (one, two) = (scope.spawn(open), scope.spawn(open));
            (one.join().unwrap(), two.join().unwrap())
        });
        assert_eq!(one, two);
        assert_eq!(open(), one);
        let names = std::fs::read_dir(&path).unwrap().count();
        assert_eq!(names, 2, "nothing unfinished stays behind");
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        LocalIssuer::open(place.path(), "https://a").unwrap();
        let key = place.path().join(KEY_FILE);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&key), 0o600);
        std::fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        let error = LocalIssuer::open(place.path(), "https://a").unwrap_err();
        assert!(matches!(
            error,
            IssuerError::Permissions { mode: 0o640, .. }
        ));
    }
}
