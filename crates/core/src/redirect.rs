//! What the webhook tells the init container about the pod's traffic: which
//! connections the kernel hands to the proxy, and which it leaves alone.
//!
//! Like [`crate::sidecar::SidecarConfig`] it is one struct, written to
//! environment variables on one side and read from them on the other; values
//! equal to their default are not written.

use std::net::IpAddr;

use crate::cidr::{self, Cidr};
use crate::port_set::PortSet;
use crate::ports;
use crate::settings::{Settings, SettingsError};

/// Names are looked up here, by UDP and, where an answer is long, by TCP. A pod
/// whose proxy is not there yet, or not any more, can still look them up.
pub const DNS: u16 = 53;

/// Everything that the init container is told.
///
/// A connection that an exclusion names is never redirected, whatever else
/// names it. Neither are the proxy's own connections (by `proxy_uid`),
/// connections to [`ports::RESERVED_IN_POD`] of the pod, outbound ones to
/// [`DNS`] unless its port is included by name, nor the application's
/// connections to itself over loopback.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RedirectConfig {
    /// Where inbound connections go.
    pub inbound_port: u16,
    /// Where outbound connections go.
    pub outbound_port: u16,
    /// The user whose packets are left alone, which is what keeps the proxy
    /// from calling itself.
    pub proxy_uid: u32,

    /// Inbound connections to these ports are redirected ...
    pub include_inbound_ports: Selection<PortSet>,
    pub exclude_inbound_ports: PortSet,
    /// ... where they come from these addresses.
    pub include_inbound_cidrs: Selection<Vec<Cidr>>,
    pub exclude_inbound_cidrs: Vec<Cidr>,

    /// Outbound connections to these ports are redirected whatever the
    /// address ...
    pub include_outbound_ports: PortSet,
    pub exclude_outbound_ports: PortSet,
    /// ... and those to these addresses whatever the port.
    pub include_outbound_cidrs: Selection<Vec<Cidr>>,
    pub exclude_outbound_cidrs: Vec<Cidr>,
}

/// Everything, or what is listed; an empty list selects nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Selection<T> {
    All,
    Only(T),
}

impl<T> Selection<T> {
    pub fn includes(&self, contains: impl FnOnce(&T) -> bool) -> bool {
        match self {
            Self::All => true,
            Self::Only(listed) => contains(listed),
        }
    }

    /// Reads `*` or a list.
    pub fn parse<E>(text: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<Self, E> {
        match text.trim() {
            "*" => Ok(Self::All),
            listed => parse(listed).map(Self::Only),
        }
    }
}

/// The variables, by name.
mod name {
    pub(super) const INBOUND_PORT: &str = "BULKHEAD_REDIRECT_INBOUND_PORT";
    pub(super) const OUTBOUND_PORT: &str = "BULKHEAD_REDIRECT_OUTBOUND_PORT";
    pub(super) const PROXY_UID: &str = "BULKHEAD_REDIRECT_PROXY_UID";
    pub(super) const INCLUDE_INBOUND_PORTS: &str = "BULKHEAD_REDIRECT_INCLUDE_INBOUND_PORTS";
    pub(super) const EXCLUDE_INBOUND_PORTS: &str = "BULKHEAD_REDIRECT_EXCLUDE_INBOUND_PORTS";
    pub(super) const INCLUDE_INBOUND_CIDRS: &str = "BULKHEAD_REDIRECT_INCLUDE_INBOUND_CIDRS";
    pub(super) const EXCLUDE_INBOUND_CIDRS: &str = "BULKHEAD_REDIRECT_EXCLUDE_INBOUND_CIDRS";
    pub(super) const INCLUDE_OUTBOUND_PORTS: &str = "BULKHEAD_REDIRECT_INCLUDE_OUTBOUND_PORTS";
    pub(super) const EXCLUDE_OUTBOUND_PORTS: &str = "BULKHEAD_REDIRECT_EXCLUDE_OUTBOUND_PORTS";
    pub(super) const INCLUDE_OUTBOUND_CIDRS: &str = "BULKHEAD_REDIRECT_INCLUDE_OUTBOUND_CIDRS";
    pub(super) const EXCLUDE_OUTBOUND_CIDRS: &str = "BULKHEAD_REDIRECT_EXCLUDE_OUTBOUND_CIDRS";
}

impl Default for RedirectConfig {
    /// Everything goes through the proxy.
    fn default() -> Self {
        Self {
            inbound_port: ports::PROXY_INBOUND,
            outbound_port: ports::PROXY_OUTBOUND,
            proxy_uid: u32::try_from(ports::PROXY_UID).expect("a small positive literal"),
            include_inbound_ports: Selection::All,
            exclude_inbound_ports: PortSet::default(),
            include_inbound_cidrs: Selection::All,
            exclude_inbound_cidrs: Vec::new(),
            include_outbound_ports: PortSet::default(),
            exclude_outbound_ports: PortSet::default(),
            include_outbound_cidrs: Selection::All,
            exclude_outbound_cidrs: Vec::new(),
        }
    }
}

impl RedirectConfig {
    /// Every port whose inbound connections are never redirected: those that
    /// are excluded, and the proxy's own.
    pub fn excluded_inbound_ports(&self) -> PortSet {
        let own = ports::RESERVED_IN_POD.iter().map(|port| (*port, *port));
        let excluded = self.exclude_inbound_ports.ranges().iter().copied();
        excluded.chain(own).collect()
    }

