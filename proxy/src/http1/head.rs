//! Heads of HTTP/1 messages, read once, in place, and in one way only.
//!
//! The head is forwarded as it came, so what is read here must be what every
//! server behind us reads. Where RFC 9112 lets a recipient be lenient (bare LF,
//! folded lines, repeated lengths), leniency is how two readers come to disagree
//! about where a message ends; all of it is refused.

use std::fmt;
use std::ops::Range;

use memchr::memchr_iter;

/// The end of a head in a growing buffer, found without looking at any byte
/// twice: a client that sends a byte at a time costs no more than one that does
/// not.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadEnd {
    looked_at: usize,
}

impl HeadEnd {
    /// The length of the head, its empty line included, once it is all there.
    ///
    /// Lines that end in a bare LF are seen as well, so that their head can be
    /// refused rather than waited for.
    pub fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        for offset in memchr_iter(b'\n', &bytes[self.looked_at..]) {
            let feed = self.looked_at + offset;
            let line_start = if bytes[..feed].ends_with(b"\r") {
                feed - 1
            } else {
                feed
            };
            // One empty line before the first line is not the end of anything.
            let begun = line_start > 2 || !bytes.starts_with(b"\r\n");
            if bytes[..line_start].ends_with(b"\n") && begun {
                return Some(feed + 1);
            }
        }
        self.looked_at = bytes.len();
        None
    }
}

/// How the end of a message's body is known (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// The connection's end; of responses only.
    UntilClose,
}

impl Framing {
    pub const NONE: Self = Self::Length(0);
}

/// What has to be known of a method to forward its request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    Head,
    Connect,
    /// Any other that may be repeated without harm (RFC 9110, 9.2.2).
    Idempotent,
    Other,
}

impl Method {
    fn from_token(token: &[u8]) -> Self {
        match token {
            b"HEAD" => Self::Head,
            b"CONNECT" => Self::Connect,
            b"GET" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE" => Self::Idempotent,
            _ => Self::Other,
        }
    }

    pub fn is_idempotent(self) -> bool {
        matches!(self, Self::Head | Self::Idempotent)
    }
}

/// What has to be known of a request to forward it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestHead {
    /// Bytes of the head, its empty line included.
    pub length: usize,
    pub method: Method,
    pub method_text: Range<usize>,
    pub target: Range<usize>,
    pub framing: Framing,
    /// Whether the client wants the connection kept after the response.
    pub keep_alive: bool,
    /// Whether the client says so in a Connection header.
    pub says_close: bool,
    pub is_http10: bool,
    pub upgrade: bool,
}

/// What has to be known of a response to forward it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResponseHead {
    pub length: usize,
    pub status: u16,
    /// As the headers say; a response to HEAD has no body whatever they say.
    pub framing: Framing,
    /// Whether the server keeps the connection, if the framing allows it.
    pub keep_alive: bool,
    pub says_close: bool,
}

/// Reads a whole request head, as found by [`HeadEnd`].
pub fn parse_request(head: &[u8]) -> Result<RequestHead, HeadError> {
    // One empty line before the request line is ignored (RFC 9112, 2.2).
    let skipped = if head.starts_with(b"\r\n") { 2 } else { 0 };
    let mut lines = Lines {
        rest: &head[skipped..],
    };
    let line = lines.next()?;
    let method_end = token_length(line);
    if method_end == 0 || line.get(method_end) != Some(&b' ') {
        return Err(HeadError::RequestLine);
    }
    let target_at = method_end + 1;
    let target_length = line[target_at..]
        .iter()
        .take_while(|byte| **byte > b' ' && **byte != 0x7f)
        .count();
    let is_http10 = match &line[target_at + target_length..] {
        b" HTTP/1.1" => false,
        b" HTTP/1.0" => true,
        _ => return Err(HeadError::RequestLine),
    };
    let target = &line[target_at..target_at + target_length];
    let method = Method::from_token(&line[..method_end]);
    check_target(method, target)?;

    let fields = Fields::read(&mut lines)?;
    let framing = fields.request_framing(is_http10)?;
    if method == Method::Connect && framing != Framing::NONE {
        // One server takes what follows for content, another for a request.
        return Err(HeadError::ConnectContent);
    }
    match fields.host {
        // A request must say whom it is for (RFC 9112, 3.2).
        None if !is_http10 => return Err(HeadError::Host),
        Some(host) => check_authority(method, target, host)?,
        None => {}
    }
    Ok(RequestHead {
        length: head.len(),
        method,
        method_text: skipped..skipped + method_end,
        target: skipped + target_at..skipped + target_at + target_length,
        framing,
        keep_alive: fields.keep_alive(is_http10),
        says_close: fields.close,
        is_http10,
        upgrade: fields.upgrade && fields.connection_upgrade && !is_http10,
    })
}

