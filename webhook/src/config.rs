//! The settings of the webhook, read once from `BULKHEAD_WEBHOOK_*`.
//!
//! | variable | what | default |
//! |---|---|---|
//! | `PROXY_IMAGE` | image of the sidecar and its init container | none, must be set |
//! | `TRUST_DOMAIN` | trust domain of the sidecars' identities | `cluster.local` |
//! | `CA_ADDRESS` | `host:port` of the CA, as sidecars dial it | `bulkhead-ca.<namespace>.svc:15012` |
//! | `CONTROL_ADDRESS` | `host:port` of control, as sidecars dial it, or `none` | `bulkhead-control.<namespace>.svc:15012` |
//! | `INJECT_BY_DEFAULT` | inject pods about which nobody says anything | `false` |
//! | `IMAGE_PULL_SECRETS` | Secrets for the sidecar's image, by commas | none |
//! | `DEFAULT_<ANNOTATION>` | the installation's value of an annotation, such as `DEFAULT_MTLS_MODE` for `bulkhead.io/mtls-mode` | the table's |
//! | `NAMESPACE` | Bulkhead's own namespace | `bulkhead-system` |
//! | `SERVICE` | the Service that leads here | `bulkhead-webhook` |
//! | `URL` | `https://host:port` where the API server finds us instead | none |
//! | `INSTANCE` | this replica's name in Events | `bulkhead-webhook` |
//! | `NAMESPACES` | a file that `kubectl get namespaces -o json` wrote, to run on without an API server | none |
//! | `REGISTER` | write the MutatingWebhookConfiguration | `true` |
//! | `CONFIGURATION` | its name | `bulkhead-injector` |
//! | `OWNER` | the ClusterRole that owns what the webhook makes | none |
//! | `SELF_TEST` | test the way from the API server to here before being ready, by the Service `<SERVICE>-self-test` | `true`, where there is a Service and the certificate is self-made |
//! | `SECRET` | the Secret of the serving certificate | `bulkhead-webhook-tls` |
//! | `TLS_CERT`, `TLS_KEY`, `TLS_CA` | files to serve instead | none |
//! | `CERTIFICATE_LIFETIME`, `AUTHORITY_LIFETIME` | of what we make ourselves | `720h`, `8760h` |
//! | `ROLLOUT_GRACE` | how long a CA is registered before it is used | `60s` |
//! | `ADDRESS`, `MONITORING_ADDRESS` | where to listen | `[::]:15017`, `[::]:15014` |
//! | `LAME_DUCK` | how long to serve on after SIGTERM | `5s` |
//! | `DRAIN_DURATION` | how long reviews in hand may take after that | `10s` |
//! | `LOG_LEVEL`, `LOG_FORMAT` | | `info`, `json` |

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_core::annotation::{PREFIX, TABLE};
use bulkhead_core::identity::TrustDomain;
use bulkhead_core::pod_settings::PodSettings;
use bulkhead_core::resources::Level;
use bulkhead_core::settings::{Settings, SettingsError};
use bulkhead_core::sidecar::LogFormat;
use bulkhead_core::{duration, ports};
use bulkhead_inject::{DEFAULT_SYSTEM_NAMESPACE, Defaults};
use bulkhead_pki::serving::{ServerName, ServingError};

use crate::registration::{self, Target};
use crate::serving_certificate::{Lifetimes, TlsFiles};

const SHORTEST_LIFETIME: Duration = Duration::from_secs(2);

/// What a process of the webhook is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub address: SocketAddr,
    pub monitoring_address: SocketAddr,
    /// What pods get where nobody says anything; also names Bulkhead's own
    /// namespace.
    pub defaults: Defaults,
    /// Where the API server finds us, and by which name it verifies us.
    pub target: Target,
    /// This replica's name, for Events.
    pub instance: String,
    /// The namespaces, where no API server is to be asked for them.
    pub namespaces: Option<PathBuf>,
    /// Whether to write the configuration, where there is an API server.
    pub register: bool,
    pub configuration: String,
    /// The ClusterRole that owns what the webhook makes, so that it goes when
    /// Bulkhead is uninstalled.
    pub owner: Option<String>,
    /// Whether to test the way from the API server to here.
    pub self_test: bool,
    pub certificate: CertificateSource,
    pub lifetimes: Lifetimes,
    /// How long to serve on after a shutdown begins: until every API server has
    /// heard that this replica is no endpoint of the Service any more.
    pub lame_duck: Duration,
    /// How long reviews in hand may take after that.
    pub drain: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
}