    /// Every port whose outbound connections are never redirected: those that
    /// are excluded, and [`DNS`] unless it is included by name.
    pub fn excluded_outbound_ports(&self) -> PortSet {
        let dns = (!self.include_outbound_ports.contains(DNS)).then_some((DNS, DNS));
        let excluded = self.exclude_outbound_ports.ranges().iter().copied();
        excluded.chain(dns).collect()
    }

    /// Whether a connection to this port of the pod may meet the proxy.
    pub fn captures_inbound_port(&self, port: u16) -> bool {
        self.include_inbound_ports
            .includes(|ports| ports.contains(port))
            && !self.excluded_inbound_ports().contains(port)
    }

    /// Whether a connection from this address to this port of the pod goes to
    /// the proxy.
    pub fn captures_inbound(&self, from: IpAddr, port: u16) -> bool {
        self.captures_inbound_port(port)
            && self
                .include_inbound_cidrs
                .includes(|cidrs| any_contains(cidrs, from))
            && !any_contains(&self.exclude_inbound_cidrs, from)
    }

    /// Whether a connection of the application to this address and port goes
    /// to the proxy.
    pub fn captures_outbound(&self, to: IpAddr, port: u16) -> bool {
        let is_included = self.include_outbound_ports.contains(port)
            || self
                .include_outbound_cidrs
                .includes(|cidrs| any_contains(cidrs, to));
        is_included
            && !self.excluded_outbound_ports().contains(port)
            && !any_contains(&self.exclude_outbound_cidrs, to)
    }

    /// The variables that say all this, those that are not at their default.
    pub fn to_env(&self) -> Vec<(&'static str, String)> {
        let default = Self::default();
        let mut env = Vec::new();
        macro_rules! each {
            ($($name:ident: $field:ident by $write:expr;)*) => {
                $(if self.$field != default.$field {
                    env.push((name::$name, $write(&self.$field)));
                })*
            };
        }
        each! {
            INBOUND_PORT: inbound_port by u16::to_string;
            OUTBOUND_PORT: outbound_port by u16::to_string;
            PROXY_UID: proxy_uid by u32::to_string;
            INCLUDE_INBOUND_PORTS: include_inbound_ports by write_port_selection;
            EXCLUDE_INBOUND_PORTS: exclude_inbound_ports by PortSet::to_string;
            INCLUDE_INBOUND_CIDRS: include_inbound_cidrs by write_cidr_selection;
            EXCLUDE_INBOUND_CIDRS: exclude_inbound_cidrs by |cidrs: &Vec<Cidr>| cidr::format_list(cidrs);
            INCLUDE_OUTBOUND_PORTS: include_outbound_ports by PortSet::to_string;
            EXCLUDE_OUTBOUND_PORTS: exclude_outbound_ports by PortSet::to_string;
            INCLUDE_OUTBOUND_CIDRS: include_outbound_cidrs by write_cidr_selection;
            EXCLUDE_OUTBOUND_CIDRS: exclude_outbound_cidrs by |cidrs: &Vec<Cidr>| cidr::format_list(cidrs);
        }
        env
    }