/// Reads a whole response head, as found by [`HeadEnd`].
pub fn parse_response(head: &[u8]) -> Result<ResponseHead, HeadError> {
    let mut lines = Lines { rest: head };
    let line = lines.next()?;
    let (is_http10, rest) = match line.split_at_checked(9) {
        Some((b"HTTP/1.1 ", rest)) => (false, rest),
        Some((b"HTTP/1.0 ", rest)) => (true, rest),
        _ => return Err(HeadError::StatusLine),
    };
    let (digits, reason) = rest.split_at_checked(3).ok_or(HeadError::StatusLine)?;
    // A server may leave out the space when it leaves out the phrase.
    if !(reason.is_empty() || reason[0] == b' ') || !reason.iter().all(|byte| is_text(*byte)) {
        return Err(HeadError::StatusLine);
    }
    let status = decimal(digits)
        .filter(|status| (100..=999).contains(status))
        .and_then(|status| u16::try_from(status).ok())
        .ok_or(HeadError::StatusLine)?;

    let fields = Fields::read(&mut lines)?;
    let framing = match status {
        100..=199 | 204 | 304 => Framing::NONE,
        _ => fields.response_framing(is_http10)?,
    };
    Ok(ResponseHead {
        length: head.len(),
        status,
        framing,
        keep_alive: fields.keep_alive(is_http10),
        says_close: fields.close,
    })
}

/// Writes `head` to `out` without the Connection header lines and with `added`
/// lines (each with its CRLF) in their place.
pub fn replace_connection(head: &[u8], added: &[u8], out: &mut Vec<u8>) {
    out.reserve(head.len() + added.len());
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        if line == b"\r\n" && !out.is_empty() {
            break;
        }
        if !name_is(line, b"connection") {
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(added);
    out.extend_from_slice(b"\r\n");
}

/// A head without the lines of one header.
pub fn without(head: &[u8], name: &[u8]) -> Vec<u8> {
    let lines = head.split_inclusive(|byte| *byte == b'\n');
    let kept = lines.filter(|line| !name_is(line, name));
    kept.flatten().copied().collect()
}

fn name_is(line: &[u8], name: &[u8]) -> bool {
    line.split_at_checked(name.len())
        .is_some_and(|(start, rest)| start.eq_ignore_ascii_case(name) && rest.starts_with(b":"))
}

/// Origin, absolute, authority and asterisk form (RFC 9112, 3.2). What a path means
/// is for the server to say, and none is changed; but where a fragment is there,
/// which no form has, some servers cut it off and others take it for the path.
fn check_target(method: Method, target: &[u8]) -> Result<(), HeadError> {
    let fits = match method {
        Method::Connect => !target.is_empty() && is_host(target),
        _ if target.contains(&b'#') => false,
        _ => target.starts_with(b"/") || target == b"*" || authority(target).is_some_and(is_host),
    };
    if fits { Ok(()) } else { Err(HeadError::Target) }
}

/// The authority of a target in absolute form.
fn authority(target: &[u8]) -> Option<&[u8]> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start
            .eq_ignore_ascii_case(scheme.as_bytes())
            .then_some(rest)
    })?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    Some(&rest[..end.unwrap_or(rest.len())]).filter(|authority| !authority.is_empty())
}

