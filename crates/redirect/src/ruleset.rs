//! The rules as the kernel keeps them: each a small program of expressions that
//! load a value into a register, compare it, and end in a verdict.
//!
//! What is sent to the kernel and what is read from it are values of one type,
//! so that `==` says whether it did what was asked.

use std::collections::BTreeMap;

use crate::table::{Action, Family, Hook, Kind, Match, Membership, Rule, Side, Table};

/// Everything that one table has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ruleset {
    pub sets: BTreeMap<String, SetContents>,
    pub chains: BTreeMap<String, ChainContents>,
}

/// What a set holds: see [`crate::table::Set`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SetContents {
    pub kind: Kind,
    pub ranges: Vec<(u128, u128)>,
}

/// What a chain does: see [`crate::table::Chain`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChainContents {
    pub hook: Option<Hook>,
    pub rules: Vec<Program>,
}

/// One rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Program {
    pub expressions: Vec<Expression>,
    pub comment: String,
}

/// One step of a rule. There is one register that values pass through.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Expression {
    LoadMeta(Meta),
    /// Loads bytes of a header of the packet.
    LoadPayload {
        header: Header,
        offset: u32,
        length: u32,
    },
    /// Loads what kind of address the destination is to this host, such as
    /// [`LOCAL_ADDRESS`].
    LoadDestinationType,
    LoadValue(Vec<u8>),
    /// Keeps these bits of the register's value, and sets the others to zero.
    Mask(Vec<u8>),
    /// Ends the rule unless the register has this value, or has another.
    Compare {
        equal: bool,
        value: Vec<u8>,
    },
    /// Ends the rule unless the register's value is in the set, or is not.
    Lookup {
        set: String,
        inverted: bool,
    },
    Count,
    /// Has the connection arrive at the port in the register.
    Redirect,
    Return,
    Goto(String),
}

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meta {
    OutputInterface,
    SocketUser,
    NetworkProtocol,
    TransportProtocol,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Header {
    Network,
    Transport,
}

/// IPPROTO_TCP.
const TCP: u8 = 6;
/// NFPROTO_IPV4 and NFPROTO_IPV6.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// Of the flags of a TCP header (RFC 9293, 3.1): SYN, and those that say what a
/// packet does to a connection, FIN, SYN, RST and ACK.
const SYN: u8 = 0x02;
const FIN_SYN_RST_ACK: u8 = 0x17;
/// The index of `lo`, the same in every network namespace (LOOPBACK_IFINDEX).
const LOOPBACK_INTERFACE: u32 = 1;
/// RTN_LOCAL: an address of this host.
pub const LOCAL_ADDRESS: u32 = 2;

impl Table {
    /// The table as the kernel keeps it.
    pub fn compile(&self) -> Ruleset {
        let sets = self.sets.iter().map(|set| {
            let contents = SetContents {
                kind: set.kind,
                ranges: set.ranges.clone(),
            };
            (set.name.to_owned(), contents)
        });
        let chains = self.chains.iter().map(|chain| {
            let contents = ChainContents {
                hook: chain.hook,
                rules: chain.rules.iter().map(compile_rule).collect(),
            };
            (chain.name.to_owned(), contents)
        });
        Ruleset {
            sets: sets.collect(),
            chains: chains.collect(),
        }
    }
}

fn compile_rule(rule: &Rule) -> Program {
    let mut expressions = Vec::new();
    for condition in &rule.matches {
        compile_match(condition, &mut expressions);
    }
    match rule.action {
        Action::Return => expressions.push(Expression::Return),
        Action::Goto(chain) => expressions.push(Expression::Goto(chain.to_owned())),
        Action::Redirect(port) => expressions.extend([
            Expression::Count,
            Expression::LoadValue(port.to_be_bytes().to_vec()),
            Expression::Redirect,
        ]),
    }
    Program {
        expressions,
        comment: rule.comment.to_owned(),
    }
}

fn compile_match(condition: &Match, program: &mut Vec<Expression>) {
    match condition {
        Match::Tcp => program.extend(meta_is(Meta::TransportProtocol, &[TCP])),
        Match::Opens => program.extend(flags_are_syn(true)),
        Match::DoesNotOpen => program.extend(flags_are_syn(false)),
        Match::User(uid) => program.extend(meta_is(Meta::SocketUser, &uid.to_ne_bytes())),
        Match::OverLoopback => program.extend(meta_is(
            Meta::OutputInterface,
            &LOOPBACK_INTERFACE.to_ne_bytes(),
        )),
        Match::ToThePod => program.extend([
            Expression::LoadDestinationType,
            compare(true, &LOCAL_ADDRESS.to_ne_bytes()),
        ]),
        Match::Port(membership) => {
            program.extend(meta_is(Meta::TransportProtocol, &[TCP]));
            program.extend([load_destination_port(), lookup(*membership)]);
        }
        Match::Address(side, family, membership) => {
            program.extend(family_is(*family));
            program.extend([load_address(*side, *family), lookup(*membership)]);
        }
        Match::Loopback(side, family) => program.extend(loopback(*side, *family, true)),
        Match::NotLoopback(side, family) => program.extend(loopback(*side, *family, false)),
    }
}

fn meta_is(meta: Meta, value: &[u8]) -> [Expression; 2] {
    [Expression::LoadMeta(meta), compare(true, value)]
}

fn flags_are_syn(equal: bool) -> Vec<Expression> {
    let mut program = meta_is(Meta::TransportProtocol, &[TCP]).to_vec();
    program.extend([
        Expression::LoadPayload {
            header: Header::Transport,
            offset: 13,
            length: 1,
        },
        Expression::Mask(vec![FIN_SYN_RST_ACK]),
        compare(equal, &[SYN]),
    ]);
    program
}

fn family_is(family: Family) -> [Expression; 2] {
    let number = match family {
        Family::Ipv4 => IPV4,
        Family::Ipv6 => IPV6,
    };
    meta_is(Meta::NetworkProtocol, &[number])
}

fn compare(equal: bool, value: &[u8]) -> Expression {
    Expression::Compare {
        equal,
        value: value.to_vec(),
    }
}

fn lookup(membership: Membership) -> Expression {
    let (set, inverted) = match membership {
        Membership::In(set) => (set, false),
        Membership::NotIn(set) => (set, true),
    };
    Expression::Lookup {
        set: set.to_owned(),
        inverted,
    }
}

fn load_destination_port() -> Expression {
    Expression::LoadPayload {
        header: Header::Transport,
        offset: 2,
        length: 2,
    }
}

/// Loads an address of the IP header (RFC 791, 3.1; RFC 8200, 3).
fn load_address(side: Side, family: Family) -> Expression {
    let (offset, length) = match (family, side) {
        (Family::Ipv4, Side::Source) => (12, 4),
        (Family::Ipv4, Side::Destination) => (16, 4),
        (Family::Ipv6, Side::Source) => (8, 16),
        (Family::Ipv6, Side::Destination) => (24, 16),
    };
    Expression::LoadPayload {
        header: Header::Network,
        offset,
        length,
    }
}

/// All addresses whose first byte is 127, or the one address ::1.
fn loopback(side: Side, family: Family, equal: bool) -> Vec<Expression> {
    let mut program = family_is(family).to_vec();
    match (family, load_address(side, family)) {
        (Family::Ipv4, Expression::LoadPayload { header, offset, .. }) => {
            let first_byte = Expression::LoadPayload {
                header,
                offset,
                length: 1,
            };
            program.extend([first_byte, compare(equal, &[127])]);
        }
        (_, load) => {
            let address = std::net::Ipv6Addr::LOCALHOST.octets();
            program.extend([load, compare(equal, &address)]);
        }
    }
    program
}
