//! Which rules a configuration means.
//!
//! ```text
//!  from outside ─▶ prerouting ──▶ inbound ──▶ the proxy's inbound port
//!                                   ▲
//!  proxy, to its own pod ─┐         │
//!  application ──────────▶ output ──┴───────▶ the proxy's outbound port
//! ```
//!
//! Only a packet that opens a connection is redirected. The kernel begins to
//! track connections when there are rules, and the next packet of one that was
//! open before is the first that it sees: redirected, it would be reset.
//!
//! What a process sends over loopback never passes `prerouting` anew: its fate
//! is decided in `output`.
//!
//! A pod that calls itself works in each of its forms:
//! - By a loopback address or the pod's own address, the application reaches
//!   itself directly.
//! - By a Service, the proxy takes the connection and may choose the pod itself.
//!   It then dials the pod's address *from a loopback address*, which is the
//!   sign that the connection is to be treated as one from outside; and so its
//!   own inbound side terminates the mTLS that its outbound side began.
//! - The inbound side dials the application at the pod's address, from the pod's
//!   address, and is left alone as everything else of the proxy.

use std::net::IpAddr;

use bulkhead_core::cidr::Cidr;
use bulkhead_core::port_set::PortSet;
use bulkhead_core::ports;
use bulkhead_core::redirect::{RedirectConfig, Selection};

use crate::table::{Action, Chain, Family, Hook, Kind, Match, Membership, Rule, Set, Side, Table};

const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const INBOUND: &str = "inbound";

impl Table {
    /// The rules that a configuration means.
    pub fn of(config: &RedirectConfig) -> Self {
        let mut sets = Vec::new();
        let inbound = inbound(config, &mut sets);
        let output = output(config, &mut sets);
        let prerouting = Chain {
            name: PREROUTING,
            hook: Some(Hook::Prerouting),
            rules: vec![Rule {
                // What is for somebody else only passes through: a container
                // that runs containers of its own.
                matches: vec![Match::Opens, Match::ToThePod],
                action: Action::Goto(INBOUND),
                comment: "from outside to the pod",
            }],
        };
        Self {
            sets,
            chains: vec![inbound, prerouting, output],
        }
    }

    /// New connections are left alone, and those that were redirected and are
    /// still open go on: for which the kernel must stay in the packets' way, and
    /// must go on to track connections. It does so where there are chains, and a
    /// rule that redirects, if only in a chain that nobody goes to.
    pub fn without_rules() -> Self {
        let chain = |name, hook, rules| Chain { name, hook, rules };
        let nowhere = Rule {
            matches: vec![Match::Tcp],
            action: Action::Redirect(ports::PROXY_INBOUND),
            comment: "nobody comes here; keeps connections tracked",
        };
        Self {
            sets: Vec::new(),
            chains: vec![
                chain("open_connections", None, vec![nowhere]),
                chain(PREROUTING, Some(Hook::Prerouting), Vec::new()),
                chain(OUTPUT, Some(Hook::Output), Vec::new()),
            ],
        }
    }
}

/// See [`RedirectConfig::captures_inbound`].
fn inbound(config: &RedirectConfig, sets: &mut Vec<Set>) -> Chain {
    let mut rules = Rules::new(sets);
    let excluded = config.excluded_inbound_ports();
    rules.ports("inbound_excluded_ports", &excluded, |set| {
        leave(Match::Port(Membership::In(set)), "an excluded port")
    });
    rules.addresses(
        ["inbound_excluded_ipv4", "inbound_excluded_ipv6"],
        &config.exclude_inbound_cidrs,
        |family, set| {
            let address = Match::Address(Side::Source, family, Membership::In(set));
            leave(address, "from an excluded address")
        },
    );
    if let Selection::Only(ports) = &config.include_inbound_ports {
        let set = rules.set("inbound_ports", Kind::Port, port_ranges(ports));
        rules.push(leave(
            Match::Port(Membership::NotIn(set)),
            "not an included port",
        ));
    }
    if let Selection::Only(cidrs) = &config.include_inbound_cidrs {
        for (family, name) in [
            (Family::Ipv4, "inbound_ipv4"),
            (Family::Ipv6, "inbound_ipv6"),
        ] {
            let set = rules.set(name, kind(family), address_ranges(family, cidrs));
            let address = Match::Address(Side::Source, family, Membership::NotIn(set));
            rules.push(leave(address, "not from an included address"));
        }
    }
    rules.push(Rule {
        matches: vec![Match::Tcp],
        action: Action::Redirect(config.inbound_port),
        comment: "to the proxy",
    });
    Chain {
        name: INBOUND,
        hook: None,
        rules: rules.list,
    }
}

