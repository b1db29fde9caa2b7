//! The settings, read once from the environment.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bulkhead_core::identity::TrustDomain;
use bulkhead_core::settings::{Settings, SettingsError};
use bulkhead_core::sidecar::{LogFormat, TOKEN_AUDIENCE, default_trust_domain};
use bulkhead_core::{duration, ports};
use bulkhead_pki::serving::ServerName;

use crate::rotation::SETTLE;

mod authentication;
mod upstream;

pub use self::authentication::{Authentication, FetchedKeys, KeyAddress, KeySource, TokenIssuer};
pub use self::upstream::{UpstreamConfig, UpstreamSource};

/// The names of the variables.
pub mod name {
    pub const TRUST_DOMAIN: &str = "BULKHEAD_CA_TRUST_DOMAIN";
    pub const LISTEN: &str = "BULKHEAD_CA_LISTEN";
    pub const MONITORING_LISTEN: &str = "BULKHEAD_CA_MONITORING_LISTEN";
    pub const SERVER_NAMES: &str = "BULKHEAD_CA_SERVER_NAMES";
    pub const STORE: &str = "BULKHEAD_CA_STORE";
    pub const AUTHENTICATION: &str = "BULKHEAD_CA_AUTHENTICATION";
    pub const TOKEN_ISSUER: &str = "BULKHEAD_CA_TOKEN_ISSUER";
    pub const TOKEN_ISSUERS: &str = "BULKHEAD_CA_TOKEN_ISSUERS";
    pub const TOKEN_AUDIENCE: &str = "BULKHEAD_CA_TOKEN_AUDIENCE";
    pub const ALLOW_TOKENS_WITHOUT_POD: &str = "BULKHEAD_CA_ALLOW_TOKENS_WITHOUT_POD";
    pub const REVIEW_CACHE: &str = "BULKHEAD_CA_REVIEW_CACHE";
    pub const RENEWAL_BY_CERTIFICATE: &str = "BULKHEAD_CA_RENEWAL_BY_CERTIFICATE";
    pub const NODE_PROXIES: &str = "BULKHEAD_CA_NODE_PROXIES";
    pub const ADMIN_LISTEN: &str = "BULKHEAD_CA_ADMIN_LISTEN";
    pub const DEFAULT_LIFETIME: &str = "BULKHEAD_CA_DEFAULT_LIFETIME";
    pub const MAX_LIFETIME: &str = "BULKHEAD_CA_MAX_LIFETIME";
    pub const ROOT_LIFETIME: &str = "BULKHEAD_CA_ROOT_LIFETIME";
    pub const INTERMEDIATE_LIFETIME: &str = "BULKHEAD_CA_INTERMEDIATE_LIFETIME";
    pub const UPSTREAM: &str = "BULKHEAD_CA_UPSTREAM";
    pub const UPSTREAM_ROOTS: &str = "BULKHEAD_CA_UPSTREAM_ROOTS";
    pub const UPSTREAM_SIGNS: &str = "BULKHEAD_CA_UPSTREAM_SIGNS";
    pub const CERT_MANAGER_NAMESPACE: &str = "BULKHEAD_CA_CERT_MANAGER_NAMESPACE";
    pub const VAULT_MOUNT: &str = "BULKHEAD_CA_VAULT_MOUNT";
    pub const VAULT_ROLE: &str = "BULKHEAD_CA_VAULT_ROLE";
    pub const VAULT_NAMESPACE: &str = "BULKHEAD_CA_VAULT_NAMESPACE";
    pub const VAULT_CA_FILE: &str = "BULKHEAD_CA_VAULT_CA_FILE";
    pub const VAULT_TOKEN_FILE: &str = "BULKHEAD_CA_VAULT_TOKEN_FILE";
    pub const VAULT_KUBERNETES_PATH: &str = "BULKHEAD_CA_VAULT_KUBERNETES_PATH";
    pub const VAULT_KUBERNETES_ROLE: &str = "BULKHEAD_CA_VAULT_KUBERNETES_ROLE";
    pub const VAULT_KUBERNETES_TOKEN_FILE: &str = "BULKHEAD_CA_VAULT_KUBERNETES_TOKEN_FILE";
    pub const JWT_ISSUER: &str = "BULKHEAD_CA_JWT_ISSUER";
    pub const ROTATION_PAUSE: &str = "BULKHEAD_CA_ROTATION_PAUSE";
    pub const TRUST_BUNDLE_CONFIG_MAP: &str = "BULKHEAD_CA_TRUST_BUNDLE_CONFIG_MAP";
    pub const INSTANCE: &str = "BULKHEAD_CA_INSTANCE";
    pub const POD_CERTIFICATES: &str = "BULKHEAD_CA_POD_CERTIFICATES";
    pub const OWNER: &str = "BULKHEAD_CA_OWNER";
    pub const KEEP_KEYS: &str = "BULKHEAD_CA_KEEP_KEYS";
    pub const DRAIN_DURATION: &str = "BULKHEAD_CA_DRAIN_DURATION";
    pub const LOG_LEVEL: &str = "BULKHEAD_CA_LOG_LEVEL";
    pub const LOG_FORMAT: &str = "BULKHEAD_CA_LOG_FORMAT";
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where injected pods look for the trust roots.
const TRUST_BUNDLE_CONFIG_MAP: &str = "bulkhead-trust-bundle";

/// Long enough for a node proxy to ask for its whole node.
const REVIEW_CACHE: Duration = Duration::from_secs(30);

/// The longest that it may be: a token whose ServiceAccount is deleted is good for
/// so long.
const MAX_REVIEW_CACHE: Duration = Duration::from_secs(300);

/// The shortest certificate worth issuing: validity is back-dated by two
/// minutes, and clocks differ.
const MIN_LIFETIME: Duration = Duration::from_secs(60);

/// Everything that a CA is told when it starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub trust_domain: TrustDomain,
    /// The CSR service.
    pub listen: SocketAddr,
    /// `/metrics`, `/ready` and `/live`.
    pub monitoring_listen: SocketAddr,
    /// What this replica does now, for `bulkhead ca status`: a loopback address.
    pub admin_listen: Option<SocketAddr>,
    /// The names that clients know this server by.
    pub server_names: Vec<ServerName>,
    pub store: StoreLocation,
    pub authentication: Authentication,
    pub tokens: TokenRules,
    /// How long the API server's word on a token is kept; not at all where zero.
    pub review_cache: Duration,
    /// Whether a workload without a token may renew by the certificate that it has.
    pub renewal_by_certificate: bool,
    /// The ServiceAccounts of node proxies, by namespace and name.
    pub node_proxies: Vec<(String, String)>,
    pub lifetimes: Lifetimes,
    /// How long nothing must have changed before a root begins to sign, or
    /// leaves the trust bundle.
    pub rotation_pause: Duration,
    /// Who has the root, where it is not this CA.
    pub upstream: Option<UpstreamConfig>,
    /// Who JWT-SVIDs say that they are from: the https URL under which others
    /// find their keys by OpenID Connect discovery.
    pub jwt_issuer: Option<String>,
    /// The ConfigMap with the trust roots, written to every namespace; none
    /// where there is no cluster, or somebody else distributes them.
    pub trust_bundle_config_map: Option<String>,
    /// What tells this replica from others: the pod's name.
    pub instance: String,
    /// Whether PodCertificateRequests are answered.
    pub pod_certificates: bool,
    /// The ClusterRole that owns what the CA makes, so that it goes when
    /// Bulkhead is uninstalled.
    pub owner: Option<String>,
    /// Whether the Secret of the keys stays when Bulkhead is uninstalled.
    pub keep_keys: bool,
    /// How long calls in hand may take after SIGTERM.
    pub drain_duration: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
}