/// Where the serving certificate comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CertificateSource {
    /// Made here and kept in a Secret, or in memory where there is no API
    /// server.
    SelfMade { secret: String },
    /// Made by somebody else.
    Files(TlsFiles),
}

impl Config {
    /// Reads the process's environment.
    pub fn from_environment() -> Result<Self, SettingsError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is where the webhook reads its environment"
        )]
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    /// Reads variables from anywhere.
    ///
    /// # Errors
    /// Everything that is wrong with them, a line for each.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let settings = Settings::new(lookup);
        let lasting = |name: &str, default: Duration| {
            settings.parsed(name, duration::parse).unwrap_or(default)
        };
        let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let defaults = defaults(&settings);
        let service = settings
            .text("BULKHEAD_WEBHOOK_SERVICE")
            .unwrap_or_else(|| "bulkhead-webhook".to_owned());
        let target = match settings.parsed("BULKHEAD_WEBHOOK_URL", parse_url) {
            Some(url) => Target::Url(url),
            None => Target::Service {
                namespace: defaults.system_namespace.clone(),
                name: service,
            },
        };
        let usual = Lifetimes::default();
        let certificate = certificate_source(&settings);
        let is_all_ours = matches!(target, Target::Service { .. })
            && matches!(certificate, CertificateSource::SelfMade { .. });
        let config = Self {
            address: settings.or(
                "BULKHEAD_WEBHOOK_ADDRESS",
                SocketAddr::new(everywhere, ports::WEBHOOK),
            ),
            monitoring_address: settings.or(
                "BULKHEAD_WEBHOOK_MONITORING_ADDRESS",
                SocketAddr::new(everywhere, ports::MONITORING),
            ),
            defaults,
            target,
            instance: settings
                .text("BULKHEAD_WEBHOOK_INSTANCE")
                .unwrap_or_else(|| "bulkhead-webhook".to_owned()),
            namespaces: settings
                .text("BULKHEAD_WEBHOOK_NAMESPACES")
                .map(PathBuf::from),
            register: settings.or("BULKHEAD_WEBHOOK_REGISTER", true),
            configuration: configuration(&settings),
            owner: settings.text("BULKHEAD_WEBHOOK_OWNER"),
            self_test: settings.or("BULKHEAD_WEBHOOK_SELF_TEST", is_all_ours),
            certificate,
            lifetimes: Lifetimes {
                certificate: lasting("BULKHEAD_WEBHOOK_CERTIFICATE_LIFETIME", usual.certificate),
                authority: lasting("BULKHEAD_WEBHOOK_AUTHORITY_LIFETIME", usual.authority),
                grace: lasting("BULKHEAD_WEBHOOK_ROLLOUT_GRACE", usual.grace),
            },
            lame_duck: lasting("BULKHEAD_WEBHOOK_LAME_DUCK", Duration::from_secs(5)),
            drain: lasting("BULKHEAD_WEBHOOK_DRAIN_DURATION", Duration::from_secs(10)),
            log_level: settings
                .text("BULKHEAD_WEBHOOK_LOG_LEVEL")
                .unwrap_or_else(|| "info".to_owned()),
            log_format: settings.or("BULKHEAD_WEBHOOK_LOG_FORMAT", LogFormat::Json),
        };
        if config.lifetimes.certificate > config.lifetimes.authority {
            settings.reject(
                "BULKHEAD_WEBHOOK_CERTIFICATE_LIFETIME",
                "is longer than the CA's: a certificate does not outlive its CA",
            );
        }
        if config.lifetimes.certificate < SHORTEST_LIFETIME {
            settings.reject(
                "BULKHEAD_WEBHOOK_CERTIFICATE_LIFETIME",
                "is shorter than 2s: certificates count whole seconds",
            );
        }
        settings.finish(config)
    }

    /// The names by which the API server verifies us.
    pub fn server_names(&self) -> Result<Vec<ServerName>, ServingError> {
        let mut targets = vec![self.target.clone()];
        if self.self_test {
            targets.push(self.target.of_self_test());
        }
        let mut names = targets
            .iter()
            .map(|target| match target {
                Target::Service { namespace, name } => format!("{name}.{namespace}.svc"),
                Target::Url(url) => url_host(url).to_owned(),
            })
            .map(|host| ServerName::parse(&host))
            .collect::<Result<Vec<_>, _>>()?;
        names.dedup();
        Ok(names)
    }
}

