//! A running CA with its keys in a directory, and identities for everybody:
//! Bulkhead's proxies ask it for theirs; the other proxies, which do not know
//! how, are given certificates of the same CA.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bulkhead_ca::authenticate::Pod;
use bulkhead_ca::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use bulkhead_ca::config::name;
use bulkhead_ca::keyring::Keyring;
use bulkhead_ca::store::Store as _;
use bulkhead_ca::store::directory::Directory;
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::sidecar::{TOKEN_AUDIENCE, default_trust_domain};
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::ports::free_address;

use crate::http1::Kept;
use crate::load::Caller as _;
use crate::process::Process;
use crate::settings::Settings;

/// What tokens say their issuer is.
const ISSUER: &str = "https://issuer.bench";
const NAMESPACE: &str = "bench";
const HOUR: Duration = Duration::from_secs(3600);

/// A running CA.
pub(crate) struct RunningCa {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// Where it says whether it is ready.
    pub(crate) monitoring: SocketAddr,
    /// Signs what the CA itself would not.
    authority: Authority,
    roots: Roots,
    issuer: LocalIssuer,
    directory: PathBuf,
}

/// Whom the CA believes.
pub(crate) enum Tokens<'a> {
    /// An issuer of this process's own, by its keys in a file.
    Jwks,
    /// The API server of this kubeconfig.
    ApiServer(&'a Path),
}

impl RunningCa {
    pub(crate) async fn start(
        settings: &Settings,
        directory: &Path,
        tokens: Tokens<'_>,
    ) -> Result<Self> {
        let issuer = LocalIssuer::open(&directory.join("issuer"), ISSUER)?;
        let store = directory.join("ca");
        let (address, monitoring) = (free_address()?, free_address()?);
        let mut environment = vec![
            (name::LISTEN, address.to_string()),
            (name::MONITORING_LISTEN, monitoring.to_string()),
            (name::SERVER_NAMES, address.ip().to_string()),
            (name::STORE, format!("directory:{}", store.display())),
        ];
        match tokens {
            Tokens::Jwks => environment.extend([
                (
                    name::AUTHENTICATION,
                    format!("jwks:{}", issuer.jwks_path().display()),
                ),
                (name::TOKEN_ISSUER, ISSUER.to_owned()),
            ]),
            Tokens::ApiServer(kubeconfig) => {
                environment.push(("KUBECONFIG", kubeconfig.display().to_string()));
                environment.push((name::TRUST_BUNDLE_CONFIG_MAP, "none".to_owned()));
                // What is measured are reviews.
                environment.push((name::REVIEW_CACHE, "0s".to_owned()));
            }
        }
        let program = settings.programs.join("bulkhead-ca");
        let mut process = Process::start(&program, directory, &[], &environment)?;
        let ready: Arc<[u8]> = b"GET /ready HTTP/1.1\r\nhost: ca\r\n\r\n".as_slice().into();
        let ask = async || Kept::connect(monitoring, &ready).await?.call().await;
        process.ready(ask).await?;
        let stored = Directory::open(store)?.load().await?;
        let stored = stored.context("the CA serves before it has stored its keys")?;
        let keyring = Keyring::from_files(&default_trust_domain(), &stored.files)?;
        let bundle = keyring.bundle()?;
        std::fs::write(directory.join("roots.pem"), bundle.to_pem())?;
        Ok(Self {
            process,
            address,
            monitoring,
            authority: keyring.signer()?,
            roots: bundle.roots().clone(),
            issuer,
            directory: directory.to_owned(),
        })
    }

    /// A file with the trust roots.
    pub(crate) fn roots_path(&self) -> PathBuf {
        self.directory.join("roots.pem")
    }

    /// The certificate that signs everybody's, as if it were a root.
    pub(crate) fn intermediate(&self) -> Result<Roots> {
        Ok(Roots::new([self.authority.certificate().clone()])?)
    }

    /// A token of the issuer that the CA believes.
    pub(crate) fn token(&self, account: &str) -> Result<String> {
        let request = TokenRequest {
            namespace: NAMESPACE.to_owned(),
            service_account: account.to_owned(),
            pod: Some(Pod {
                name: format!("{account}-0"),
                uid: format!("{NAMESPACE}-{account}"),
            }),
            audience: TOKEN_AUDIENCE.to_owned(),
            lifetime: HOUR,
        };
        Ok(self.issuer.mint(&request, Clock::system().now())?)
    }

    /// An identity for this process.
    pub(crate) fn identity(&self, account: &str) -> Result<WorkloadIdentity> {
        let (id, key, now) = (id(account), PrivateKey::generate()?, Clock::system().now());
        let chain = self
            .authority
            .issue_svid(&id, key.public_key(), HOUR, now)?;
        let bundle = TrustBundle::new(default_trust_domain(), self.roots.clone());
        Ok(WorkloadIdentity::new(&id, &key, chain, bundle, now)?)
    }

    /// Files with a workload's certificate and key.
    pub(crate) fn svid_files(&self, account: &str) -> Result<PemFiles> {
        let key = PrivateKey::generate()?;
        let now = Clock::system().now();
        let svid = self
            .authority
            .issue_svid(&id(account), key.public_key(), HOUR, now)?;
        self.write(account, &svid.to_pem(), &key)
    }

    /// Files with a certificate that has a DNS name, for servers whose clients
    /// verify nothing else.
    pub(crate) fn named_files(&self, name: &str) -> Result<PemFiles> {
        let names = [ServerName::parse(name)?];
        let now = Clock::system().now();
        let certificate = self.authority.issue_serving(&names, HOUR, now)?;
        self.write(name, &certificate.chain_pem(), certificate.key())
    }

    fn write(&self, name: &str, chain: &str, key: &PrivateKey) -> Result<PemFiles> {
        let files = PemFiles {
            chain: self.directory.join(format!("{name}.crt")),
            key: self.directory.join(format!("{name}.key")),
        };
        std::fs::write(&files.chain, chain)?;
        std::fs::write(&files.key, key.to_pem()?.as_bytes())?;
        Ok(files)
    }
}

/// A certificate, with those above it, and its key.
#[derive(Clone, Debug)]
pub(crate) struct PemFiles {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// The identity of an account of these benchmarks.
pub(crate) fn id(account: &str) -> SpiffeId {
    let domain = default_trust_domain();
    SpiffeId::workload(&domain, NAMESPACE, account).expect("the accounts here have valid names")
}