/// What a token must say besides whose it is.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// The audience that it must be bound to.
    pub audience: String,
    /// Whether it may be bound to no pod. Such a token lives on when the pod
    /// that it was stolen from is gone.
    pub allow_without_pod: bool,
}

/// How long certificates are valid.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// For a caller without a wish.
    pub default: Duration,
    /// Whatever a caller wishes.
    pub max: Duration,
    pub root: Duration,
    pub intermediate: Duration,
}

/// Where root and intermediate are kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StoreLocation {
    /// `directory:PATH`
    Directory(PathBuf),
    /// `secret:NAMESPACE/NAME`
    Secret { namespace: String, name: String },
}

impl FromStr for StoreLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("directory", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            Some(("secret", location)) => match location.split_once('/') {
                Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                    Ok(Self::Secret {
                        namespace: namespace.to_owned(),
                        name: name.to_owned(),
                    })
                }
                _ => Err(format!("{location:?} is not of the form NAMESPACE/NAME")),
            },
            _ => Err(format!(
                "{text:?} is neither directory:PATH nor secret:NAMESPACE/NAME"
            )),
        }
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "directory:{}", path.display()),
            Self::Secret { namespace, name } => write!(f, "secret:{namespace}/{name}"),
        }
    }
}

impl Config {
    /// The settings of a CA about which nobody said anything, except where it
    /// keeps its keys and whom it believes.
    pub fn new(store: StoreLocation, authentication: Authentication) -> Self {
        let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let in_cluster = needs_api_server(&store, &authentication);
        Self {
            trust_domain: default_trust_domain(),
            listen: SocketAddr::new(everywhere, ports::CONTROL_PLANE),
            monitoring_listen: SocketAddr::new(everywhere, ports::MONITORING),
            admin_listen: None,
            server_names: [
                "bulkhead-ca.bulkhead-system.svc",
                "bulkhead-ca.bulkhead-system.svc.cluster.local",
            ]
            .map(|name| ServerName::Dns(name.to_owned()))
            .into(),
            store,
            authentication,
            tokens: TokenRules {
                audience: TOKEN_AUDIENCE.to_owned(),
                allow_without_pod: false,
            },
            review_cache: REVIEW_CACHE,
            renewal_by_certificate: false,
            node_proxies: Vec::new(),
            lifetimes: Lifetimes {
                default: DAY,
                max: DAY,
                root: 3650 * DAY,
                intermediate: 365 * DAY,
            },
            upstream: None,
            jwt_issuer: None,
            rotation_pause: SETTLE,
            trust_bundle_config_map: in_cluster.then(|| TRUST_BUNDLE_CONFIG_MAP.to_owned()),
            instance: "bulkhead-ca".to_owned(),
            pod_certificates: false,
            owner: None,
            keep_keys: false,
            drain_duration: Duration::from_secs(30),
            log_level: "info".to_owned(),
            log_format: LogFormat::Json,
        }
    }

