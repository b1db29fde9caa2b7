//! What the webhook tells the proxy: one struct, written to environment
//! variables on one side and read from them on the other.
//!
//! The same struct sets up a proxy outside Kubernetes; only the values differ.
//! Values equal to their default are not written, so that a pod spec shows what
//! is particular to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::identity::{IdentityError, SpiffeId, TrustDomain};
use crate::policy::{InboundPolicy, MtlsMode};
use crate::port_set::PortSet;
use crate::protocol::{OPAQUE_PORTS, Protocol};
use crate::quantity::Quantity;
use crate::settings::{Settings, SettingsError};
use crate::{duration, ports};

/// Where a pod finds the token that proves its ServiceAccount to the CA.
pub const TOKEN_PATH: &str = "/var/run/secrets/bulkhead.io/token/token";
/// Where a pod finds the roots that the CA's own certificate chains to.
pub const CA_ROOTS_PATH: &str = "/var/run/secrets/bulkhead.io/roots/ca.crt";
/// Where a pod finds what switches its proxy out of the path, when there is
/// something that does.
pub const BYPASS_PATH: &str = "/var/run/secrets/bulkhead.io/roots/bypass.json";
/// Where a pod's containers find the SPIFFE Workload API, where it is asked for.
pub const WORKLOAD_API_PATH: &str = "/run/bulkhead/workload-api/api.sock";
/// The variable by which applications find it (SPIFFE Workload Endpoint, 4).
pub const WORKLOAD_API_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
/// The longest path of a Unix socket, in bytes; the kernel has room for 108, and
/// one is being made beside it under a name of its own.
const MAX_SOCKET_PATH: usize = 90;
/// What an address is set to that there is none of.
const NONE: &str = "none";
/// The audience that the token is bound to.
pub const TOKEN_AUDIENCE: &str = "bulkhead-ca";

/// Everything that a proxy is told when it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct SidecarConfig {
    pub trust_domain: TrustDomain,
    pub namespace: String,
    pub service_account: String,
    /// The pod's name, by which control knows the proxy; empty outside
    /// Kubernetes.
    pub pod_name: String,
    /// The pod's own addresses. What goes to one of them goes to the
    /// application behind this very proxy.
    pub pod_ips: Vec<IpAddr>,
    /// The name of the workload that owns the pod, for logs and metrics.
    pub workload: String,

    /// `host:port` of the CA.
    pub ca_address: String,
    /// PEM file with the roots that the CA's own certificate chains to. Read
    /// anew for each connection to the CA.
    pub ca_roots_path: String,
    /// File with the bearer token. Read anew for each call.
    pub token_path: String,
    /// The lifetime to ask for; the CA may answer with less.
    pub certificate_lifetime: Duration,

    /// `host:port` of control; `none` where there is none, and the settings
    /// here are all that the proxy knows. See [`Self::control`].
    pub control_address: String,
    /// The identity that control must prove.
    pub control_identity: SpiffeId,
    /// A file that can switch the proxy out of the path; looked at each second.
    pub bypass_path: String,
    /// The Unix socket on which the application finds the SPIFFE Workload API;
    /// where there is none, it is not served.
    pub workload_api_path: Option<String>,

    /// The mTLS mode of every inbound port not listed in `port_modes`, until
    /// control says otherwise.
    pub mode: MtlsMode,
    pub port_modes: BTreeMap<u16, MtlsMode>,
    /// Ports, inbound and outbound, whose bytes nobody looks at.
    pub opaque_ports: PortSet,
    /// What each of the application's ports speaks, where the pod spec says.
    pub port_protocols: BTreeMap<u16, Protocol>,
    pub inbound: Vec<InboundListener>,
    pub outbound: Vec<OutboundListener>,
    /// Ports that take all of the application's connections, wherever they go.
    pub redirected_outbound: Vec<RedirectedListener>,

    /// `/metrics`, `/ready` and the application's probes.
    pub status_address: SocketAddr,
    /// The admin endpoint; always on loopback.
    pub admin_address: SocketAddr,
    /// The application's own probes, by the path under which kubelet asks the
    /// proxy for them.
    pub probes: BTreeMap<String, AppProbe>,

    /// Worker threads of the data path.
    pub concurrency: u16,
    /// A `tracing` filter, such as `info` or `warn,bulkhead_proxy=debug`.
    pub log_level: String,
    pub log_format: LogFormat,
    pub access_log: bool,
    /// How long open connections may take to finish after SIGTERM.
    pub drain_duration: Duration,
    /// For how long nobody must have come before a port is closed after SIGTERM.
    pub drain_quiet: Duration,
    /// How old a client's connection may become before it is asked to make another.
    pub max_connection_age: Option<Duration>,
    /// How many requests of 10,000 start a trace.
    pub trace_sampling: u16,
    /// The memory that the proxy may use, in bytes, where that is less than what its
    /// control group may.
    pub memory_limit: Option<u64>,
}