/// See [`RedirectConfig::captures_outbound`].
fn output(config: &RedirectConfig, sets: &mut Vec<Set>) -> Chain {
    let mut rules = Rules::new(sets);
    rules.push(leave(Match::DoesNotOpen, "open before there were rules"));
    own_traffic(config.proxy_uid, &mut rules);
    let excluded = config.excluded_outbound_ports();
    rules.ports("outbound_excluded_ports", &excluded, |set| {
        leave(Match::Port(Membership::In(set)), "an excluded port")
    });
    rules.addresses(
        ["outbound_excluded_ipv4", "outbound_excluded_ipv6"],
        &config.exclude_outbound_cidrs,
        |family, set| {
            let address = Match::Address(Side::Destination, family, Membership::In(set));
            leave(address, "to an excluded address")
        },
    );
    let redirect = |condition, comment| Rule {
        matches: vec![condition],
        action: Action::Redirect(config.outbound_port),
        comment,
    };
    match &config.include_outbound_cidrs {
        Selection::All => rules.push(redirect(Match::Tcp, "to the proxy")),
        Selection::Only(cidrs) => {
            rules.ports("outbound_ports", &config.include_outbound_ports, |set| {
                let port = Match::Port(Membership::In(set));
                redirect(port, "to the proxy, an included port")
            });
            rules.addresses(["outbound_ipv4", "outbound_ipv6"], cidrs, |family, set| {
                let address = Match::Address(Side::Destination, family, Membership::In(set));
                let mut rule = redirect(address, "to the proxy, an included address");
                rule.matches.insert(0, Match::Tcp);
                rule
            });
        }
    }
    Chain {
        name: OUTPUT,
        hook: Some(Hook::Output),
        rules: rules.list,
    }
}

/// What the proxy sends, and what the application sends to itself.
fn own_traffic(proxy_uid: u32, rules: &mut Rules<'_>) {
    for family in [Family::Ipv4, Family::Ipv6] {
        rules.push(Rule {
            matches: vec![
                Match::User(proxy_uid),
                Match::Loopback(Side::Source, family),
                Match::NotLoopback(Side::Destination, family),
            ],
            action: Action::Goto(INBOUND),
            comment: "the proxy calls its own pod as if from outside",
        });
    }
    rules.push(leave(Match::User(proxy_uid), "sent by the proxy"));
    rules.push(leave(Match::OverLoopback, "from the application to itself"));
}

fn leave(condition: Match, comment: &'static str) -> Rule {
    Rule {
        matches: vec![condition],
        action: Action::Return,
        comment,
    }
}

/// The rules of one chain, and the sets that they look values up in.
struct Rules<'a> {
    list: Vec<Rule>,
    sets: &'a mut Vec<Set>,
}

impl<'a> Rules<'a> {
    fn new(sets: &'a mut Vec<Set>) -> Self {
        Self {
            list: Vec::new(),
            sets,
        }
    }

    fn push(&mut self, rule: Rule) {
        self.list.push(rule);
    }

    fn set(&mut self, name: &'static str, kind: Kind, ranges: Vec<(u128, u128)>) -> &'static str {
        self.sets.push(Set { name, kind, ranges });
        name
    }

    /// A rule about these ports, where there are any.
    fn ports(
        &mut self,
        name: &'static str,
        ports: &PortSet,
        rule: impl FnOnce(&'static str) -> Rule,
    ) {
        if !ports.is_empty() {
            let set = self.set(name, Kind::Port, port_ranges(ports));
            self.push(rule(set));
        }
    }

    /// A rule for each family that has any of these addresses.
    fn addresses(
        &mut self,
        names: [&'static str; 2],
        cidrs: &[Cidr],
        rule: impl Fn(Family, &'static str) -> Rule,
    ) {
        for (family, name) in [Family::Ipv4, Family::Ipv6].into_iter().zip(names) {
            let ranges = address_ranges(family, cidrs);
            if !ranges.is_empty() {
                let set = self.set(name, kind(family), ranges);
                self.push(rule(family, set));
            }
        }
    }
}

fn kind(family: Family) -> Kind {
    match family {
        Family::Ipv4 => Kind::Ipv4,
        Family::Ipv6 => Kind::Ipv6,
    }
}

fn port_ranges(ports: &PortSet) -> Vec<(u128, u128)> {
    ports
        .ranges()
        .iter()
        .map(|(first, last)| (u128::from(*first), u128::from(*last)))
        .collect()
}

/// The ranges of one family, merged: the kernel takes none that overlap.
fn address_ranges(family: Family, cidrs: &[Cidr]) -> Vec<(u128, u128)> {
    let mut sorted: Vec<_> = cidrs
        .iter()
        .filter_map(|cidr| match (family, cidr.address()) {
            (Family::Ipv4, IpAddr::V4(first)) => {
                Some((u128::from(first.to_bits()), 32 - cidr.prefix()))
            }
            (Family::Ipv6, IpAddr::V6(first)) => Some((first.to_bits(), 128 - cidr.prefix())),
            _ => None,
        })
        .map(|(first, free)| {
            let free = u128::MAX.checked_shr(128 - u32::from(free)).unwrap_or(0);
            (first, first | free)
        })
        .collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
    for (first, last) in sorted {
        match merged.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => {
                previous.1 = previous.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
