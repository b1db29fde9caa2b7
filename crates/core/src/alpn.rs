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

/// Every name that a server agrees to under mesh TLS, on a port of this protocol:
/// the mesh names, then the plain ones that peers without mesh names use. Of those
/// that a client offers, the first one here is chosen.
///
/// Whoever offers both plain names leaves the choice to the server, and what is
/// chosen is what the application gets. Nearly every application speaks HTTP/1.1;
/// where one is known to speak HTTP/2, that comes first. Where nobody looks at the
/// bytes, a name that promises somebody who does comes last.
pub fn server_offers(port: Protocol) -> impl Iterator<Item = &'static str> {
    let general = (port == Protocol::Opaque).then_some(ANY);
    let plain = match port {
        Protocol::Http2 | Protocol::Grpc => ["h2", "http/1.1"],
        Protocol::Auto | Protocol::Http1 | Protocol::Opaque => ["http/1.1", "h2"],
    };
    let names = TABLE.iter().map(|row| row.name);
    let rest = names.filter(move |name| general != Some(*name));
    general.into_iter().chain(rest).chain(plain)
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
            for port in Protocol::ALL {
                let agreed = |name| server_offers(port).any(|own| own == name);
                assert!(offers.iter().all(|name| agreed(*name)));
            }
        }
    }

    #[test]
    fn a_client_that_offers_both_plain_names_gets_what_the_application_speaks() {
        for (port, expected) in [
            (Protocol::Auto, "http/1.1"),
            (Protocol::Http1, "http/1.1"),
            (Protocol::Opaque, "http/1.1"),
            (Protocol::Http2, "h2"),
            (Protocol::Grpc, "h2"),
        ] {
            let chosen = server_offers(port).find(|name| ["h2", "http/1.1"].contains(name));
            assert_eq!(chosen, Some(expected), "{port:?}");
        }
    }

    #[test]
    fn a_client_does_not_learn_that_bytes_are_http_from_a_proxy_that_does_not_look() {
        let chosen = |port| {
            let offers = client_offers(Protocol::Http1);
            server_offers(port).find(|name| offers.contains(name))
        };
        assert_eq!(
            inside(chosen(Protocol::Opaque).map(str::as_bytes)),
            Protocol::Auto
        );
        assert_eq!(
            inside(chosen(Protocol::Auto).map(str::as_bytes)),
            Protocol::Http1
        );
    }

    #[test]
    fn a_name_that_promises_a_preamble_is_never_mesh_traffic_of_ours() {
        assert_eq!(find(b"istio-peer-exchange"), None);
        for port in Protocol::ALL {
            assert!(server_offers(port).all(|name| name != "istio-peer-exchange"));
        }
    }
}
