//! The one question asked of a TLS ClientHello (RFC 8446, 4.1.2): does it offer
//! a mesh protocol name?
//!
//! A ClientHello with a post-quantum key share is longer than a segment, and may
//! be split over several records, so the bytes come in any pieces.

use bulkhead_core::alpn;

use super::Sniff;

/// The first byte of a record that carries handshake messages.
pub(super) const HANDSHAKE_RECORD: u8 = 22;
/// Bytes of a record's header: type, legacy version, length.
const RECORD_HEADER: usize = 5;
const CLIENT_HELLO: u8 = 1;
const ALPN_EXTENSION: u16 = 16;
/// The longest record payload that TLS allows (RFC 8446, 5.1).
const MAX_RECORD: usize = 16 * 1024;
/// The longest ClientHello that is waited for, with the headers of its records.
/// Real ones have 2 kB, or a little more with two post-quantum shares.
const MAX_CLIENT_HELLO: usize = 32 * 1024;

/// What a whole ClientHello says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientHello {
    /// Whether it offers a name of [`bulkhead_core::alpn::TABLE`].
    pub offers_mesh: bool,
}

/// Whether bytes that are not known yet have a record's header: what else begins
/// so is hard to imagine.
pub(super) fn has_begun(bytes: &[u8]) -> bool {
    bytes.len() >= RECORD_HEADER && bytes[0] == HANDSHAKE_RECORD
}

pub(super) fn sniff(bytes: &[u8]) -> Sniff {
    // Whatever arrives, all of it is looked through again, record by record: a
    // client that sends a byte of payload in each must not make that dear.
    let unfinished = if bytes.len() < MAX_CLIENT_HELLO {
        Sniff::More
    } else {
        Sniff::Opaque
    };
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        let (header, tail) = match rest.split_at_checked(RECORD_HEADER) {
            Some(split) => split,
            None if is_record_header_prefix(rest) => return unfinished,
            None => return Sniff::Opaque,
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if !is_record_header_prefix(header) || length == 0 || length > MAX_RECORD {
            return Sniff::Opaque;
        }
        let (payload, tail) = tail.split_at(length.min(tail.len()));
        message.extend_from_slice(payload);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Sniff::Opaque;
        }
        if let Some(needed) = message_length(&message) {
            if needed > MAX_CLIENT_HELLO {
                return Sniff::Opaque;
            }
            if let Some(hello) = message.get(4..needed) {
                // A broken ClientHello is TLS all the same: whoever terminates
                // it will say what is wrong with it.
                let offers_mesh = offers_mesh(hello).unwrap_or(false);
                return Sniff::Tls(ClientHello { offers_mesh });
            }
        }
        if payload.len() < length {
            return unfinished;
        }
        rest = tail;
    }
}

fn is_record_header_prefix(bytes: &[u8]) -> bool {
    // Type, then the legacy version: always major version 3.
    bytes
        .iter()
        .zip([HANDSHAKE_RECORD, 3])
        .all(|(byte, expected)| *byte == expected)
}

/// The length of a handshake message with its own header, once that is there.
fn message_length(message: &[u8]) -> Option<usize> {
    let header = message.get(..4)?;
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]);
    Some(4 + usize::try_from(length).ok()?)
}

/// Walks a ClientHello to its ALPN extension; nothing where it is malformed.
fn offers_mesh(hello: &[u8]) -> Option<bool> {
    let mut hello = Reader(hello);
    hello.take(2 + 32)?; // legacy version, random
    hello.block(1)?; // session ID
    hello.block(2)?; // cipher suites
    hello.block(1)?; // compression methods
    let mut extensions = Reader(hello.block(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let extension = extensions.block(2)?;
        if kind == usize::from(ALPN_EXTENSION) {
            let mut names = Reader(Reader(extension).block(2)?);
            while !names.0.is_empty() {
                if alpn::find(names.block(1)?).is_some() {
                    return Some(true);
                }
            }
            return Some(false);
        }
    }
    Some(false)
}

/// Reads TLS's length-prefixed structures; nothing past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A big-endian number of `width` bytes.
    fn number(&mut self, width: usize) -> Option<usize> {
        let bytes = self.take(width)?;
        Some(
            bytes
                .iter()
                .fold(0, |number, byte| number << 8 | usize::from(*byte)),
        )
    }

    /// Bytes behind a length of `width` bytes.
    fn block(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.number(width)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    /// What rustls sends first, with these names.
    fn client_hello(names: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = "cart.shop.svc".try_into().unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of `size` bytes.
    fn in_records(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut records = Vec::new();
        for piece in bytes[5..].chunks(size) {
            records.extend_from_slice(&bytes[..3]);
            records.extend_from_slice(&u16::try_from(piece.len()).unwrap().to_be_bytes());
            records.extend_from_slice(piece);
        }
        records
    }

    #[test]
    fn a_mesh_name_marks_mesh_traffic_and_no_other_does() {
        for (names, offers_mesh) in [
            (&["istio-h2", "istio", "h2"][..], true),
            (&["istio"], true),
            (&["http/1.1", "istio-http/1.1"], true),
            (&["h2", "http/1.1"], false),
            (&["istio-peer-exchange"], false),
            (&["istio-something-new"], false),
            (&[], false),
        ] {
            let hello = Sniff::Tls(ClientHello { offers_mesh });
            assert_eq!(sniff(&client_hello(names)), hello, "{names:?}");
        }
    }

    #[test]
    fn every_shorter_piece_of_a_client_hello_asks_for_more() {
        let bytes = client_hello(&["istio"]);
        assert!(bytes.len() > 1200, "a post-quantum share makes it long");
        for length in 1..bytes.len() {
            assert_eq!(sniff(&bytes[..length]), Sniff::More, "{length} bytes");
        }
    }

    #[test]
    fn a_client_hello_may_be_split_over_many_records() {
        let bytes = client_hello(&["istio"]);
        for size in [1, 3, 4, 5, 100, 1000] {
            let records = in_records(&bytes, size);
            let hello = Sniff::Tls(ClientHello { offers_mesh: true });
            assert_eq!(sniff(&records), hello, "records of {size}");
            assert_eq!(sniff(&records[..records.len() - 1]), Sniff::More);
        }
    }

    #[test]
    fn other_bytes_that_begin_like_a_record_are_opaque() {
        for bytes in [
            &[22, 2, 0, 0, 5][..],
            &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0xff, 0xff],
            &[22, 3, 1, 0, 5, 2, 0, 0, 1, 0],
            &[22, 3, 1, 0, 5, 1, 0xff, 0xff, 0xff, 0],
        ] {
            assert_eq!(sniff(bytes), Sniff::Opaque, "{bytes:?}");
        }
    }

    #[test]
    fn a_client_hello_in_endless_tiny_records_is_not_waited_for() {
        let promise = [1, 0, 0x7f, 0];
        let mut bytes = Vec::new();
        for payload in promise.into_iter().chain(std::iter::repeat_n(0, 6_000)) {
            bytes.extend_from_slice(&[22, 3, 1, 0, 1, payload]);
        }
        assert_eq!(sniff(&bytes[..MAX_CLIENT_HELLO - 1]), Sniff::More);
        assert_eq!(sniff(&bytes), Sniff::Opaque);
    }

    #[test]
    fn lies_about_lengths_are_survived() {
        let bytes = client_hello(&["istio"]);
        for position in 5..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[position] = value;
                sniff(&bytes);
            }
        }
    }
}
