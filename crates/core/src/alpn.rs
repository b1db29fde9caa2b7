//! The TLS protocol names (ALPN, RFC 7301) that mark mesh traffic and say what
//! is inside. They are the names that Istio's sidecars use, so that a pod
//! meshed by Istio under the same root is a peer both ways.

use crate::protocol::Protocol;

/// One row of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MeshAlpn {
    pub name: &'static str,
    /// What the name says is inside; `Auto` where it does not say.
    pub inside: Protocol,
}

/// HTTP/1.1 inside mesh TLS.
pub const HTTP11: &str = "istio-http/1.1";
/// HTTP/2 inside mesh TLS.
pub const HTTP2: &str = "istio-h2";
/// Anything inside mesh TLS.
pub const ANY: &str = "istio";

/// The names that mark mesh traffic, the most specific first.
///
/// `istio-peer-exchange` is not among them, and is never chosen: whoever
/// chooses it promises a preamble before the first byte.
pub const TABLE: &[MeshAlpn] = &[
    MeshAlpn {
        name: HTTP2,
        inside: Protocol::Http2,
    },
    MeshAlpn {
        name: HTTP11,
        inside: Protocol::Http1,
    },
    MeshAlpn {
        name: "istio-http/1.0",
        inside: Protocol::Http1,
    },
    MeshAlpn {
        name: ANY,
        inside: Protocol::Auto,
    },
];

/// The row of a name that marks mesh traffic.
pub fn find(name: &[u8]) -> Option<&'static MeshAlpn> {
    TABLE.iter().find(|row| row.name.as_bytes() == name)
}

/// Every name that a server agrees to under mesh TLS: the mesh names, then the
/// plain ones that peers without mesh names use.
pub fn server_offers() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|row| row.name).chain(["h2", "http/1.1"])
}

/// What a client offers for a connection that carries `inside`: the specific
/// name, then the general one, then the plain one.
pub fn client_offers(inside: Protocol) -> &'static [&'static str] {
    match inside {
        Protocol::Http1 => &[HTTP11, ANY, "http/1.1"],
        Protocol::Http2 | Protocol::Grpc => &[HTTP2, ANY, "h2"],
        Protocol::Auto | Protocol::Opaque => &[ANY],
    }
}

/// What a chosen name says of the connection's inside.
pub fn inside(chosen: Option<&[u8]>) -> Protocol {
    match chosen {
        Some(b"h2") => Protocol::Http2,
        Some(b"http/1.1") => Protocol::Http1,
        Some(name) => find(name).map_or(Protocol::Auto, |row| row.inside),
        None => Protocol::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_offers_a_server_knows_to_be_mesh_traffic() {
        for protocol in Protocol::ALL {
            let offers = client_offers(protocol);
            assert!(find(offers[0].as_bytes()).is_some(), "{protocol:?}");
            assert!(
                offers
                    .iter()
                    .all(|name| server_offers().any(|own| own == *name))
            );
        }
    }

    #[test]
    fn a_name_that_promises_a_preamble_is_never_mesh_traffic_of_ours() {
        assert_eq!(find(b"istio-peer-exchange"), None);
        assert!(server_offers().all(|name| name != "istio-peer-exchange"));
    }
}