    /// Reads the variables; every error at once.
    pub fn from_env(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let settings = Settings::new(lookup);
        let default = Self::default();
        let ports = |name| settings.or(name, PortSet::default());
        let cidrs = |name| settings.parsed(name, cidr::parse_list).unwrap_or_default();
        let cidr_selection = |name| {
            settings
                .parsed(name, |text| read_selection(text, cidr::parse_list))
                .unwrap_or(Selection::All)
        };
        let config = Self {
            inbound_port: settings.or(name::INBOUND_PORT, default.inbound_port),
            outbound_port: settings.or(name::OUTBOUND_PORT, default.outbound_port),
            proxy_uid: settings.or(name::PROXY_UID, default.proxy_uid),
            include_inbound_ports: settings
                .parsed(name::INCLUDE_INBOUND_PORTS, |text| {
                    read_selection(text, str::parse)
                })
                .unwrap_or(Selection::All),
            exclude_inbound_ports: ports(name::EXCLUDE_INBOUND_PORTS),
            include_inbound_cidrs: cidr_selection(name::INCLUDE_INBOUND_CIDRS),
            exclude_inbound_cidrs: cidrs(name::EXCLUDE_INBOUND_CIDRS),
            include_outbound_ports: ports(name::INCLUDE_OUTBOUND_PORTS),
            exclude_outbound_ports: ports(name::EXCLUDE_OUTBOUND_PORTS),
            include_outbound_cidrs: cidr_selection(name::INCLUDE_OUTBOUND_CIDRS),
            exclude_outbound_cidrs: cidrs(name::EXCLUDE_OUTBOUND_CIDRS),
        };
        if config.proxy_uid == 0 {
            settings.reject(
                name::PROXY_UID,
                "must not be 0: packets of every root process would pass the proxy by",
            );
        }
        settings.finish(config)
    }
}

fn any_contains(cidrs: &[Cidr], address: IpAddr) -> bool {
    cidrs.iter().any(|cidr| cidr.contains(address))
}

/// `none` is how an empty selection is written, because a variable that is set
/// to nothing counts as not set.
fn write_selection<T>(selection: &Selection<T>, write: impl FnOnce(&T) -> String) -> String {
    match selection {
        Selection::All => "*".to_owned(),
        Selection::Only(listed) => match write(listed) {
            text if text.is_empty() => "none".to_owned(),
            text => text,
        },
    }
}

fn write_port_selection(selection: &Selection<PortSet>) -> String {
    write_selection(selection, PortSet::to_string)
}

fn write_cidr_selection(selection: &Selection<Vec<Cidr>>) -> String {
    write_selection(selection, |cidrs| cidr::format_list(cidrs))
}

fn read_selection<T, E>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Selection<T>, E> {
    Selection::parse(if text == "none" { "" } else { text }, parse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read(env: &[(&'static str, String)]) -> Result<RedirectConfig, SettingsError> {
        let env: BTreeMap<_, _> = env.iter().cloned().collect();
        RedirectConfig::from_env(&|name| env.get(name).cloned())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn where_nobody_says_anything_all_traffic_meets_the_proxy() {
        let config = RedirectConfig::default();
        assert_eq!(config.to_env(), []);
        assert_eq!(read(&[]).unwrap(), config);
        assert!(config.captures_inbound(address("10.0.0.1"), 8080));
        assert!(config.captures_outbound(address("2001:db8::1"), 443));
    }

    #[test]
    fn every_field_survives_the_way_to_the_init_container() {
        let full = RedirectConfig {
            inbound_port: 1,
            outbound_port: 2,
            proxy_uid: 3,
            include_inbound_ports: Selection::Only("80".parse().unwrap()),
            exclude_inbound_ports: "81".parse().unwrap(),
            include_inbound_cidrs: Selection::Only(cidr::parse_list("10.0.0.0/8").unwrap()),
            exclude_inbound_cidrs: cidr::parse_list("10.1.0.0/16").unwrap(),
            include_outbound_ports: "82".parse().unwrap(),
            exclude_outbound_ports: "83-85".parse().unwrap(),
            include_outbound_cidrs: Selection::Only(Vec::new()),
            exclude_outbound_cidrs: cidr::parse_list("::/0").unwrap(),
        };
        let env = full.to_env();
        assert_eq!(env.len(), 11);
        assert_eq!(read(&env).unwrap(), full);
    }

    #[test]
    fn an_exclusion_wins_over_everything() {
        let config = RedirectConfig {
            include_inbound_ports: Selection::Only("80-90".parse().unwrap()),
            exclude_inbound_ports: "85".parse().unwrap(),
            include_outbound_ports: "25".parse().unwrap(),
            exclude_outbound_ports: "25".parse().unwrap(),
            exclude_outbound_cidrs: cidr::parse_list("10.0.0.0/8").unwrap(),
            ..RedirectConfig::default()
        };
        assert!(config.captures_inbound_port(80));
        assert!(!config.captures_inbound_port(85));
        assert!(!config.captures_inbound_port(91));
        assert!(!config.captures_outbound(address("1.2.3.4"), 25));
        assert!(!config.captures_outbound(address("10.2.3.4"), 80));
        assert!(config.captures_outbound(address("1.2.3.4"), 80));
    }

    #[test]
    fn an_outbound_port_is_captured_beyond_the_listed_addresses() {
        let config = RedirectConfig {
            include_outbound_ports: "5432".parse().unwrap(),
            include_outbound_cidrs: Selection::Only(cidr::parse_list("10.0.0.0/8").unwrap()),
            ..RedirectConfig::default()
        };
        assert!(config.captures_outbound(address("10.1.1.1"), 80));
        assert!(config.captures_outbound(address("1.2.3.4"), 5432));
        assert!(!config.captures_outbound(address("1.2.3.4"), 80));
    }

    #[test]
    fn dns_is_left_alone_unless_its_port_is_named() {
        let default = RedirectConfig::default();
        assert!(!default.captures_outbound(address("10.0.0.10"), DNS));
        let named = RedirectConfig {
            include_outbound_ports: "53".parse().unwrap(),
            ..default
        };
        assert!(named.captures_outbound(address("10.0.0.10"), DNS));
    }

    #[test]
    fn the_proxys_own_ports_are_never_captured() {
        for port in ports::RESERVED_IN_POD {
            assert!(!RedirectConfig::default().captures_inbound_port(*port));
        }
    }

    #[test]
    fn a_proxy_that_runs_as_root_is_refused() {
        let error = read(&[(name::PROXY_UID, "0".into())]).unwrap_err();
        assert!(error.to_string().contains(name::PROXY_UID));
    }
}
