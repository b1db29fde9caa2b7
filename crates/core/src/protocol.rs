//! What is spoken inside a connection, and how a port tells.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the application speaks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Nobody said; the first bytes decide.
    #[default]
    Auto,
    /// HTTP/1.0 and HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113, 3.3).
    Http2,
    /// gRPC, which is HTTP/2.
    Grpc,
    /// Bytes that nobody looks at.
    Opaque,
}

impl Protocol {
    pub const ALL: [Self; 5] = [
        Self::Auto,
        Self::Http1,
        Self::Http2,
        Self::Grpc,
        Self::Opaque,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Opaque => "opaque",
        }
    }

    /// Whether somebody said that it is HTTP, of whichever version.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc)
    }

    /// By `appProtocol` of a Service or container port; nothing where the name
    /// is not one that says anything to a mesh. `http` leaves the version to
    /// the first bytes, because clients upgrade on their own.
    pub fn from_app_protocol(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix("kubernetes.io/").unwrap_or(&name) {
            "http" | "http1" | "ws" => Some(Self::Auto),
            "http2" | "h2c" => Some(Self::Http2),
            "grpc" | "grpc-web" => Some(Self::Grpc),
            "tcp" | "tls" | "https" | "wss" | "mysql" | "mongo" | "redis" | "postgresql"
            | "postgres" | "smtp" | "amqp" => Some(Self::Opaque),
            _ => None,
        }
    }

    /// By the name of a port, in Istio's form `<protocol>[-<anything>]`.
    pub fn from_port_name(name: &str) -> Option<Self> {
        Self::from_app_protocol(name.split('-').next().unwrap_or(name))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.as_str() == text)
            .ok_or_else(|| UnknownProtocol(text.chars().take(32).collect()))
    }
}

/// A text that is not a protocol.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a protocol: write auto, http1, http2, grpc or opaque")]
pub struct UnknownProtocol(String);

/// Ports of protocols in which the server speaks first, or which look like
/// nothing that detection knows. They are opaque unless told otherwise, so that
/// nobody waits for a client that waits.
///
/// SMTP and submission, MySQL, Galera, PostgreSQL, Redis, Elasticsearch's
/// transport, memcached: the list that Linkerd's users have come to rely on.
pub const OPAQUE_PORTS: &[u16] = &[25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_are_read_as_istio_reads_them() {
        for (name, protocol) in [
            ("http", Some(Protocol::Auto)),
            ("http-web", Some(Protocol::Auto)),
            ("grpc-api", Some(Protocol::Grpc)),
            ("http2-x", Some(Protocol::Http2)),
            ("mysql", Some(Protocol::Opaque)),
            ("tcp-thing", Some(Protocol::Opaque)),
            ("web", None),
            ("", None),
        ] {
            assert_eq!(Protocol::from_port_name(name), protocol, "{name}");
        }
    }

    #[test]
    fn app_protocol_takes_kubernetes_own_names() {
        assert_eq!(
            Protocol::from_app_protocol("kubernetes.io/h2c"),
            Some(Protocol::Http2)
        );
        assert_eq!(Protocol::from_app_protocol("example.com/thing"), None);
    }

    #[test]
    fn names_are_read_back() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.as_str().parse(), Ok(protocol));
        }
    }
}