fn defaults(settings: &Settings<'_>) -> Defaults {
    let system_namespace = settings
        .text("BULKHEAD_WEBHOOK_NAMESPACE")
        .unwrap_or_else(|| DEFAULT_SYSTEM_NAMESPACE.to_owned());
    let cluster_local = TrustDomain::new("cluster.local").expect("a literal, and valid");
    let trust_domain = settings.or("BULKHEAD_WEBHOOK_TRUST_DOMAIN", cluster_local);
    let image = settings.required("BULKHEAD_WEBHOOK_PROXY_IMAGE");
    let pod = PodSettings::new(trust_domain, image);
    let mut defaults = match Defaults::installed_in(&system_namespace, pod.clone()) {
        Ok(defaults) => defaults,
        Err(error) => {
            settings.reject("BULKHEAD_WEBHOOK_NAMESPACE", &error.to_string());
            Defaults::new(pod)
        }
    };
    let pod = &mut defaults.settings;
    let sidecar = &mut pod.sidecar;
    for (variable, address) in [
        ("BULKHEAD_WEBHOOK_CA_ADDRESS", &mut sidecar.ca_address),
        (
            "BULKHEAD_WEBHOOK_CONTROL_ADDRESS",
            &mut sidecar.control_address,
        ),
    ] {
        if let Some(text) = settings.text(variable) {
            *address = text;
        }
    }
    for row in TABLE {
        let variable = default_variable(row.name);
        settings.parsed(&variable, |value| row.set(pod, value, Level::Installation));
    }
    if let Err(error) = pod.resources.clone().reconcile() {
        settings.reject("BULKHEAD_WEBHOOK_DEFAULT_*", &error.to_string());
    }
    Defaults {
        image_pull_secrets: settings
            .text("BULKHEAD_WEBHOOK_IMAGE_PULL_SECRETS")
            .map(|names| {
                names
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .filter(|name| !name.is_empty())
                    .collect()
            })
            .unwrap_or_default(),
        inject_by_default: settings.or("BULKHEAD_WEBHOOK_INJECT_BY_DEFAULT", false),
        ..defaults
    }
}

/// The name of the MutatingWebhookConfiguration in the process's environment:
/// all that taking it away depends on.
pub fn configuration_from_environment() -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the webhook reads its environment"
    )]
    configuration(&Settings::new(&|name| std::env::var(name).ok()))
}

fn configuration(settings: &Settings<'_>) -> String {
    settings
        .text("BULKHEAD_WEBHOOK_CONFIGURATION")
        .unwrap_or_else(|| registration::DEFAULT_NAME.to_owned())
}

/// The variable that holds the installation's value of an annotation.
pub fn default_variable(annotation: &str) -> String {
    let name = annotation.trim_start_matches(PREFIX);
    format!(
        "BULKHEAD_WEBHOOK_DEFAULT_{}",
        name.replace(['-', '.', '/'], "_").to_ascii_uppercase()
    )
}

fn certificate_source(settings: &Settings<'_>) -> CertificateSource {
    let path = |name| settings.text(name).map(Into::into);
    let certificate = path("BULKHEAD_WEBHOOK_TLS_CERT");
    let key = path("BULKHEAD_WEBHOOK_TLS_KEY");
    let authorities = path("BULKHEAD_WEBHOOK_TLS_CA");
    match (certificate, key, authorities) {
        (Some(certificate), Some(key), Some(authorities)) => CertificateSource::Files(TlsFiles {
            certificate,
            key,
            authorities,
        }),
        (None, None, None) => CertificateSource::SelfMade {
            secret: settings
                .text("BULKHEAD_WEBHOOK_SECRET")
                .unwrap_or_else(|| "bulkhead-webhook-tls".to_owned()),
        },
        _ => {
            settings.reject(
                "BULKHEAD_WEBHOOK_TLS_CERT, BULKHEAD_WEBHOOK_TLS_KEY and BULKHEAD_WEBHOOK_TLS_CA",
                "must be set together, or none of them",
            );
            CertificateSource::SelfMade {
                secret: String::new(),
            }
        }
    }
}

const SCHEME: &str = "https://";

fn parse_url(text: &str) -> Result<String, &'static str> {
    let problem = "write https://host:port, without a path";
    let authority = text
        .strip_prefix(SCHEME)
        .map(|rest| rest.trim_end_matches('/'))
        .ok_or(problem)?;
    if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
        return Err(problem);
    }
    ServerName::parse(url_host(text)).map_err(|_| problem)?;
    Ok(format!("{SCHEME}{authority}"))
}

