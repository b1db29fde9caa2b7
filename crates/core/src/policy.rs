//! mTLS modes and the decision about an inbound connection.
//!
//! The decision has two moments. When the first bytes are known, [`screen`]
//! says what to do with them; when the peer is known, [`decide`] says whether
//! it may speak, and hands out the [`Permit`] without which nothing is
//! forwarded. [`peer_authentication`] says which mode applies where people
//! wrote Istio's policies.

pub mod peer_authentication;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::identity::SpiffeId;
use crate::reason::Reason;

/// What a port accepts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Mesh mTLS only.
    Strict,
    /// Mesh mTLS, and plaintext, which is counted by who sent it.
    #[default]
    Permissive,
    /// Plaintext only.
    Disable,
}

impl MtlsMode {
    pub const ALL: [Self; 3] = [Self::Strict, Self::Permissive, Self::Disable];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "STRICT",
            Self::Permissive => "PERMISSIVE",
            Self::Disable => "DISABLE",
        }
    }
}

impl fmt::Display for MtlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for MtlsMode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownMode(text.chars().take(32).collect()))
    }
}

/// A text that is not a mode.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not an mTLS mode: write STRICT, PERMISSIVE or DISABLE")]
pub struct UnknownMode(String);

/// What a workload accepts, by port.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InboundPolicy {
    /// Who made the rule, as people know it: an annotation, or the kind,
    /// namespace and name of a resource. It is named in every refusal.
    pub name: String,
    pub mode: MtlsMode,
    pub port_modes: BTreeMap<u16, MtlsMode>,
}

impl InboundPolicy {
    pub fn mode(&self, port: u16) -> MtlsMode {
        self.port_modes.get(&port).copied().unwrap_or(self.mode)
    }
}

/// What the first bytes of an inbound connection are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FirstBytes {
    /// A TLS ClientHello that offers a mesh protocol name ([`crate::alpn`]).
    MeshTls,
    /// Any other TLS ClientHello.
    OtherTls,
    /// Anything else, silence included.
    Plaintext,
}

/// What to do with an inbound connection before anything is known of its peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Screening {
    /// Terminate TLS; the peer must show an SVID of the trust domain.
    TerminateTls,
    /// Forward the bytes as they are, without an identity: plaintext, or an
    /// application's own TLS.
    Forward,
}

/// What to do with a connection on a port of this mode that begins so.
pub fn screen(mode: MtlsMode, first: FirstBytes) -> Result<Screening, Reason> {
    match (mode, first) {
        (MtlsMode::Strict, FirstBytes::MeshTls | FirstBytes::OtherTls)
        | (MtlsMode::Permissive, FirstBytes::MeshTls) => Ok(Screening::TerminateTls),
        (MtlsMode::Strict, FirstBytes::Plaintext) => Err(Reason::PlaintextRefused),
        (MtlsMode::Disable, FirstBytes::MeshTls) => Err(Reason::MtlsDisabled),
        (
            MtlsMode::Permissive | MtlsMode::Disable,
            FirstBytes::OtherTls | FirstBytes::Plaintext,
        ) => Ok(Screening::Forward),
    }
}

/// What is known of a connection when it is decided on.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The port that the client dialled.
    pub port: u16,
    /// The identity that mutual TLS proved, or nothing where there was none.
    pub peer: Option<&'a SpiffeId>,
}

/// The right to forward one connection. Only [`decide`] makes one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Permit(());

/// Decides whether a connection may be forwarded.
pub fn decide(policy: &InboundPolicy, connection: Connection<'_>) -> Result<Permit, Reason> {
    match (policy.mode(connection.port), connection.peer) {
        (MtlsMode::Strict, None) => Err(Reason::PlaintextRefused),
        (MtlsMode::Disable, Some(_)) => Err(Reason::MtlsDisabled),
        (MtlsMode::Strict | MtlsMode::Permissive, Some(_))
        | (MtlsMode::Permissive | MtlsMode::Disable, None) => Ok(Permit(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: MtlsMode) -> InboundPolicy {
        InboundPolicy {
            mode,
            ..InboundPolicy::default()
        }
    }

    #[test]
    fn every_mode_meets_every_beginning() {
        use FirstBytes::{MeshTls, OtherTls, Plaintext};
        use Screening::{Forward, TerminateTls};
        for (mode, first, expected) in [
            (MtlsMode::Strict, MeshTls, Ok(TerminateTls)),
            (MtlsMode::Strict, OtherTls, Ok(TerminateTls)),
            (MtlsMode::Strict, Plaintext, Err(Reason::PlaintextRefused)),
            (MtlsMode::Permissive, MeshTls, Ok(TerminateTls)),
            (MtlsMode::Permissive, OtherTls, Ok(Forward)),
            (MtlsMode::Permissive, Plaintext, Ok(Forward)),
            (MtlsMode::Disable, MeshTls, Err(Reason::MtlsDisabled)),
            (MtlsMode::Disable, OtherTls, Ok(Forward)),
            (MtlsMode::Disable, Plaintext, Ok(Forward)),
        ] {
            assert_eq!(screen(mode, first), expected, "{mode} {first:?}");
        }
    }

    #[test]
    fn strict_never_permits_a_connection_without_an_identity() {
        let peer = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
        let at = |peer| Connection { port: 80, peer };
        assert_eq!(
            decide(&policy(MtlsMode::Strict), at(None)),
            Err(Reason::PlaintextRefused)
        );
        assert!(decide(&policy(MtlsMode::Strict), at(Some(&peer))).is_ok());
        assert!(decide(&policy(MtlsMode::Permissive), at(None)).is_ok());
        assert!(decide(&policy(MtlsMode::Permissive), at(Some(&peer))).is_ok());
        assert!(decide(&policy(MtlsMode::Disable), at(None)).is_ok());
    }

    #[test]
    fn a_port_may_differ_from_its_workload() {
        let mut policy = policy(MtlsMode::Strict);
        policy.port_modes.insert(9090, MtlsMode::Permissive);
        assert_eq!(policy.mode(9090), MtlsMode::Permissive);
        assert_eq!(policy.mode(8080), MtlsMode::Strict);
    }

    #[test]
    fn modes_are_read_in_any_case_and_nothing_else_is() {
        assert_eq!("strict".parse(), Ok(MtlsMode::Strict));
        assert!("on".parse::<MtlsMode>().is_err());
    }
}