/// A target that names another host than the Host header would mean one thing to
/// policy and another to the server.
fn check_authority(method: Method, target: &[u8], host: &[u8]) -> Result<(), HeadError> {
    let named = match method {
        Method::Connect => Some(target),
        _ => authority(target),
    };
    match named {
        Some(named) if !named.eq_ignore_ascii_case(host) => Err(HeadError::Host),
        _ => Ok(()),
    }
}

/// The lines of a head, each without its CRLF.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a [u8], HeadError> {
        let feed = memchr::memchr(b'\n', self.rest).ok_or(HeadError::LineEnd)?;
        let line = self.rest[..feed]
            .strip_suffix(b"\r")
            .ok_or(HeadError::LineEnd)?;
        self.rest = &self.rest[feed + 1..];
        Ok(line)
    }
}

/// What the header fields say about framing and the connection.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    connection_upgrade: bool,
}

impl<'a> Fields<'a> {
    fn read(lines: &mut Lines<'a>) -> Result<Self, HeadError> {
        let mut fields = Self::default();
        loop {
            let line = lines.next()?;
            if line.is_empty() {
                return Ok(fields);
            }
            if matches!(line[0], b' ' | b'\t') {
                return Err(HeadError::FoldedLine);
            }
            let name_length = token_length(line);
            if name_length == 0 || line.get(name_length) != Some(&b':') {
                return Err(HeadError::FieldName);
            }
            let (name, value) = (&line[..name_length], &line[name_length + 1..]);
            if !value.iter().all(|byte| is_text(*byte)) {
                return Err(HeadError::FieldValue);
            }
            fields.note(name, value.trim_ascii())?;
        }
    }

    fn note(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), HeadError> {
        // The length is compared first: nearly every header is passed over at
        // the price of one comparison.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host")
                && (self.host.replace(value).is_some() || !is_host(value)) =>
            {
                return Err(HeadError::Host);
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|byte| *byte == b',') {
                    self.note_connection_option(option.trim_ascii())?;
                }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = decimal(value).ok_or(HeadError::ContentLength)?;
                // Also where both are the same: the server behind us may take
                // the other one.
                if self.content_length.replace(length).is_some() {
                    return Err(HeadError::ContentLength);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::TransferEncoding);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn note_connection_option(&mut self, option: &[u8]) -> Result<(), HeadError> {
        if option.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if option.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            self.connection_upgrade = true;
        } else if ["host", "content-length", "transfer-encoding"]
            .iter()
            .any(|name| option.eq_ignore_ascii_case(name.as_bytes()))
        {
            // Whoever obeys would remove what the framing depends on.
            return Err(HeadError::ConnectionOption);
        }
        Ok(())
    }

    fn keep_alive(&self, is_http10: bool) -> bool {
        !self.close && (!is_http10 || self.keep_alive)
    }

    fn request_framing(&self, is_http10: bool) -> Result<Framing, HeadError> {
        match (self.chunked, self.content_length) {
            (true, Some(_)) => Err(HeadError::TwoLengths),
            (true, None) if is_http10 => Err(HeadError::TransferEncoding),
            (true, None) => Ok(Framing::Chunked),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }

    fn response_framing(&self, is_http10: bool) -> Result<Framing, HeadError> {
        match (self.chunked, self.content_length) {
            (false, None) => Ok(Framing::UntilClose),
            _ => self.request_framing(is_http10),
        }
    }
}

/// The length of the token (RFC 9110, 5.6.2) that `bytes` begins with.
fn token_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| is_token(**byte)).count()
}

pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte that may stand in a field's value: anything but control characters,
/// with the tab excepted.
fn is_text(byte: u8) -> bool {
    (byte >= b' ' && byte != 0x7f) || byte == b'\t'
}

/// An empty Host is right where the target has no authority (RFC 9110, 7.2).
pub(crate) fn is_host(value: &[u8]) -> bool {
    value
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=:[]%".contains(byte))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Which rule a head breaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeadError {
    LineEnd,
    RequestLine,
    StatusLine,
    Target,
    Host,
    FieldName,
    FieldValue,
    FoldedLine,
    ContentLength,
    TransferEncoding,
    TwoLengths,
    ConnectionOption,
    ConnectContent,
}