/// The host of a URL: a name, or an address without its brackets.
fn url_host(url: &str) -> &str {
    let authority = url.trim_start_matches(SCHEME).trim_end_matches('/');
    match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or(authority),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read(variables: &[(&str, &str)]) -> Result<Config, SettingsError> {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Config::from_lookup(&|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    const IMAGE: (&str, &str) = ("BULKHEAD_WEBHOOK_PROXY_IMAGE", "bulkhead-proxy:1");

    #[test]
    fn an_image_is_all_that_must_be_said() {
        let config = read(&[IMAGE]).unwrap();
        assert_eq!(
            config.server_names().unwrap()[0].to_string(),
            "bulkhead-webhook.bulkhead-system.svc"
        );
        assert_eq!(config.address.port(), 15017);
        let ca = &config.defaults.settings.sidecar.ca_address;
        assert_eq!(ca, "bulkhead-ca.bulkhead-system.svc:15012");
        let elsewhere = read(&[IMAGE, ("BULKHEAD_WEBHOOK_NAMESPACE", "mesh")]).unwrap();
        let sidecar = &elsewhere.defaults.settings.sidecar;
        assert_eq!(sidecar.ca_address, "bulkhead-ca.mesh.svc:15012");
        assert_eq!(sidecar.control_address, "bulkhead-control.mesh.svc:15012");
        assert_eq!(
            sidecar.control_identity.as_str(),
            "spiffe://cluster.local/ns/mesh/sa/bulkhead-control"
        );
        assert_eq!(read(&[]).unwrap_err().0.len(), 1);
    }

    #[test]
    fn every_annotation_has_a_variable_for_the_installations_value() {
        for row in TABLE {
            let variable = default_variable(row.name);
            let config = read(&[IMAGE, (&variable, row.example)]);
            assert!(config.is_ok(), "{variable}={}: {config:?}", row.example);
            let error = read(&[IMAGE, (&variable, "\u{7f}")]).unwrap_err();
            assert!(error.0[0].starts_with(&variable), "{error}");
        }
        let config = read(&[IMAGE, ("BULKHEAD_WEBHOOK_DEFAULT_MTLS_MODE", "STRICT")]).unwrap();
        let mode = config.defaults.settings.sidecar.mode;
        assert_eq!(mode, bulkhead_core::policy::MtlsMode::Strict);
    }

    #[test]
    fn a_url_names_the_host_that_the_certificate_is_for() {
        for (url, host) in [
            ("https://127.0.0.1:15017", "127.0.0.1"),
            ("https://[::1]:15017/", "::1"),
            ("https://webhook.example", "webhook.example"),
        ] {
            let config = read(&[IMAGE, ("BULKHEAD_WEBHOOK_URL", url)]).unwrap();
            assert_eq!(config.server_names().unwrap()[0].to_string(), host);
        }
        for bad in [
            "http://a",
            "https://",
            "https://a/b",
            "https://a b",
            "a:1",
            "https://u@a",
        ] {
            assert!(
                read(&[IMAGE, ("BULKHEAD_WEBHOOK_URL", bad)]).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn files_are_named_all_three_or_not_at_all() {
        let error = read(&[IMAGE, ("BULKHEAD_WEBHOOK_TLS_CERT", "/tls/tls.crt")]).unwrap_err();
        assert!(error.to_string().contains("must be set together"));
        let config = read(&[
            IMAGE,
            ("BULKHEAD_WEBHOOK_TLS_CERT", "/tls/tls.crt"),
            ("BULKHEAD_WEBHOOK_TLS_KEY", "/tls/tls.key"),
            ("BULKHEAD_WEBHOOK_TLS_CA", "/tls/ca.crt"),
        ])
        .unwrap();
        assert!(matches!(config.certificate, CertificateSource::Files(_)));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let error = read(&[
            ("BULKHEAD_WEBHOOK_ADDRESS", "here"),
            ("BULKHEAD_WEBHOOK_REGISTER", "perhaps"),
            ("BULKHEAD_WEBHOOK_CERTIFICATE_LIFETIME", "9000h"),
            ("BULKHEAD_WEBHOOK_DEFAULT_MTLS_MODE", "SOMETIMES"),
        ])
        .unwrap_err();
        assert_eq!(error.0.len(), 5, "{error}");
    }
}
