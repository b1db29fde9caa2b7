//! What a stranger can read in recorded TLS (RFC 8446): the two hellos, and the
//! beginning of a record.

use anyhow::Context as _;
use rustls::server::Acceptor;

const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;

pub(super) const TLS_1_3: u16 = 0x0304;

/// The protocol names that a client offers in the clear.
pub(super) fn offered_protocols(from_client: &[u8]) -> anyhow::Result<Vec<String>> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut &from_client[..])?;
    let accepted = acceptor
        .accept()
        .map_err(|(error, _)| error)
        .context("expected the client to begin with a TLS ClientHello")?
        .context("the ClientHello is not whole")?;
    let hello = accepted.client_hello();
    let names = hello.alpn().into_iter().flatten();
    Ok(names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

/// What a server chose, in the clear.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct ServerHello {
    /// By the extension, which TLS 1.3 alone has.
    pub(super) version: Option<u16>,
    /// The group of the key exchange, by its number (IANA).
    pub(super) group: Option<u16>,
}

impl ServerHello {
    /// Nothing where the server did not begin with one.
    pub(super) fn read(from_server: &[u8]) -> Option<Self> {
        let (kind, payload) = records(from_server).next()?;
        let mut message = Reader(payload);
        if kind != HANDSHAKE || message.number(1)? != usize::from(SERVER_HELLO) {
            return None;
        }
        let mut body = Reader(message.block(3)?);
        body.take(2 + 32)?; // legacy version, random
        body.block(1)?; // session ID
        body.take(2 + 1)?; // cipher suite, compression method
        let mut extensions = Reader(body.block(2)?);
        let mut hello = Self::default();
        while !extensions.0.is_empty() {
            let kind = extensions.number(2)?;
            let first = Reader(extensions.block(2)?).number(2);
            let number = first.and_then(|number| u16::try_from(number).ok());
            if kind == usize::from(SUPPORTED_VERSIONS) {
                hello.version = number;
            } else if kind == usize::from(KEY_SHARE) {
                hello.group = number;
            }
        }
        Some(hello)
    }

    /// The group as people call it.
    pub(super) fn group_name(&self) -> String {
        match self.group {
            Some(0x11ec) => "X25519MLKEM768 (post-quantum)".to_owned(),
            Some(0x001d) => "X25519".to_owned(),
            Some(0x0017) => "P-256".to_owned(),
            Some(number) => format!("group {number:#06x}"),
            None => "no group".to_owned(),
        }
    }
}

/// The first bytes of the last record of application data, in hexadecimal.
pub(super) fn glimpse(bytes: &[u8], length: usize) -> Option<String> {
    let (_, payload) = records(bytes)
        .filter(|(kind, _)| *kind == APPLICATION_DATA)
        .last()?;
    let shown: Vec<_> = payload
        .iter()
        .take(length)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Some(shown.join(" "))
}

/// The whole records: the type and the payload of each.
fn records(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = Reader(bytes);
    std::iter::from_fn(move || {
        let kind = u8::try_from(rest.number(1)?).ok()?;
        rest.take(2)?; // legacy version
        Some((kind, rest.block(2)?))
    })
}

/// Reads TLS's length-prefixed structures; nothing past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A big-endian number of so many bytes.
    fn number(&mut self, size: usize) -> Option<usize> {
        let bytes = self.take(size)?;
        Some(
            bytes
                .iter()
                .fold(0, |number, byte| number << 8 | usize::from(*byte)),
        )
    }

    /// A block behind a length of so many bytes.
    fn block(&mut self, size: usize) -> Option<&'a [u8]> {
        let length = self.number(size)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 1.3 with group 0x11ec, then a record of application data.
    fn answer() -> Vec<u8> {
        let extensions = [
            &[0, 43, 0, 2, 3, 4][..],
            &[0, 51, 0, 6, 0x11, 0xec, 0, 2, 9, 9],
        ]
        .concat();
        let body = [
            &[3, 3][..],
            &[7; 32],
            &[0],
            &[0x13, 1, 0],
            &[0, 16],
            &extensions,
        ]
        .concat();
        let length = u8::try_from(body.len()).unwrap();
        [
            &[22, 3, 3, 0, length + 4, 2, 0, 0, length][..],
            &body,
            &[23, 3, 3, 0, 3, 0xab, 0xcd, 0xef],
        ]
        .concat()
    }

    #[test]
    fn the_servers_choice_is_read_from_its_extensions() {
        let hello = ServerHello::read(&answer()).unwrap();
        assert_eq!(hello.version, Some(TLS_1_3));
        assert_eq!(hello.group_name(), "X25519MLKEM768 (post-quantum)");
        assert_eq!(glimpse(&answer(), 2).unwrap(), "ab cd");
    }

    #[test]
    fn what_is_cut_or_not_tls_is_nothing() {
        let answer = answer();
        let whole = answer.len() - 8;
        for length in 0..whole {
            assert_eq!(ServerHello::read(&answer[..length]), None, "{length}");
        }
        assert_eq!(ServerHello::read(b"HTTP/1.1 200 OK\r\n"), None);
        assert!(offered_protocols(b"GET / HTTP/1.1\r\n\r\n").is_err());
    }
}