impl std::error::Error for HeadError {}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LineEnd => "a line ends otherwise than with CRLF (RFC 9112, 2.2)",
            Self::RequestLine => "the request line is not METHOD TARGET HTTP/1.x (RFC 9112, 3)",
            Self::StatusLine => "the status line is not HTTP/1.x CODE PHRASE (RFC 9112, 4)",
            Self::Target => "the request target has none of the four forms (RFC 9112, 3.2)",
            Self::Host => {
                "Host is missing, repeated, malformed or at odds with the target (RFC 9112, 3.2)"
            }
            Self::FieldName => "a header's name is not a token followed by a colon (RFC 9112, 5.1)",
            Self::FieldValue => "a header's value has a control character (RFC 9110, 5.5)",
            Self::FoldedLine => "a header is folded over several lines (RFC 9112, 5.2)",
            Self::ContentLength => "Content-Length is repeated or not a number (RFC 9112, 6.3)",
            Self::TransferEncoding => "Transfer-Encoding is other than chunked (RFC 9112, 6.1)",
            Self::TwoLengths => {
                "Content-Length and Transfer-Encoding are both there (RFC 9112, 6.1)"
            }
            Self::ConnectionOption => {
                "Connection names a header that the message's framing depends on (RFC 9110, 7.6.1)"
            }
            Self::ConnectContent => "CONNECT has content (RFC 9110, 9.3.6)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Result<RequestHead, HeadError> {
        assert_eq!(HeadEnd::default().find(head.as_bytes()), Some(head.len()));
        parse_request(head.as_bytes())
    }

    fn response(head: &str) -> Result<ResponseHead, HeadError> {
        parse_response(head.as_bytes())
    }

    #[test]
    fn an_ordinary_request_is_read() {
        let head = "POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\nX:\t y \r\n\r\n";
        let request = request(head).unwrap();
        assert_eq!(request.framing, Framing::Length(12));
        assert_eq!(&head[request.target.clone()], "/a?b");
        assert_eq!(&head[request.method_text.clone()], "POST");
        assert!(request.keep_alive && !request.upgrade);
        assert_eq!(request.method, Method::Other);
    }

    #[test]
    fn old_clients_are_served() {
        let plain = request("GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(!plain.keep_alive && plain.is_http10);
        let kept = request("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap();
        assert!(kept.keep_alive);
    }

    #[test]
    fn connection_options_are_read_in_any_case_and_from_lists() {
        let get = |line: &str| request(&format!("GET / HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n"));
        assert!(!get("Connection: foo, CLOSE").unwrap().keep_alive);
        assert!(
            get("Connection: upgrade\r\nUpgrade: websocket")
                .unwrap()
                .upgrade
        );
        assert!(!get("Upgrade: websocket").unwrap().upgrade);
    }

    #[test]
    fn every_way_to_read_a_request_twice_is_refused() {
        for (lines, error) in [
            ("GET / HTTP/1.1\nHost: x\n", HeadError::LineEnd),
            ("GET / HTTP/1.1\r\nHost: x\nA: b\r\n", HeadError::LineEnd),
            ("GET  / HTTP/1.1\r\nHost: x\r\n", HeadError::RequestLine),
            ("GET / HTTP/1.1 \r\nHost: x\r\n", HeadError::RequestLine),
            ("GET / HTTP/1.2\r\nHost: x\r\n", HeadError::RequestLine),
            ("GET / http/1.1\r\nHost: x\r\n", HeadError::RequestLine),
            ("GET /\r\n", HeadError::RequestLine),
            (" GET / HTTP/1.1\r\nHost: x\r\n", HeadError::RequestLine),
            ("GET x HTTP/1.1\r\nHost: x\r\n", HeadError::Target),
            ("GET /a#b HTTP/1.1\r\nHost: x\r\n", HeadError::Target),
            ("GET http://a@b/ HTTP/1.0\r\n", HeadError::Target),
            ("CONNECT /x HTTP/1.1\r\nHost: x\r\n", HeadError::Target),
            ("CONNECT a@b:1 HTTP/1.0\r\n", HeadError::Target),
            ("GET / HTTP/1.1\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: x/y\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a b\r\n", HeadError::Host),
            ("GET http://y/ HTTP/1.1\r\nHost: x\r\n", HeadError::Host),
            ("CONNECT y:1 HTTP/1.1\r\nHost: x:1\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost : x\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\n: x\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\nHo st: x\r\n", HeadError::FieldName),
            (
                "GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n",
                HeadError::FieldValue,
            ),
            (
                "GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n",
                HeadError::FieldValue,
            ),
            (
                "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n",
                HeadError::FoldedLine,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n",
                HeadError::ContentLength,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n",
                HeadError::ContentLength,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n",
                HeadError::ContentLength,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n",
                HeadError::ContentLength,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n",
                HeadError::ContentLength,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\ncontent-length: 5\r\n",
                HeadError::ContentLength,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n",
                HeadError::TransferEncoding,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n",
                HeadError::TransferEncoding,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n",
                HeadError::TransferEncoding,
            ),
            (
                "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
                HeadError::TransferEncoding,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                HeadError::TwoLengths,
            ),
            (
                "POST / HTTP/1.1\r\nHost: x\r\nConnection: close, Content-Length\r\n",
                HeadError::ConnectionOption,
            ),
            (
                "CONNECT y:1 HTTP/1.1\r\nHost: y:1\r\nContent-Length: 5\r\n",
                HeadError::ConnectContent,
            ),
        ] {
            let end = if lines.contains("\r\n") { "\r\n" } else { "\n" };
            assert_eq!(request(&format!("{lines}{end}")), Err(error), "{lines:?}");
        }
    }

    #[test]
    fn responses_are_framed_by_status_and_headers() {
        for (head, framing, keep_alive) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
                Framing::Length(3),
                true,
            ),
            (
                "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n",
                Framing::Chunked,
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Framing::UntilClose, true),
            ("HTTP/1.1 204 No Content\r\n\r\n", Framing::NONE, true),
            (
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
                Framing::NONE,
                true,
            ),
            ("HTTP/1.1 100 Continue\r\n\r\n", Framing::NONE, true),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n",
                Framing::Length(3),
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                Framing::NONE,
                false,
            ),
        ] {
            let response = response(head).unwrap();
            assert_eq!(
                (response.framing, response.keep_alive),
                (framing, keep_alive),
                "{head:?}"
            );
        }
    }

    #[test]
    fn a_response_that_could_be_read_twice_is_refused() {
        for (head, error) in [
            ("HTTP/1.1 20 OK\r\n\r\n", HeadError::StatusLine),
            ("HTTP/1.1 099 OK\r\n\r\n", HeadError::StatusLine),
            ("HTTP/1.1 2000 OK\r\n\r\n", HeadError::StatusLine),
            ("HTTP/2 200 OK\r\n\r\n", HeadError::StatusLine),
            ("HTTP/1.1 200 O\0K\r\n\r\n", HeadError::StatusLine),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                HeadError::ContentLength,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
                HeadError::TwoLengths,
            ),
        ] {
            assert_eq!(response(head).unwrap_err(), error, "{head:?}");
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_however_it_arrives() {
        let bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nbody";
        let mut end = HeadEnd::default();
        for length in 0..bytes.len() - 4 {
            assert_eq!(end.find(&bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(end.find(bytes), Some(bytes.len() - 4));
        assert_eq!(HeadEnd::default().find(b"\r\nGET / HTTP/1.1\r\n"), None);
        assert_eq!(HeadEnd::default().find(b"\r\n\r\n\r\n"), Some(6));
        assert_eq!(HeadEnd::default().find(b"a\n\n"), Some(3));
    }

    #[test]
    fn the_connection_header_is_replaced_and_nothing_else_changes() {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\nCONNECTION: close\r\nConnections: 1\r\n\r\n";
        let mut out = Vec::new();
        replace_connection(head, b"connection: upgrade\r\n", &mut out);
        let expected =
            b"GET / HTTP/1.1\r\nHost: x\r\nConnections: 1\r\nconnection: upgrade\r\n\r\n";
        assert_eq!(out, expected);
    }
}