/// A port that takes the workload's inbound connections.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InboundListener {
    pub listen: SocketAddr,
    /// The application's address. Where there is none, connections arrive by
    /// redirection, and their original destination is where they go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<SocketAddr>,
}

/// A local port whose connections go to one upstream over mesh mTLS.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutboundListener {
    /// What the upstream is called, in logs and metrics.
    pub name: String,
    /// Where the application dials; on loopback.
    pub listen: SocketAddr,
    /// Where the upstream's proxies listen, one an endpoint.
    pub addresses: Vec<SocketAddr>,
    /// The identity that the upstream must prove.
    pub identity: SpiffeId,
    #[serde(default)]
    pub protocol: Protocol,
}

/// A port that takes connections to any destination; what a destination is,
/// control says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedirectedListener {
    pub listen: SocketAddr,
    /// The one destination that this port stands for. Where there is none,
    /// connections arrive by redirection, and their original destination is
    /// where they go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
}

impl RedirectedListener {
    /// Where redirection sends a pod's outbound connections.
    pub fn in_pod() -> Vec<Self> {
        let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let listeners = addresses.map(|ip| Self {
            listen: SocketAddr::new(ip, ports::PROXY_OUTBOUND),
            destination: None,
        });
        listeners.into()
    }
}

/// A probe of the application, as the proxy performs it on loopback.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppProbe {
    #[serde(flatten)]
    pub handler: ProbeHandler,
    /// The port by number, also where the pod spec names it.
    pub port: u16,
    /// The port's name where the pod spec uses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    pub timeout_seconds: u32,
    /// The handler as the pod spec had it, where the fields above do not say
    /// all of it (an empty list, a field of a newer Kubernetes). The proxy does
    /// not read it; it is how injection can be undone exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<serde_json::Value>,
}

/// The kinds of probe that would meet the proxy on their way. An `exec` probe
/// does not, and stays as it is.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeHandler {
    #[serde(rename_all = "camelCase")]
    HttpGet {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// `HTTP` or `HTTPS`; the certificate is not verified, as kubelet does
        /// not verify it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scheme: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        http_headers: Vec<ProbeHeader>,
    },
    #[serde(rename_all = "camelCase")]
    TcpSocket {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    #[serde(rename_all = "camelCase")]
    Grpc {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
}

/// A header that an HTTP probe sends.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ProbeHeader {
    pub name: String,
    pub value: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    #[default]
    Json,
    Text,
}

impl LogFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "text" | "plain" => Ok(Self::Text),
            _ => Err("write json or text"),
        }
    }
}