    /// Whether there is anything to ask the API server.
    pub fn needs_api_server(&self) -> bool {
        needs_api_server(&self.store, &self.authentication)
            || self
                .upstream
                .as_ref()
                .is_some_and(UpstreamConfig::needs_api_server)
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
        let store = settings.or(
            name::STORE,
            StoreLocation::Secret {
                namespace: "bulkhead-system".to_owned(),
                name: "bulkhead-ca".to_owned(),
            },
        );
        let default = Self::new(store, authentication::read(&settings));
        let read_duration =
            |name, default| settings.parsed(name, duration::parse).unwrap_or(default);
        let lifetimes = Lifetimes {
            default: read_duration(name::DEFAULT_LIFETIME, default.lifetimes.default),
            max: read_duration(name::MAX_LIFETIME, default.lifetimes.max),
            root: read_duration(name::ROOT_LIFETIME, default.lifetimes.root),
            intermediate: read_duration(
                name::INTERMEDIATE_LIFETIME,
                default.lifetimes.intermediate,
            ),
        };
        check_lifetimes(&settings, &lifetimes);
        let trust_bundle_config_map = read_config_map(&settings, &default);
        let review_cache = read_duration(name::REVIEW_CACHE, default.review_cache);
        if review_cache > MAX_REVIEW_CACHE {
            settings.reject(name::REVIEW_CACHE, "must be five minutes at most");
        }
        let upstream = upstream::read(&settings);
        let pod_certificates = settings.or(name::POD_CERTIFICATES, false);
        if pod_certificates && upstream.as_ref().is_some_and(UpstreamConfig::needs_names) {
            settings.reject(
                name::POD_CERTIFICATES,
                "cannot be had where cert-manager signs each leaf: it takes names from requests, \
                 and kubelet's have none",
            );
        }
        let node_proxies = read_node_proxies(&settings, &default.authentication);
        let config = Self {
            trust_domain: settings.or(name::TRUST_DOMAIN, default.trust_domain),
            listen: settings.or(name::LISTEN, default.listen),
            monitoring_listen: settings.or(name::MONITORING_LISTEN, default.monitoring_listen),
            admin_listen: settings.parsed(name::ADMIN_LISTEN, read_loopback),
            server_names: settings
                .parsed(name::SERVER_NAMES, read_names)
                .unwrap_or(default.server_names),
            tokens: TokenRules {
                audience: settings.or(name::TOKEN_AUDIENCE, default.tokens.audience),
                allow_without_pod: settings.or(name::ALLOW_TOKENS_WITHOUT_POD, false),
            },
            review_cache,
            renewal_by_certificate: settings.or(name::RENEWAL_BY_CERTIFICATE, false),
            node_proxies,
            lifetimes,
            rotation_pause: read_rotation_pause(&settings),
            upstream,
            jwt_issuer: settings.parsed(name::JWT_ISSUER, read_issuer),
            trust_bundle_config_map,
            instance: settings.or(name::INSTANCE, default.instance),
            pod_certificates,
            owner: settings.text(name::OWNER),
            keep_keys: settings.or(name::KEEP_KEYS, false),
            drain_duration: read_duration(name::DRAIN_DURATION, default.drain_duration),
            log_level: settings.or(name::LOG_LEVEL, default.log_level),
            log_format: settings.or(name::LOG_FORMAT, default.log_format),
            store: default.store,
            authentication: default.authentication,
        };
        settings.finish(config)
    }
}

