//! Who signs above the CA: the settings of upstream issuers.

use std::path::PathBuf;

use bulkhead_core::settings::Settings;

use super::name;
use crate::issuer::status::UpstreamSigns;
use crate::upstream::cert_manager::IssuerRef;
use crate::upstream::vault::{VaultAuthentication, VaultSettings};

/// Where the projected token for Vault is, as the chart mounts it.
const VAULT_TOKEN: &str = "/var/run/secrets/bulkhead-vault/token";

/// Another CA above this one.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    pub source: UpstreamSource,
    pub signs: UpstreamSigns,
    /// The roots to trust, where the upstream's answers do not reach up to them.
    pub roots_file: Option<PathBuf>,
}

/// Which one.
#[derive(Clone, Debug)]
pub enum UpstreamSource {
    /// `files:DIRECTORY`
    Files(PathBuf),
    /// `cert-manager:ISSUER`; requests are made in this namespace.
    CertManager {
        issuer: IssuerRef,
        namespace: String,
    },
    /// `vault:URL`
    Vault(VaultSettings),
}

impl UpstreamConfig {
    /// Whether it needs the API server.
    pub(super) fn needs_api_server(&self) -> bool {
        matches!(self.source, UpstreamSource::CertManager { .. })
    }

    /// Whether it signs only for requests that say whom they are for.
    pub(super) fn needs_names(&self) -> bool {
        self.signs == UpstreamSigns::Leaf && self.needs_api_server()
    }
}

/// Reads all of it; none where the CA has a root of its own.
pub(super) fn read(settings: &Settings<'_>) -> Option<UpstreamConfig> {
    let text = settings.text(name::UPSTREAM)?;
    let signs = settings.parsed(name::UPSTREAM_SIGNS, read_signs);
    let signs = signs.unwrap_or_default();
    let reject = |problem: &str| {
        settings.reject(name::UPSTREAM, problem);
        None
    };
    let source = match text.split_once(':') {
        Some(("files", directory)) if !directory.is_empty() => {
            UpstreamSource::Files(directory.into())
        }
        Some(("cert-manager", issuer)) => match issuer.parse() {
            Ok(issuer) => UpstreamSource::CertManager {
                issuer,
                namespace: settings.or(name::CERT_MANAGER_NAMESPACE, "bulkhead-system".to_owned()),
            },
            Err(error) => return reject(&format!("names no issuer: {issuer:?} {error}")),
        },
        Some(("vault", url)) => match url.parse() {
            Ok(url) => UpstreamSource::Vault(VaultSettings {
                url,
                ca_file: settings.text(name::VAULT_CA_FILE).map(PathBuf::from),
                namespace: settings.text(name::VAULT_NAMESPACE),
                mount: settings.or(name::VAULT_MOUNT, "pki".to_owned()),
                role: read_vault_role(settings, signs),
                authentication: read_vault_authentication(settings),
            }),
            Err(error) => return reject(&format!("names no Vault: {url:?} {error}")),
        },
        _ => {
            return reject(&format!(
                "is not usable: {text:?} is none of files:DIRECTORY, cert-manager:ISSUER and vault:URL"
            ));
        }
    };
    Some(UpstreamConfig {
        source,
        signs,
        roots_file: settings.text(name::UPSTREAM_ROOTS).map(PathBuf::from),
    })
}

fn read_signs(text: &str) -> Result<UpstreamSigns, String> {
    let known = [UpstreamSigns::Intermediate, UpstreamSigns::Leaf];
    let signs = known.into_iter().find(|signs| signs.as_str() == text);
    signs.ok_or_else(|| format!("is {text:?}, and intermediate or leaf is expected"))
}

/// The role by which Vault signs leaves, if it is to.
fn read_vault_role(settings: &Settings<'_>, signs: UpstreamSigns) -> Option<String> {
    let role = settings.text(name::VAULT_ROLE);
    if signs == UpstreamSigns::Leaf && role.is_none() {
        settings.reject(
            name::VAULT_ROLE,
            "must name the role of the PKI engine that signs leaves, because \
             BULKHEAD_CA_UPSTREAM_SIGNS is leaf",
        );
    }
    role
}