/// The variables, by name. Those that start with `POD_` or name the pod are
/// filled in by the kubelet (the downward API), see [`DOWNWARD_API`].
mod name {
    pub(super) const TRUST_DOMAIN: &str = "BULKHEAD_TRUST_DOMAIN";
    pub(super) const NAMESPACE: &str = "BULKHEAD_NAMESPACE";
    pub(super) const SERVICE_ACCOUNT: &str = "BULKHEAD_SERVICE_ACCOUNT";
    pub(super) const POD_NAME: &str = "BULKHEAD_POD_NAME";
    pub(super) const POD_IPS: &str = "BULKHEAD_POD_IPS";
    pub(super) const WORKLOAD: &str = "BULKHEAD_WORKLOAD";
    pub(super) const CA_ADDRESS: &str = "BULKHEAD_CA_ADDRESS";
    pub(super) const CA_ROOTS_PATH: &str = "BULKHEAD_CA_ROOTS_PATH";
    pub(super) const TOKEN_PATH: &str = "BULKHEAD_TOKEN_PATH";
    pub(super) const CERTIFICATE_LIFETIME: &str = "BULKHEAD_CERTIFICATE_LIFETIME";
    pub(super) const CONTROL_ADDRESS: &str = "BULKHEAD_CONTROL_ADDRESS";
    pub(super) const CONTROL_IDENTITY: &str = "BULKHEAD_CONTROL_IDENTITY";
    pub(super) const BYPASS_PATH: &str = "BULKHEAD_BYPASS_PATH";
    pub(super) const WORKLOAD_API_PATH: &str = "BULKHEAD_WORKLOAD_API_PATH";
    pub(super) const MTLS_MODE: &str = "BULKHEAD_MTLS_MODE";
    pub(super) const PORT_MTLS_MODES: &str = "BULKHEAD_PORT_MTLS_MODES";
    pub(super) const OPAQUE_PORTS: &str = "BULKHEAD_OPAQUE_PORTS";
    pub(super) const PORT_PROTOCOLS: &str = "BULKHEAD_PORT_PROTOCOLS";
    pub(super) const INBOUND: &str = "BULKHEAD_INBOUND";
    pub(super) const OUTBOUND: &str = "BULKHEAD_OUTBOUND";
    pub(super) const REDIRECTED_OUTBOUND: &str = "BULKHEAD_REDIRECTED_OUTBOUND";
    pub(super) const STATUS_ADDRESS: &str = "BULKHEAD_STATUS_ADDRESS";
    pub(super) const ADMIN_ADDRESS: &str = "BULKHEAD_ADMIN_ADDRESS";
    pub(super) const APP_PROBES: &str = "BULKHEAD_APP_PROBES";
    pub(super) const CONCURRENCY: &str = "BULKHEAD_CONCURRENCY";
    pub(super) const LOG_LEVEL: &str = "BULKHEAD_LOG_LEVEL";
    pub(super) const LOG_FORMAT: &str = "BULKHEAD_LOG_FORMAT";
    pub(super) const ACCESS_LOG: &str = "BULKHEAD_ACCESS_LOG";
    pub(super) const DRAIN_DURATION: &str = "BULKHEAD_DRAIN_DURATION";
    pub(super) const DRAIN_QUIET: &str = "BULKHEAD_DRAIN_QUIET";
    pub(super) const MAX_CONNECTION_AGE: &str = "BULKHEAD_MAX_CONNECTION_AGE";
    pub(super) const TRACE_SAMPLING: &str = "BULKHEAD_TRACE_SAMPLING";
    pub(super) const MEMORY_LIMIT: &str = "BULKHEAD_MEMORY_LIMIT";
}

/// The variable that holds the application's probes, for whoever has to give
/// them back to the pod.
pub const APP_PROBES_VARIABLE: &str = name::APP_PROBES;

/// Variables that the kubelet fills in, with the field of the pod that each
/// comes from: the webhook does not know them, or need not.
pub const DOWNWARD_API: &[(&str, &str)] = &[
    (name::NAMESPACE, "metadata.namespace"),
    (name::SERVICE_ACCOUNT, "spec.serviceAccountName"),
    (name::POD_NAME, "metadata.name"),
    (name::POD_IPS, "status.podIPs"),
];