/// Whoever reaches the admin port is told who calls; only this host may.
fn read_loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|error| format!("{error}"))?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(
            "the admin port is for this host alone: give a loopback address, such as \
             127.0.0.1:15000"
                .to_owned(),
        )
    }
}

fn needs_api_server(store: &StoreLocation, authentication: &Authentication) -> bool {
    authentication.kubernetes || matches!(store, StoreLocation::Secret { .. })
}

/// Shorter than the default, the other replicas and the reports may be behind.
fn read_rotation_pause(settings: &Settings<'_>) -> Duration {
    let pause = settings.parsed(name::ROTATION_PAUSE, duration::parse);
    let pause = pause.unwrap_or(SETTLE);
    if pause < SETTLE {
        settings.reject(name::ROTATION_PAUSE, "must be 30 seconds at least");
    }
    pause
}

/// The name of the ConfigMap, or `none`.
fn read_config_map(settings: &Settings<'_>, config: &Config) -> Option<String> {
    match settings.text(name::TRUST_BUNDLE_CONFIG_MAP).as_deref() {
        None => config.trust_bundle_config_map.clone(),
        Some("none") => None,
        Some(_) if !config.needs_api_server() => {
            settings.reject(
                name::TRUST_BUNDLE_CONFIG_MAP,
                "names a ConfigMap, and neither the store nor the tokens are those of a cluster",
            );
            None
        }
        Some(name) => Some(name.to_owned()),
    }
}

/// `istio-system/ztunnel,…`
fn read_node_proxies(
    settings: &Settings<'_>,
    authentication: &Authentication,
) -> Vec<(String, String)> {
    let parse = |text: &str| {
        let name = |name: &str| match name.trim().split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok((namespace.to_owned(), name.to_owned()))
            }
            _ => Err(format!(
                "{name:?} is not of the form NAMESPACE/SERVICEACCOUNT"
            )),
        };
        text.split(',').map(name).collect::<Result<Vec<_>, _>>()
    };
    let proxies = settings
        .parsed(name::NODE_PROXIES, parse)
        .unwrap_or_default();
    if !proxies.is_empty() && !authentication.kubernetes {
        settings.reject(
            name::NODE_PROXIES,
            "asks for a cluster's pods, and the tokens are not those of a cluster",
        );
    }
    proxies
}

fn check_lifetimes(settings: &Settings<'_>, lifetimes: &Lifetimes) {
    for (name, lifetime, limit, of) in [
        (
            name::DEFAULT_LIFETIME,
            lifetimes.default,
            lifetimes.max,
            name::MAX_LIFETIME,
        ),
        (
            name::MAX_LIFETIME,
            lifetimes.max,
            lifetimes.intermediate,
            name::INTERMEDIATE_LIFETIME,
        ),
        (
            name::INTERMEDIATE_LIFETIME,
            lifetimes.intermediate,
            lifetimes.root,
            name::ROOT_LIFETIME,
        ),
    ] {
        if lifetime > limit {
            settings.reject(name, &format!("must not be longer than {of}"));
        }
        if lifetime < MIN_LIFETIME {
            settings.reject(name, "must be one minute at least");
        }
    }
    // Certificates write years in four digits (RFC 5280, 4.1.2.5).
    if lifetimes.root > 24 * 365 * 100 * HOUR {
        settings.reject(name::ROOT_LIFETIME, "must be a hundred years at most");
    }
}

/// OpenID Connect Discovery 1.0, 4.1: an https URL with neither query nor
/// fragment; what is fetched is a path below it.
fn read_issuer(text: &str) -> Result<String, &'static str> {
    let is_url = text.strip_prefix("https://").is_some_and(|rest| {
        let host = rest.split('/').next().unwrap_or_default();
        !host.is_empty() && !rest.contains(['?', '#', '@', ' ', '\\'])
    });
    if is_url && !text.ends_with('/') {
        Ok(text.to_owned())
    } else {
        Err(
            "write https://HOST or https://HOST/PATH, with no slash at the end, no query and no fragment",
        )
    }
}

