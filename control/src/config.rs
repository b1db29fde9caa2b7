//! The settings, read once from the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bulkhead_core::identity::{IdentityError, SpiffeId, TrustDomain};
use bulkhead_core::policy::{InboundPolicy, MtlsMode};
use bulkhead_core::settings::{Settings, SettingsError};
use bulkhead_core::sidecar::{CA_ROOTS_PATH, LogFormat, TOKEN_PATH, default_trust_domain};
use bulkhead_core::{duration, ports};
use bulkhead_inject::DEFAULT_SYSTEM_NAMESPACE;

/// The names of the variables.
pub mod name {
    pub const NAMESPACE: &str = "BULKHEAD_CONTROL_NAMESPACE";
    pub const SERVICE_ACCOUNT: &str = "BULKHEAD_CONTROL_SERVICE_ACCOUNT";
    pub const INSTANCE: &str = "BULKHEAD_CONTROL_INSTANCE";
    pub const OWNER: &str = "BULKHEAD_CONTROL_OWNER";
    pub const TRUST_DOMAIN: &str = "BULKHEAD_CONTROL_TRUST_DOMAIN";
    pub const LISTEN: &str = "BULKHEAD_CONTROL_LISTEN";
    pub const MONITORING_LISTEN: &str = "BULKHEAD_CONTROL_MONITORING_LISTEN";
    pub const SOURCE: &str = "BULKHEAD_CONTROL_SOURCE";
    pub const ROOT_NAMESPACES: &str = "BULKHEAD_CONTROL_ROOT_NAMESPACES";
    pub const DEFAULT_MTLS_MODE: &str = "BULKHEAD_CONTROL_DEFAULT_MTLS_MODE";
    pub const INJECT_BY_DEFAULT: &str = "BULKHEAD_CONTROL_INJECT_BY_DEFAULT";
    pub const RESTART_MISSING: &str = "BULKHEAD_CONTROL_RESTART_MISSING";
    pub const CA_ADDRESS: &str = "BULKHEAD_CONTROL_CA_ADDRESS";
    pub const CA_ROOTS_PATH: &str = "BULKHEAD_CONTROL_CA_ROOTS_PATH";
    pub const TOKEN_PATH: &str = "BULKHEAD_CONTROL_TOKEN_PATH";
    pub const CERTIFICATE_LIFETIME: &str = "BULKHEAD_CONTROL_CERTIFICATE_LIFETIME";
    pub const DRAIN_DURATION: &str = "BULKHEAD_CONTROL_DRAIN_DURATION";
    pub const LOG_LEVEL: &str = "BULKHEAD_CONTROL_LOG_LEVEL";
    pub const LOG_FORMAT: &str = "BULKHEAD_CONTROL_LOG_FORMAT";
}

/// Where Istio's mesh-wide policies are, as a rule.
const ISTIO_ROOT_NAMESPACE: &str = "istio-system";

/// Everything that control is told when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// The namespace in which Bulkhead runs.
    pub namespace: String,
    /// The ServiceAccount that control runs as: with the namespace, its identity.
    pub service_account: String,
    /// What tells this replica from others: the pod's name.
    pub instance: String,
    /// The ClusterRole that owns what control makes, so that it goes with the
    /// installation.
    pub owner: Option<String>,
    pub trust_domain: TrustDomain,
    /// Discovery.
    pub listen: SocketAddr,
    /// `/metrics`, `/ready` and `/live`.
    pub monitoring_listen: SocketAddr,
    pub source: Source,
    /// Where a PeerAuthentication without a selector is for the whole mesh.
    pub root_namespaces: BTreeSet<String>,
    /// What a workload accepts about which nobody says anything.
    pub default_mode: MtlsMode,
    /// Whether pods get a sidecar about which nobody says anything.
    pub inject_by_default: bool,
    /// Evict pods that should have a sidecar and have none.
    pub restart_missing: bool,
    /// How control gets its own certificate.
    pub ca_address: String,
    pub ca_roots_path: String,
    pub token_path: String,
    pub certificate_lifetime: Duration,
    /// How long after SIGTERM proxies may take to go elsewhere.
    pub drain_duration: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
}

/// Where control learns of workloads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// `kubernetes`: the API server.
    Kubernetes,
    /// `directory:PATH`: YAML manifests in files.
    Directory(PathBuf),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("directory:") {
            Some(path) if !path.is_empty() => Ok(Self::Directory(path.into())),
            _ if text == "kubernetes" => Ok(Self::Kubernetes),
            _ => Err(format!("{text:?} is neither kubernetes nor directory:PATH")),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Directory(path) => write!(f, "directory:{}", path.display()),
        }
    }
}