impl SidecarConfig {
    /// The settings of a sidecar about which nobody said anything.
    pub fn new(trust_domain: TrustDomain, namespace: String, service_account: String) -> Self {
        let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let control_identity =
            SpiffeId::workload(&trust_domain, "bulkhead-system", "bulkhead-control")
                .expect("both names are literals that the tests use");
        Self {
            trust_domain,
            namespace,
            service_account,
            pod_name: String::new(),
            pod_ips: Vec::new(),
            workload: String::new(),
            ca_address: format!("bulkhead-ca.bulkhead-system.svc:{}", ports::CONTROL_PLANE),
            ca_roots_path: CA_ROOTS_PATH.to_owned(),
            token_path: TOKEN_PATH.to_owned(),
            certificate_lifetime: Duration::from_secs(24 * 60 * 60),
            control_address: format!(
                "bulkhead-control.bulkhead-system.svc:{}",
                ports::CONTROL_PLANE
            ),
            control_identity,
            bypass_path: BYPASS_PATH.to_owned(),
            workload_api_path: None,
            mode: MtlsMode::Permissive,
            port_modes: BTreeMap::new(),
            opaque_ports: OPAQUE_PORTS.iter().copied().collect(),
            port_protocols: BTreeMap::new(),
            inbound: vec![InboundListener {
                listen: SocketAddr::new(everywhere, ports::PROXY_INBOUND),
                forward: None,
            }],
            outbound: Vec::new(),
            redirected_outbound: Vec::new(),
            status_address: SocketAddr::new(everywhere, ports::PROXY_STATUS),
            admin_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ports::PROXY_ADMIN),
            probes: BTreeMap::new(),
            concurrency: 1,
            log_level: "info".to_owned(),
            log_format: LogFormat::Json,
            access_log: false,
            drain_duration: Duration::from_secs(30),
            drain_quiet: Duration::from_secs(1),
            max_connection_age: None,
            trace_sampling: 0,
            memory_limit: None,
        }
    }

    /// The identity that the proxy asks the CA for.
    pub fn spiffe_id(&self) -> Result<SpiffeId, IdentityError> {
        SpiffeId::workload(&self.trust_domain, &self.namespace, &self.service_account)
    }

    /// `host:port` of control, where there is one. Without a name of its own the
    /// proxy could ask for nothing there.
    pub fn control(&self) -> Option<&str> {
        let address = self.control_address.as_str();
        (address != NONE && !self.pod_name.is_empty()).then_some(address)
    }

    /// The inbound policy that these settings amount to.
    pub fn inbound_policy(&self) -> InboundPolicy {
        InboundPolicy {
            name: "the proxy's own settings (annotation bulkhead.io/mtls-mode)".to_owned(),
            mode: self.mode,
            port_modes: self.port_modes.clone(),
        }
    }

    /// What a port speaks, as far as anybody said.
    pub fn protocol(&self, port: u16) -> Protocol {
        match self.port_protocols.get(&port) {
            Some(protocol) => *protocol,
            None if self.opaque_ports.contains(port) => Protocol::Opaque,
            None => Protocol::Auto,
        }
    }

    /// The variables that say all this, those that are particular to the proxy.
    pub fn to_env(&self) -> Vec<(&'static str, String)> {
        let default = Self::new(
            self.trust_domain.clone(),
            self.namespace.clone(),
            self.service_account.clone(),
        );
        let mut env = vec![
            (name::TRUST_DOMAIN, self.trust_domain.to_string()),
            (name::NAMESPACE, self.namespace.clone()),
            (name::SERVICE_ACCOUNT, self.service_account.clone()),
        ];
        macro_rules! each {
            ($($name:ident: $field:ident by $write:expr;)*) => {
                $(if self.$field != default.$field {
                    env.push((name::$name, $write(&self.$field)));
                })*
            };
        }
        each! {
            POD_NAME: pod_name by String::clone;
            POD_IPS: pod_ips by |value: &[IpAddr]| write_list(value);
            WORKLOAD: workload by String::clone;
            CA_ADDRESS: ca_address by String::clone;
            CA_ROOTS_PATH: ca_roots_path by String::clone;
            TOKEN_PATH: token_path by String::clone;
            CERTIFICATE_LIFETIME: certificate_lifetime by |value: &Duration| duration::format(*value);
            CONTROL_ADDRESS: control_address by String::clone;
            CONTROL_IDENTITY: control_identity by SpiffeId::to_string;
            BYPASS_PATH: bypass_path by String::clone;
            WORKLOAD_API_PATH: workload_api_path by |value: &Option<String>| value.clone().unwrap_or_default();
            MTLS_MODE: mode by MtlsMode::to_string;
            PORT_MTLS_MODES: port_modes by write_map;
            OPAQUE_PORTS: opaque_ports by write_ports;
            PORT_PROTOCOLS: port_protocols by write_map;
            INBOUND: inbound by write_json;
            OUTBOUND: outbound by write_json;
            REDIRECTED_OUTBOUND: redirected_outbound by write_json;
            STATUS_ADDRESS: status_address by SocketAddr::to_string;
            ADMIN_ADDRESS: admin_address by SocketAddr::to_string;
            APP_PROBES: probes by write_json;
            CONCURRENCY: concurrency by u16::to_string;
            LOG_LEVEL: log_level by String::clone;
            LOG_FORMAT: log_format by |value: &LogFormat| value.as_str().to_owned();
            ACCESS_LOG: access_log by bool::to_string;
            DRAIN_DURATION: drain_duration by |value: &Duration| duration::format(*value);
            DRAIN_QUIET: drain_quiet by |value: &Duration| duration::format(*value);
            MAX_CONNECTION_AGE: max_connection_age by |value: &Option<Duration>| value.map(duration::format).unwrap_or_default();
            TRACE_SAMPLING: trace_sampling by u16::to_string;
            MEMORY_LIMIT: memory_limit by |value: &Option<u64>| value.map(|it| it.to_string()).unwrap_or_default();
        }
        env
    }

    /// Reads the variables; every error at once.
    pub fn from_env(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let settings = Settings::new(lookup);
        let read_duration = |name| settings.parsed(name, duration::parse);
        let trust_domain = settings
            .optional(name::TRUST_DOMAIN)
            .unwrap_or_else(default_trust_domain);
        let default = Self::new(
            trust_domain,
            settings.required(name::NAMESPACE),
            settings.required(name::SERVICE_ACCOUNT),
        );
        let config = Self {
            pod_name: settings.or(name::POD_NAME, default.pod_name),
            pod_ips: settings
                .parsed(name::POD_IPS, read_list)
                .unwrap_or_default(),
            workload: settings.or(name::WORKLOAD, default.workload),
            ca_address: settings.or(name::CA_ADDRESS, default.ca_address),
            ca_roots_path: settings.or(name::CA_ROOTS_PATH, default.ca_roots_path),
            token_path: settings.or(name::TOKEN_PATH, default.token_path),
            certificate_lifetime: read_duration(name::CERTIFICATE_LIFETIME)
                .unwrap_or(default.certificate_lifetime),
            control_address: settings.or(name::CONTROL_ADDRESS, default.control_address),
            control_identity: settings.or(name::CONTROL_IDENTITY, default.control_identity),
            bypass_path: settings.or(name::BYPASS_PATH, default.bypass_path),
            workload_api_path: settings.parsed(name::WORKLOAD_API_PATH, read_socket_path),
            mode: settings.or(name::MTLS_MODE, default.mode),
            port_modes: settings
                .parsed(name::PORT_MTLS_MODES, read_map)
                .unwrap_or_default(),
            opaque_ports: settings
                .parsed(name::OPAQUE_PORTS, read_ports)
                .unwrap_or(default.opaque_ports),
            port_protocols: settings
                .parsed(name::PORT_PROTOCOLS, read_map)
                .unwrap_or_default(),
            inbound: settings
                .parsed(name::INBOUND, |text| serde_json::from_str(text))
                .unwrap_or(default.inbound),
            outbound: settings
                .parsed(name::OUTBOUND, |text| serde_json::from_str(text))
                .unwrap_or(default.outbound),
            redirected_outbound: settings
                .parsed(name::REDIRECTED_OUTBOUND, |text| serde_json::from_str(text))
                .unwrap_or_default(),
            status_address: settings.or(name::STATUS_ADDRESS, default.status_address),
            admin_address: settings.or(name::ADMIN_ADDRESS, default.admin_address),
            probes: settings
                .parsed(name::APP_PROBES, |text| serde_json::from_str(text))
                .unwrap_or_default(),
            concurrency: settings.or(name::CONCURRENCY, default.concurrency),
            log_level: settings.or(name::LOG_LEVEL, default.log_level),
            log_format: settings.or(name::LOG_FORMAT, default.log_format),
            access_log: settings.or(name::ACCESS_LOG, default.access_log),
            drain_duration: read_duration(name::DRAIN_DURATION).unwrap_or(default.drain_duration),
            drain_quiet: read_duration(name::DRAIN_QUIET).unwrap_or(default.drain_quiet),
            max_connection_age: read_duration(name::MAX_CONNECTION_AGE),
            trace_sampling: settings.or(name::TRACE_SAMPLING, default.trace_sampling),
            memory_limit: settings.parsed(name::MEMORY_LIMIT, read_bytes),
            trust_domain: default.trust_domain,
            namespace: default.namespace,
            service_account: default.service_account,
        };
        if !config.admin_address.ip().is_loopback() {
            settings.reject(
                name::ADMIN_ADDRESS,
                "must be on loopback: whoever reaches it can drain the proxy",
            );
        }
        if config.concurrency == 0 {
            settings.reject(name::CONCURRENCY, "must be at least 1");
        }
        if config.trace_sampling > 10_000 {
            settings.reject(name::TRACE_SAMPLING, "is a number of 10,000 at most");
        }
        settings.finish(config)
    }
}