/// `a.svc,127.0.0.1`
fn read_names(text: &str) -> Result<Vec<ServerName>, String> {
    text.split(',')
        .map(|name| ServerName::parse(name.trim()).map_err(|error| error.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read(variables: &[(&str, &str)]) -> Result<Config, SettingsError> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Config::from_env(&|name| variables.get(name).map(|text| (*text).to_owned()))
    }

    #[test]
    fn in_a_cluster_nothing_need_be_said() {
        let config = read(&[]).unwrap();
        assert_eq!(
            config.store.to_string(),
            "secret:bulkhead-system/bulkhead-ca"
        );
        assert_eq!(config.authentication, Authentication::kubernetes());
        assert_eq!(config.listen.port(), 15012);
        assert_eq!(config.tokens.audience, "bulkhead-ca");
        assert!(!config.tokens.allow_without_pod);
        assert_eq!(config.lifetimes.max, DAY);
        assert_eq!(
            config.trust_bundle_config_map.as_deref(),
            Some(bulkhead_inject::TRUST_BUNDLE_CONFIG_MAP),
            "where pods look for it"
        );
        let none = read(&[(name::TRUST_BUNDLE_CONFIG_MAP, "none")]).unwrap();
        assert_eq!(none.trust_bundle_config_map, None);
    }

    #[test]
    fn the_admin_port_is_for_this_host_alone() {
        assert_eq!(read(&[]).unwrap().admin_listen, None);
        let read = |address| read(&[(name::ADMIN_LISTEN, address)]);
        let config = read("127.0.0.1:15000").unwrap();
        assert_eq!(config.admin_listen.unwrap().port(), 15000);
        let error = read("0.0.0.0:15000").unwrap_err().to_string();
        assert!(error.contains("loopback"), "{error}");
    }

    #[test]
    fn outside_a_cluster_a_directory_and_a_key_file_are_enough() {
        let config = read(&[
            (name::STORE, "directory:/var/lib/bulkhead-ca"),
            (name::AUTHENTICATION, "jwks:/etc/jwks.json"),
            (name::TOKEN_ISSUER, "https://issuer"),
            (name::SERVER_NAMES, "ca.example.org, 192.0.2.1"),
        ])
        .unwrap();
        assert_eq!(config.store.to_string(), "directory:/var/lib/bulkhead-ca");
        assert_eq!(
            config.authentication,
            Authentication::jwks_file("/etc/jwks.json", "https://issuer")
        );
        assert_eq!(config.server_names.len(), 2);
        assert_eq!(config.trust_bundle_config_map, None);
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let SettingsError(errors) = read(&[
            (name::STORE, "s3:bucket"),
            (name::AUTHENTICATION, "none"),
            (name::SERVER_NAMES, "a b"),
            (name::MAX_LIFETIME, "30s"),
            (name::ROOT_LIFETIME, "1h"),
        ])
        .unwrap_err();
        // The default lifetime exceeds the maximum, and the intermediate's the
        // root's, besides what is wrong by itself.
        assert_eq!(errors.len(), 6, "{errors:#?}");
    }

    #[test]
    fn the_issuer_of_tokens_is_an_https_url_that_a_path_can_be_put_behind() {
        for good in [
            "https://tokens.example.org",
            "https://example.org:8443/mesh",
        ] {
            let read = read(&[(name::JWT_ISSUER, good)]).unwrap();
            assert_eq!(read.jwt_issuer.as_deref(), Some(good));
        }
        for bad in [
            "http://tokens.example.org",
            "tokens.example.org",
            "https://",
            "https:///path",
            "https://example.org/",
            "https://example.org?a=b",
            "https://example.org#a",
            "https://a@example.org",
        ] {
            assert!(read(&[(name::JWT_ISSUER, bad)]).is_err(), "{bad}");
        }
        assert_eq!(read(&[]).unwrap().jwt_issuer, None);
    }

    #[test]
    fn node_proxies_are_named_and_only_in_a_cluster() {
        let config = read(&[(name::NODE_PROXIES, "istio-system/ztunnel, a/b")]).unwrap();
        let expected = [("istio-system", "ztunnel"), ("a", "b")];
        let expected = expected.map(|(namespace, name)| (namespace.into(), name.into()));
        assert_eq!(config.node_proxies, expected);
        assert!(read(&[]).unwrap().node_proxies.is_empty());
        for text in ["ztunnel", "/ztunnel", "a/", "a/b,"] {
            assert!(read(&[(name::NODE_PROXIES, text)]).is_err(), "{text:?}");
        }
        let outside = [
            (name::STORE, "directory:/ca"),
            (name::AUTHENTICATION, "jwks:/etc/jwks.json"),
            (name::TOKEN_ISSUER, "https://issuer"),
            (name::NODE_PROXIES, "a/b"),
        ];
        assert!(read(&outside).is_err());
        assert!(read(&outside[..3]).is_ok());
    }
}