/// A token in a file, or a role of the Kubernetes auth method: one of them.
fn read_vault_authentication(settings: &Settings<'_>) -> VaultAuthentication {
    match (
        settings.text(name::VAULT_TOKEN_FILE),
        settings.text(name::VAULT_KUBERNETES_ROLE),
    ) {
        (Some(file), None) => VaultAuthentication::TokenFile(file.into()),
        (None, Some(role)) => VaultAuthentication::Kubernetes {
            path: settings.or(name::VAULT_KUBERNETES_PATH, "kubernetes".to_owned()),
            role,
            token_file: settings
                .text(name::VAULT_KUBERNETES_TOKEN_FILE)
                .unwrap_or_else(|| VAULT_TOKEN.to_owned())
                .into(),
        },
        _ => {
            settings.reject(
                name::VAULT_TOKEN_FILE,
                "or BULKHEAD_CA_VAULT_KUBERNETES_ROLE must be set for Vault, and not both",
            );
            VaultAuthentication::TokenFile(PathBuf::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read_from(variables: &[(&str, &str)]) -> Result<Option<UpstreamConfig>, usize> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let lookup = |name: &str| variables.get(name).map(|text| (*text).to_owned());
        let settings = Settings::new(&lookup);
        let read = read(&settings);
        settings.finish(read).map_err(|error| error.0.len())
    }

    #[test]
    fn an_upstream_is_one_word_and_what_belongs_to_it() {
        assert!(read_from(&[]).unwrap().is_none());
        let files = read_from(&[(name::UPSTREAM, "files:/etc/cacerts")]).unwrap();
        assert!(matches!(files.unwrap().source, UpstreamSource::Files(_)));
        let issuer = read_from(&[(name::UPSTREAM, "cert-manager:ClusterIssuer/mesh")]).unwrap();
        assert!(issuer.unwrap().needs_api_server());
        let vault = read_from(&[
            (name::UPSTREAM, "vault:https://vault.example:8200"),
            (name::VAULT_KUBERNETES_ROLE, "bulkhead-ca"),
        ]);
        let UpstreamSource::Vault(vault) = vault.unwrap().unwrap().source else {
            panic!("it is a Vault");
        };
        assert_eq!(vault.mount, "pki");
    }

    #[test]
    fn an_upstream_signs_intermediates_unless_it_is_to_sign_each_leaf() {
        let files = (name::UPSTREAM, "files:/etc/cacerts");
        for (word, signs) in [
            ("intermediate", UpstreamSigns::Intermediate),
            ("leaf", UpstreamSigns::Leaf),
        ] {
            let read = read_from(&[files, (name::UPSTREAM_SIGNS, word)]);
            assert_eq!(read.unwrap().unwrap().signs, signs);
        }
        let unsaid = read_from(&[files]).unwrap().unwrap();
        assert_eq!(unsaid.signs, UpstreamSigns::Intermediate);
        assert!(read_from(&[files, (name::UPSTREAM_SIGNS, "leaves")]).is_err());

        let vault = [
            (name::UPSTREAM, "vault:https://vault.example"),
            (name::VAULT_TOKEN_FILE, "/token"),
            (name::UPSTREAM_SIGNS, "leaf"),
        ];
        assert!(read_from(&vault).is_err(), "no role that signs them");
        let named = [&vault[..], &[(name::VAULT_ROLE, "workloads")]].concat();
        assert!(read_from(&named).is_ok());
    }

    #[test]
    fn what_is_not_usable_is_rejected_and_nothing_is_guessed() {
        for upstream in [
            "files:",
            "files",
            "vault:http://vault.example",
            "cert-manager:mesh",
            "aws:x",
        ] {
            assert!(
                read_from(&[(name::UPSTREAM, upstream)]).is_err(),
                "{upstream}"
            );
        }
        let vault = (name::UPSTREAM, "vault:https://vault.example");
        assert!(read_from(&[vault]).is_err(), "nobody to be");
        let both = [
            vault,
            (name::VAULT_TOKEN_FILE, "/token"),
            (name::VAULT_KUBERNETES_ROLE, "bulkhead-ca"),
        ];
        assert!(read_from(&both).is_err(), "two to be");
    }
}