impl Config {
    /// The settings of a control about which nobody said anything, except where
    /// it learns of workloads.
    pub fn new(source: Source) -> Self {
        let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let namespace = DEFAULT_SYSTEM_NAMESPACE.to_owned();
        Self {
            root_namespaces: root_namespaces(&namespace),
            ca_address: ca_address(&namespace),
            namespace,
            service_account: "bulkhead-control".to_owned(),
            instance: "bulkhead-control".to_owned(),
            owner: None,
            trust_domain: default_trust_domain(),
            listen: SocketAddr::new(everywhere, ports::CONTROL_PLANE),
            monitoring_listen: SocketAddr::new(everywhere, ports::MONITORING),
            source,
            default_mode: MtlsMode::Permissive,
            inject_by_default: false,
            restart_missing: false,
            ca_roots_path: CA_ROOTS_PATH.to_owned(),
            token_path: TOKEN_PATH.to_owned(),
            certificate_lifetime: Duration::from_secs(24 * 60 * 60),
            drain_duration: Duration::from_secs(10),
            log_level: "info".to_owned(),
            log_format: LogFormat::Json,
        }
    }

    /// Control's own identity.
    pub fn spiffe_id(&self) -> Result<SpiffeId, IdentityError> {
        SpiffeId::workload(&self.trust_domain, &self.namespace, &self.service_account)
    }

    /// What a workload accepts about which neither annotations nor policies say
    /// anything.
    pub fn default_policy(&self) -> InboundPolicy {
        InboundPolicy {
            name: "the installation's default".to_owned(),
            mode: self.default_mode,
            port_modes: BTreeMap::new(),
        }
    }

    /// Reads the process's environment; every error at once.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the environment"
    )]
    pub fn from_process_env() -> Result<Self, SettingsError> {
        Self::from_env(&|name| std::env::var(name).ok())
    }

    /// Reads variables from wherever `lookup` finds them.
    pub fn from_env(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let settings = Settings::new(lookup);
        let default = Self::new(settings.or(name::SOURCE, Source::Kubernetes));
        let namespace = settings.or(name::NAMESPACE, default.namespace);
        let read_duration =
            |name, default| settings.parsed(name, duration::parse).unwrap_or(default);
        let config = Self {
            service_account: settings.or(name::SERVICE_ACCOUNT, default.service_account),
            instance: settings.or(name::INSTANCE, default.instance),
            owner: settings.text(name::OWNER),
            trust_domain: settings.or(name::TRUST_DOMAIN, default.trust_domain),
            listen: settings.or(name::LISTEN, default.listen),
            monitoring_listen: settings.or(name::MONITORING_LISTEN, default.monitoring_listen),
            source: default.source,
            root_namespaces: settings
                .text(name::ROOT_NAMESPACES)
                .map_or_else(|| root_namespaces(&namespace), |text| names(&text)),
            default_mode: settings.or(name::DEFAULT_MTLS_MODE, default.default_mode),
            inject_by_default: settings.or(name::INJECT_BY_DEFAULT, false),
            restart_missing: settings.or(name::RESTART_MISSING, false),
            ca_address: settings.or(name::CA_ADDRESS, ca_address(&namespace)),
            ca_roots_path: settings.or(name::CA_ROOTS_PATH, default.ca_roots_path),
            token_path: settings.or(name::TOKEN_PATH, default.token_path),
            certificate_lifetime: read_duration(
                name::CERTIFICATE_LIFETIME,
                default.certificate_lifetime,
            ),
            drain_duration: read_duration(name::DRAIN_DURATION, default.drain_duration),
            log_level: settings.or(name::LOG_LEVEL, default.log_level),
            log_format: settings.or(name::LOG_FORMAT, default.log_format),
            namespace,
        };
        if let Err(error) = config.spiffe_id() {
            settings.reject(name::SERVICE_ACCOUNT, &error.to_string());
        }
        settings.finish(config)
    }
}

fn root_namespaces(own: &str) -> BTreeSet<String> {
    [own, ISTIO_ROOT_NAMESPACE].map(str::to_owned).into()
}

fn ca_address(namespace: &str) -> String {
    format!("bulkhead-ca.{namespace}.svc:{}", ports::CONTROL_PLANE)
}

/// `a,b`
fn names(text: &str) -> BTreeSet<String> {
    text.split(',')
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, SettingsError> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Config::from_env(&|name| variables.get(name).map(|text| (*text).to_owned()))
    }

    #[test]
    fn in_a_cluster_nothing_need_be_said() {
        let config = read(&[]).unwrap();
        assert_eq!(config.source, Source::Kubernetes);
        assert_eq!(config.listen.port(), 15012);
        assert_eq!(
            config.spiffe_id().unwrap().as_str(),
            "spiffe://cluster.local/ns/bulkhead-system/sa/bulkhead-control"
        );
        assert_eq!(config.default_mode, MtlsMode::Permissive);
        assert!(!config.restart_missing);
    }

    #[test]
    fn another_namespace_is_said_once() {
        let config = read(&[(name::NAMESPACE, "mesh")]).unwrap();
        assert_eq!(config.ca_address, "bulkhead-ca.mesh.svc:15012");
        assert_eq!(
            config.root_namespaces,
            names("istio-system, mesh"),
            "policies of Istio's own namespace count as well"
        );
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let SettingsError(errors) = read(&[
            (name::SOURCE, "etcd"),
            (name::DEFAULT_MTLS_MODE, "ON"),
            (name::RESTART_MISSING, "perhaps"),
            (name::SERVICE_ACCOUNT, "a/b"),
            (name::DRAIN_DURATION, "soon"),
        ])
        .unwrap_err();
        assert_eq!(errors.len(), 5, "{errors:#?}");
    }
}
