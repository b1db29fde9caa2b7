//! A table of rules, as people write it in nft's language.
//!
//! [`Table`]'s `Display` is what `nft -f` takes and what `nft list table inet
//! bulkhead` shows, but for the counters and the order of what is in it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The name of the one table that is ours, of family `inet`: IPv4 and IPv6.
pub const NAME: &str = "bulkhead";

/// All rules of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// A named set of ranges, which rules look values up in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Set {
    pub name: &'static str,
    pub kind: Kind,
    /// First and last value of each range; sorted, and neither touching nor
    /// overlapping. The bytes of an address are read as one big number.
    pub ranges: Vec<(u128, u128)>,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Port,
    Ipv4,
    Ipv6,
}

impl Kind {
    /// How many bytes a value has.
    pub fn length(self) -> usize {
        match self {
            Self::Port => 2,
            Self::Ipv4 => 4,
            Self::Ipv6 => 16,
        }
    }

    /// The largest value.
    pub fn last(self) -> u128 {
        u128::MAX >> (128 - 8 * self.length())
    }
}

/// Rules that are tried in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    pub name: &'static str,
    /// Where the kernel enters it; nothing where other chains go to it.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// Where in a packet's way the kernel enters a chain: with the first packet of
/// each connection that it sees, and no other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// Packets that come from outside.
    Prerouting,
    /// Packets that a process of the pod sends.
    Output,
}

/// What to do with a connection that matches everything that is listed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
    /// Why, for those who read the rules on a machine.
    pub comment: &'static str,
}

/// One condition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Match {
    Tcp,
    /// The packet opens a connection: SYN, and none of ACK, RST and FIN.
    Opens,
    DoesNotOpen,
    /// The process runs as this user.
    User(u32),
    /// The packet does not leave the pod.
    OverLoopback,
    /// The packet is for an address of the pod.
    ToThePod,
    Port(Membership),
    Address(Side, Family, Membership),
    /// A loopback address: 127.0.0.0/8, ::1.
    Loopback(Side, Family),
    NotLoopback(Side, Family),
}

/// In or out of a set, by its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Membership {
    In(&'static str),
    NotIn(&'static str),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Leaves the connection as it is, or to the chain that came here by jump.
    Return,
    /// Goes on in another chain, and does not come back.
    Goto(&'static str),
    /// Counts the connection, and has it arrive at this port of the pod.
    Redirect(u16),
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {NAME} {{")?;
        for set in &self.sets {
            writeln!(f, "{set}")?;
        }
        for (index, chain) in self.chains.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Port => "inet_service",
            Kind::Ipv4 => "ipv4_addr",
            Kind::Ipv6 => "ipv6_addr",
        };
        writeln!(f, "\tset {} {{", self.name)?;
        writeln!(f, "\t\ttype {kind}")?;
        writeln!(f, "\t\tflags interval")?;
        if !self.ranges.is_empty() {
            let ranges: Vec<_> = self
                .ranges
                .iter()
                .map(|range| show_range(self.kind, *range))
                .collect();
            writeln!(f, "\t\telements = {{ {} }}", ranges.join(", "))?;
        }
        writeln!(f, "\t}}")
    }
}

/// A range as nft writes it: as a prefix where it is one.
fn show_range(kind: Kind, (first, last): (u128, u128)) -> String {
    let bits = 8 * kind.length();
    let free = (first ^ last).count_ones();
    let is_prefix = (first ^ last) == u128::MAX.checked_shr(128 - free).unwrap_or(0)
        && first & (first ^ last) == 0;
    if first == last {
        show_value(kind, first)
    } else if is_prefix && kind != Kind::Port {
        format!("{}/{}", show_value(kind, first), bits - free as usize)
    } else {
        format!("{}-{}", show_value(kind, first), show_value(kind, last))
    }
}

fn show_value(kind: Kind, value: u128) -> String {
    match kind {
        Kind::Port => value.to_string(),
        // The value has no more bits than its kind.
        Kind::Ipv4 => Ipv4Addr::from_bits(value as u32).to_string(),
        Kind::Ipv6 => Ipv6Addr::from_bits(value).to_string(),
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        match self.hook {
            Some(Hook::Prerouting) => writeln!(
                f,
                "\t\ttype nat hook prerouting priority dstnat; policy accept;"
            )?,
            Some(Hook::Output) => {
                writeln!(f, "\t\ttype nat hook output priority -100; policy accept;")?;
            }
            None => {}
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        write!(f, "{} comment \"{}\"", self.action, self.comment)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::Opens => f.write_str("tcp flags syn / fin,syn,rst,ack"),
            Self::DoesNotOpen => f.write_str("tcp flags != syn / fin,syn,rst,ack"),
            Self::User(uid) => write!(f, "meta skuid {uid}"),
            Self::OverLoopback => f.write_str("oif \"lo\""),
            Self::ToThePod => f.write_str("fib daddr type local"),
            Self::Port(membership) => write!(f, "tcp dport {membership}"),
            Self::Address(side, family, membership) => {
                write!(f, "{family} {side} {membership}")
            }
            Self::Loopback(side, family) => {
                write!(f, "{family} {side} {}", family.loopback())
            }
            Self::NotLoopback(side, family) => {
                write!(f, "{family} {side} != {}", family.loopback())
            }
        }
    }
}

impl Family {
    fn loopback(self) -> &'static str {
        match self {
            Self::Ipv4 => "127.0.0.0/8",
            Self::Ipv6 => "::1",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "saddr",
            Self::Destination => "daddr",
        })
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(set) => write!(f, "@{set}"),
            Self::NotIn(set) => write!(f, "!= @{set}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("return"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Redirect(port) => write!(f, "counter redirect to :{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_shown_as_nft_shows_them() {
        let v4 = |text: &str| u128::from(text.parse::<Ipv4Addr>().unwrap().to_bits());
        for (kind, first, last, expected) in [
            (Kind::Port, 80, 80, "80"),
            (Kind::Port, 80, 81, "80-81"),
            (Kind::Port, 0x100, 0x1ff, "256-511"),
            (
                Kind::Ipv4,
                v4("10.0.0.0"),
                v4("10.255.255.255"),
                "10.0.0.0/8",
            ),
            (Kind::Ipv4, v4("10.0.0.1"), v4("10.0.0.1"), "10.0.0.1"),
            (
                Kind::Ipv4,
                v4("10.0.0.1"),
                v4("10.0.0.2"),
                "10.0.0.1-10.0.0.2",
            ),
            (
                Kind::Ipv4,
                v4("10.0.0.2"),
                v4("10.0.0.4"),
                "10.0.0.2-10.0.0.4",
            ),
            (Kind::Ipv4, 0, Kind::Ipv4.last(), "0.0.0.0/0"),
            (Kind::Ipv6, 0, Kind::Ipv6.last(), "::/0"),
            (Kind::Ipv6, 1, 1, "::1"),
        ] {
            assert_eq!(show_range(kind, (first, last)), expected);
        }
    }
}