/// The trust domain where nobody named one.
pub fn default_trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").expect("a literal that the tests parse")
}

/// `none` is how an empty set is written where the default is not empty.
fn write_ports(ports: &PortSet) -> String {
    if ports.is_empty() {
        "none".to_owned()
    } else {
        ports.to_string()
    }
}

fn read_ports(text: &str) -> Result<PortSet, crate::port_set::PortSetError> {
    if text == "none" {
        return Ok(PortSet::default());
    }
    text.parse()
}

/// `64Mi`, as in a pod's resources.
fn read_bytes(text: &str) -> Result<u64, String> {
    let quantity: Quantity = text.parse().map_err(|error| format!("{error}"))?;
    let bytes = quantity.whole().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| format!("{text:?} is not a number of bytes"))
}

fn read_socket_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
        return Err("it is not an absolute path of a file".to_owned());
    }
    if text.len() > MAX_SOCKET_PATH {
        return Err(format!("it is longer than {MAX_SOCKET_PATH} bytes"));
    }
    Ok(text.to_owned())
}

/// `10.0.0.1,2001:db8::1`, as the kubelet writes it.
fn write_list<T: std::fmt::Display>(list: &[T]) -> String {
    let items: Vec<_> = list.iter().map(T::to_string).collect();
    items.join(",")
}

