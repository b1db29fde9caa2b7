//! A PKI secrets engine of Vault, by its HTTP API.
//!
//! ```text
//!  sign_intermediate ─▶ POST <mount>/root/sign-intermediate ─┐
//!  sign_leaf ─────────▶ POST <mount>/sign/<role> ────────────┼─▶ Answer, checked
//!  sign_serving ──────▶ POST <mount>/sign/<role> ────────────┤
//!                                                            │
//!  login ─▶ a file with a token, read each time, or ─────────┘
//!           POST auth/<path>/login with a ServiceAccount's token
//! ```
//!
//! - [`client`]: one request, bounded in time and size.
//! - [`login`]: the token to ask with.
//! - [`answer`]: what Vault says, and what its refusals mean.

pub mod answer;
mod client;
mod login;

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_pki::csr;
use bulkhead_pki::elsewhere::{Signed, Span};
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;
use bulkhead_pki::svid::SvidChain;
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::clock::Clock;
use serde_json::{Value, json};

use self::client::Client;
use self::login::Login;
use super::answer::{Answer, lifetime_to_ask};
use super::{Reason, SignedChain, SignedServing, Upstream, UpstreamError, read_roots};
use crate::vet::VettedCsr;

pub use self::client::{Url, UrlError};

/// How often a request that did not reach Vault is made in all.
const TRIES: u32 = 4;
/// The waits between them.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(4);

/// How to reach Vault, and as whom.
#[derive(Clone, Debug)]
pub struct VaultSettings {
    pub url: Url,
    /// The roots of Vault's own TLS certificate, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The namespace of Vault Enterprise, or of HCP.
    pub namespace: Option<String>,
    /// Where the PKI engine is mounted.
    pub mount: String,
    /// The role that signs leaves, where leaves are signed there.
    pub role: Option<String>,
    pub authentication: VaultAuthentication,
}

/// How the CA logs in to Vault.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum VaultAuthentication {
    /// A token in a file, which somebody else keeps fresh.
    TokenFile(PathBuf),
    /// The Kubernetes auth method.
    Kubernetes {
        /// Where it is mounted below `auth/`.
        path: String,
        role: String,
        /// The projected token of the CA's ServiceAccount.
        token_file: PathBuf,
    },
}

/// Signs by Vault.
pub struct Vault {
    client: Client,
    login: Login,
    mount: String,
    role: Option<String>,
    roots_file: Option<PathBuf>,
    trust_domain: TrustDomain,
    clock: Clock,
}

impl Vault {
    /// Nothing is asked yet: a Vault that is away stops no start.
    pub fn new(
        settings: VaultSettings,
        roots_file: Option<PathBuf>,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> Self {
        Self {
            login: Login::new(settings.authentication, clock.clone()),
            client: Client::new(settings.url, settings.ca_file, settings.namespace),
            mount: settings.mount,
            role: settings.role,
            roots_file,
            trust_domain,
            clock,
        }
    }

    /// Asks Vault to sign. What did not reach it is tried again, and a token
    /// that it no longer knows is replaced, once.
    async fn sign(&self, path: &str, body: &Value) -> Result<Answer, UpstreamError> {
        let roots = read_roots(self.roots_file.as_deref()).await?;
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut tries = 1;
        let mut may_log_in_again = true;
        loop {
            let error = match self.sign_once(path, body).await {
                Ok(data) => return answer::signed(&data, roots.as_ref()),
                Err(error) => error,
            };
            match error.reason() {
                Reason::Refused if may_log_in_again && self.login.forget() => {
                    may_log_in_again = false;
                }
                Reason::Unreachable if tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(backoff.after_failure(jitter())).await;
                }
                _ => return Err(error),
            }
        }
    }

    /// Asks the role of leaves.
    async fn sign_by_role(&self, body: &Value) -> Result<Answer, UpstreamError> {
        let Some(role) = &self.role else {
            return Err(UpstreamError::new(
                Reason::Unusable,
                "leaves are signed by a role of Vault, and none was named: set \
                 BULKHEAD_CA_VAULT_ROLE",
            ));
        };
        self.sign(&format!("{}/sign/{role}", self.mount), body)
            .await
    }

    async fn sign_once(&self, path: &str, body: &Value) -> Result<Vec<u8>, UpstreamError> {
        let token = self.login.token(&self.client).await?;
        self.client.post(path, Some(&token), body).await
    }
}

/// A lifetime as Vault reads it.
fn ttl(lifetime: Duration) -> String {
    format!("{}s", lifetime.as_secs())
}

#[tonic::async_trait]
impl Upstream for Vault {
    fn kind(&self) -> &'static str {
        "vault"
    }

    async fn sign_intermediate(
        &self,
        key: &PrivateKey,
        trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<SignedChain, UpstreamError> {
        let request = csr::create_intermediate(key, trust_domain).map_err(not_made)?;
        let body = json!({
            "csr": request,
            "common_name": csr::INTERMEDIATE_NAME,
            "organization": trust_domain.as_str(),
            "uri_sans": trust_domain.id().as_str(),
            "exclude_cn_from_sans": true,
            "max_path_length": 0,
            "ttl": ttl(lifetime),
            "format": "pem",
        });
        let path = format!("{}/root/sign-intermediate", self.mount);
        let answer = self.sign(&path, &body).await?;
        answer.into_intermediate(key, trust_domain, self.clock.now())
    }

    async fn sign_leaf(
        &self,
        csr: &VettedCsr,
        lifetime: Duration,
    ) -> Result<Signed<SvidChain>, UpstreamError> {
        let body = json!({
            "csr": csr.csr().to_pem(),
            "uri_sans": csr.id().as_str(),
            "exclude_cn_from_sans": true,
            "ttl": ttl(lifetime_to_ask(lifetime)),
            "format": "pem",
        });
        let answer = self.sign_by_role(&body).await?;
        let now = self.clock.now();
        answer.into_leaf(csr, &self.trust_domain, Span { now, lifetime })
    }

    async fn sign_serving(
        &self,
        names: &[ServerName],
        lifetime: Duration,
    ) -> Result<SignedServing, UpstreamError> {
        let key = PrivateKey::generate()
            .map_err(|error| UpstreamError::new(Reason::Unusable, error.to_string()))?;
        let request = csr::create_serving(&key, names).map_err(not_made)?;
        let (dns, ips): (Vec<&ServerName>, Vec<&ServerName>) = names
            .iter()
            .partition(|name| matches!(name, ServerName::Dns(_)));
        let body = json!({
            "csr": request,
            "alt_names": joined(&dns),
            "ip_sans": joined(&ips),
            "exclude_cn_from_sans": true,
            "ttl": ttl(lifetime_to_ask(lifetime)),
            "format": "pem",
        });
        let answer = self.sign_by_role(&body).await?;
        let now = self.clock.now();
        answer.into_serving(names, key, Span { now, lifetime })
    }

    fn origin(&self) -> String {
        let role = self.role.as_deref().unwrap_or_default();
        format!("{} {} {role}", self.client, self.mount)
    }

    /// Vault does not tell.
    async fn changed(&self) {
        std::future::pending().await
    }
}

fn joined(names: &[&ServerName]) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.join(",")
}

fn not_made(error: csr::CreateError) -> UpstreamError {
    UpstreamError::new(Reason::Unusable, error.to_string())
}
