//! What a connection is, by its first bytes.
//!
//! The bytes are looked at, never taken: whoever serves the connection reads
//! them again. Detection errs towards carrying bytes that nobody understands;
//! whether they may pass is for policy to say.

mod client_hello;

use std::io;
use std::time::Duration;

use bulkhead_core::protocol::Protocol;
use tokio::io::AsyncRead;
use tokio::time::timeout;

use crate::buffer::Buffered;

pub use client_hello::ClientHello;

/// How long the rest of a ClientHello is waited for once it has begun. A
/// post-quantum one takes two segments, and a lost segment comes again after
/// 200 ms or a few seconds.
const CLIENT_HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads, into the buffer, as many bytes as it takes to know what a connection
/// is. What is not known by the end of `within`, or of the client's sending, is
/// opaque, but for a ClientHello that has begun, which gets more time; a client
/// that said nothing at all is [`Sniff::More`].
///
/// # Errors
/// The connection broke, or ended before its first byte.
pub async fn first_bytes<S>(client: &mut Buffered<S>, within: Duration) -> io::Result<Sniff>
where
    S: AsyncRead + Unpin,
{
    if let Ok(known) = timeout(within, read_until_known(client)).await {
        return known;
    }
    if client_hello::has_begun(client.buffer.data())
        && let Ok(known) = timeout(CLIENT_HELLO_TIMEOUT, read_until_known(client)).await
    {
        return known;
    }
    Ok(if client.buffer.is_empty() {
        Sniff::More
    } else {
        Sniff::Opaque
    })
}

async fn read_until_known<S>(client: &mut Buffered<S>) -> io::Result<Sniff>
where
    S: AsyncRead + Unpin,
{
    loop {
        match sniff(client.buffer.data()) {
            Sniff::More => {}
            known => return Ok(known),
        }
        if client.fill().await? == 0 {
            return if client.buffer.is_empty() {
                Err(io::ErrorKind::UnexpectedEof.into())
            } else {
                Ok(Sniff::Opaque)
            };
        }
    }
}

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sniff {
    /// Too few bytes to say; at the end of detection, none at all.
    More,
    /// A whole TLS ClientHello.
    Tls(ClientHello),
    /// The connection preface of HTTP/2 (RFC 9113, 3.4).
    Http2,
    /// A request line of HTTP/1.
    Http1,
    /// Something else.
    Opaque,
}

impl Sniff {
    /// How a connection that may pass is forwarded.
    pub(crate) fn inside(self) -> Protocol {
        match self {
            Self::Http1 => Protocol::Http1,
            Self::Http2 => Protocol::Http2,
            Self::Tls(_) | Self::Opaque | Self::More => Protocol::Opaque,
        }
    }

    /// What a connection is on a port that somebody said speaks `protocol`. What is
    /// not HTTP on a port of HTTP is bad HTTP, for whoever reads that to refuse;
    /// carried as bytes, it would be a request to the server and to nobody before
    /// it. TLS there is the application's own.
    pub(crate) fn on_port_of(self, protocol: Protocol) -> Self {
        match (self, protocol) {
            (Self::Opaque | Self::More, Protocol::Http1) => Self::Http1,
            (Self::Opaque | Self::More, Protocol::Http2 | Protocol::Grpc) => Self::Http2,
            _ => self,
        }
    }
}

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest method that is taken for one of HTTP: `UPDATEREDIRECTREF` of
/// RFC 4437 has 17 letters.
const MAX_METHOD: usize = 24;
/// The longest request target that is looked through for the version behind it.
/// Longer ones are HTTP too; the head's own limit decides about them.
const MAX_TARGET: usize = 8 * 1024;

/// Looks at the first bytes of a connection.
pub fn sniff(bytes: &[u8]) -> Sniff {
    match bytes {
        [] => Sniff::More,
        [client_hello::HANDSHAKE_RECORD, ..] => client_hello::sniff(bytes),
        _ if bytes.starts_with(HTTP2_PREFACE) => Sniff::Http2,
        _ if HTTP2_PREFACE.starts_with(bytes) => Sniff::More,
        _ => sniff_http1(bytes),
    }
}