fn read_list<T: FromStr>(text: &str) -> Result<Vec<T>, T::Err> {
    text.split(',').map(str::parse).collect()
}

/// `8080=STRICT,9090=DISABLE`
fn write_map<V: std::fmt::Display>(map: &BTreeMap<u16, V>) -> String {
    let items: Vec<_> = map
        .iter()
        .map(|(port, value)| format!("{port}={value}"))
        .collect();
    items.join(",")
}

/// Reads what [`write_map`] writes, which is also how people write the values
/// of ports in annotations.
pub fn read_map<V>(text: &str) -> Result<BTreeMap<u16, V>, String>
where
    V: std::str::FromStr<Err: std::fmt::Display>,
{
    let mut map = BTreeMap::new();
    for item in text.split(',') {
        let (port, value) = item
            .trim()
            .split_once('=')
            .ok_or_else(|| format!("{item:?} is not of the form PORT=VALUE"))?;
        let port: PortSet = port.parse().map_err(|error| format!("{error}"))?;
        let value: V = value.parse().map_err(|error| format!("{error}"))?;
        match port.ranges() {
            [(first, last)] if first == last => {
                if map.insert(*first, value).is_some() {
                    return Err(format!("port {first} is there twice"));
                }
            }
            _ => return Err(format!("{item:?} does not name one port")),
        }
    }
    Ok(map)
}

fn write_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data with string keys is always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> SidecarConfig {
        SidecarConfig::new(default_trust_domain(), "shop".into(), "cart".into())
    }

    fn read(env: &[(&'static str, String)]) -> Result<SidecarConfig, SettingsError> {
        let env: BTreeMap<_, _> = env.iter().cloned().collect();
        SidecarConfig::from_env(&|name| env.get(name).cloned())
    }

    #[test]
    fn a_plain_sidecar_needs_only_its_name() {
        let env = config().to_env();
        assert_eq!(env.len(), 3);
        assert_eq!(read(&env).unwrap(), config());
    }

    #[test]
    fn every_field_survives_the_way_to_the_proxy() {
        let mut probes = BTreeMap::new();
        probes.insert(
            "/app-health/app/readyz".to_owned(),
            AppProbe {
                handler: ProbeHandler::HttpGet {
                    path: Some("/healthz?full=1".into()),
                    scheme: Some("HTTPS".into()),
                    host: None,
                    http_headers: vec![ProbeHeader {
                        name: "X-Probe".into(),
                        value: "\"1\"".into(),
                    }],
                },
                port: 8080,
                port_name: Some("http".into()),
                timeout_seconds: 3,
                original: Some(serde_json::json!({"httpGet": {"port": "http"}})),
            },
        );
        for (path, handler) in [
            (
                "/app-health/app/livez",
                ProbeHandler::TcpSocket { host: None },
            ),
            (
                "/app-health/app/startupz",
                ProbeHandler::Grpc {
                    service: Some("a".into()),
                },
            ),
        ] {
            probes.insert(
                path.to_owned(),
                AppProbe {
                    handler,
                    port: 9,
                    port_name: None,
                    timeout_seconds: 1,
                    original: None,
                },
            );
        }
        let full = SidecarConfig {
            trust_domain: TrustDomain::new("example.org").unwrap(),
            pod_name: "cart-0".into(),
            pod_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::2".parse().unwrap()],
            workload: "cart".into(),
            ca_address: "[::1]:1".into(),
            ca_roots_path: "/roots".into(),
            token_path: "/token".into(),
            certificate_lifetime: Duration::from_millis(90_500),
            control_address: "control:2".into(),
            control_identity: SpiffeId::parse("spiffe://example.org/ns/c/sa/d").unwrap(),
            bypass_path: "/bypass".into(),
            workload_api_path: Some("/run/api.sock".into()),
            mode: MtlsMode::Strict,
            port_modes: [(80, MtlsMode::Disable), (81, MtlsMode::Permissive)].into(),
            opaque_ports: PortSet::default(),
            port_protocols: [(8080, Protocol::Grpc)].into(),
            inbound: vec![InboundListener {
                listen: "127.0.0.1:9".parse().unwrap(),
                forward: Some("127.0.0.1:10".parse().unwrap()),
            }],
            outbound: vec![OutboundListener {
                name: "db".into(),
                listen: "127.0.0.1:11".parse().unwrap(),
                addresses: vec!["[2001:db8::1]:12".parse().unwrap()],
                identity: SpiffeId::parse("spiffe://example.org/ns/a/sa/b").unwrap(),
                protocol: Protocol::Opaque,
            }],
            redirected_outbound: RedirectedListener::in_pod(),
            status_address: "127.0.0.1:13".parse().unwrap(),
            admin_address: "127.0.0.1:14".parse().unwrap(),
            probes,
            concurrency: 4,
            log_level: "warn,bulkhead_proxy=debug".into(),
            log_format: LogFormat::Text,
            access_log: true,
            drain_duration: Duration::from_secs(5),
            drain_quiet: Duration::from_secs(2),
            max_connection_age: Some(Duration::from_secs(600)),
            trace_sampling: 100,
            memory_limit: Some(64 << 20),
            ..config()
        };
        let env = full.to_env();
        assert_eq!(read(&env).unwrap(), full);
        // Everything differs from its default above, so every variable is there.
        assert_eq!(env.len(), 33);
    }

    #[test]
    fn control_is_asked_by_whoever_has_a_name_unless_there_is_none() {
        let mut config = config();
        assert_eq!(config.control(), None);
        config.pod_name = "cart-0".into();
        let address = "bulkhead-control.bulkhead-system.svc:15012";
        assert_eq!(config.control(), Some(address));
        assert_eq!(
            config.control_identity.as_str(),
            "spiffe://cluster.local/ns/bulkhead-system/sa/bulkhead-control"
        );
        config.control_address = "none".into();
        assert_eq!(config.control(), None);
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let SettingsError(errors) = read(&[
            (name::MTLS_MODE, "on".into()),
            (name::ADMIN_ADDRESS, "0.0.0.0:15000".into()),
            (name::CONCURRENCY, "0".into()),
            (name::INBOUND, "[{}]".into()),
            (name::PORT_MTLS_MODES, "80".into()),
            (name::WORKLOAD_API_PATH, "api.sock".into()),
            (name::MEMORY_LIMIT, "100m".into()),
        ])
        .unwrap_err();
        assert_eq!(errors.len(), 9, "{errors:#?}");
    }

    #[test]
    fn a_port_speaks_what_it_is_said_to_speak_and_else_what_its_number_means() {
        let mut config = config();
        config.port_protocols.insert(6379, Protocol::Http1);
        assert_eq!(config.protocol(6379), Protocol::Http1);
        assert_eq!(config.protocol(3306), Protocol::Opaque);
        assert_eq!(config.protocol(8080), Protocol::Auto);
    }
}