/// `METHOD SP target SP HTTP/1.x`: the version is looked for, because other
/// protocols (Redis' inline commands, SMTP) begin with a word and a space too.
fn sniff_http1(bytes: &[u8]) -> Sniff {
    // A client may send an empty line first (RFC 9112, 2.2).
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let method = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'))
        .count();
    if method > MAX_METHOD {
        return Sniff::Opaque;
    }
    match bytes.get(method) {
        None => return Sniff::More,
        Some(b' ') if method > 0 => {}
        Some(b'\n') if method == 0 && bytes.len() == 1 => return Sniff::More,
        Some(_) if bytes == b"\r" => return Sniff::More,
        Some(_) => return Sniff::Opaque,
    }
    let rest = &bytes[method + 1..];
    let target = rest
        .iter()
        .take_while(|byte| **byte > b' ' && **byte != 0x7f)
        .count();
    if target >= MAX_TARGET {
        return Sniff::Http1;
    }
    match &rest[target..] {
        [] => Sniff::More,
        [b' ', version @ ..] if version.starts_with(b"HTTP/1.") => Sniff::Http1,
        [b' ', version @ ..] if b"HTTP/1.".starts_with(version) => Sniff::More,
        _ => Sniff::Opaque,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[test]
    fn requests_of_every_kind_are_http() {
        for request in [
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.0\r\n",
            "\r\nGET / HTTP/1.1\r\n",
            "M-SEARCH * HTTP/1.1\r\n",
            "CONNECT example.com:443 HTTP/1.1\r\n",
            "PRI / HTTP/1.1\r\n",
        ] {
            assert_eq!(sniff(request.as_bytes()), Sniff::Http1, "{request:?}");
        }
        assert_eq!(sniff(HTTP2_PREFACE), Sniff::Http2);
    }

    #[test]
    fn what_only_looks_like_http_is_opaque() {
        for other in [
            "PING\r\n",
            "SET key value\r\n",
            "GET key\r\n",
            "EHLO mail.example.com\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "get / HTTP/1.1\r\n",
            " GET / HTTP/1.1\r\n",
            "GET / HTTP/2.0\r\n",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "\0\0\0\u{8}\u{4}",
        ] {
            assert_eq!(sniff(other.as_bytes()), Sniff::Opaque, "{other:?}");
        }
    }

    #[test]
    fn no_prefix_of_a_request_is_ever_taken_for_something_else() {
        for (whole, expected) in [
            (&b"POST /orders?id=1 HTTP/1.1"[..], Sniff::Http1),
            (HTTP2_PREFACE, Sniff::Http2),
        ] {
            for length in 0..whole.len() {
                let sniffed = sniff(&whole[..length]);
                assert!(
                    sniffed == Sniff::More || sniffed == expected,
                    "{length} bytes of {:?} are {sniffed:?}",
                    String::from_utf8_lossy(whole)
                );
            }
            assert_eq!(sniff(whole), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_client_hello_that_has_begun_gets_more_time() {
        let within = Duration::from_millis(100);
        let record = [&[22, 3, 1, 0, 4][..], &[1, 0, 0, 0]].concat();
        let rest_of_hello = Sniff::Tls(ClientHello { offers_mesh: false });
        for (bytes, first, expected) in [
            (&record[..], 7, rest_of_hello),
            (&record[..], 1, Sniff::Opaque),
            (b"GET / HTTP/1.1", 7, Sniff::Opaque),
            (b"GET / HTTP/1.1", 0, Sniff::More),
        ] {
            let (mut near, far) = tokio::io::duplex(64);
            let slow = async {
                near.write_all(&bytes[..first]).await.unwrap();
                tokio::time::sleep(within * 10).await;
                near.write_all(&bytes[first..]).await.unwrap();
                near
            };
            let mut far = Buffered::new(far);
            let (known, _near) = tokio::join!(first_bytes(&mut far, within), slow);
            assert_eq!(known.unwrap(), expected, "{first} bytes of {bytes:?}");
        }
    }

    #[test]
    fn a_port_of_http_takes_nothing_for_mere_bytes() {
        let tls = Sniff::Tls(ClientHello { offers_mesh: false });
        for (said, seen, expected) in [
            (Protocol::Http1, Sniff::Opaque, Sniff::Http1),
            (Protocol::Http1, Sniff::More, Sniff::Http1),
            (Protocol::Http1, Sniff::Http2, Sniff::Http2),
            (Protocol::Grpc, Sniff::Opaque, Sniff::Http2),
            (Protocol::Http2, Sniff::Http1, Sniff::Http1),
            (Protocol::Http1, tls, tls),
            (Protocol::Auto, Sniff::Opaque, Sniff::Opaque),
            (Protocol::Opaque, Sniff::Opaque, Sniff::Opaque),
        ] {
            assert_eq!(seen.on_port_of(said), expected, "{seen:?} on {said}");
        }
    }

    #[test]
    fn a_very_long_target_does_not_stay_undecided() {
        let request = format!("GET /{}", "a".repeat(MAX_TARGET));
        assert_eq!(sniff(request.as_bytes()), Sniff::Http1);
    }
}
