//! Where a body ends. Bodies are forwarded as they come; only the framing is
//! followed.

use std::fmt;

use super::head::{Framing, is_token};

/// The longest line of chunk framing or trailer that is accepted, in bytes.
const MAX_LINE: usize = 8 * 1024;
/// Trailers that would say anew where the message ends or for whom it is, to a server
/// that puts them among the headers (RFC 9110, 6.5.1).
const FORBIDDEN_TRAILERS: [&[u8]; 3] = [b"content-length", b"host", b"transfer-encoding"];
/// The longest trailer section, in bytes.
const MAX_TRAILERS: usize = 64 * 1024;

/// Follows one body through the bytes that carry it.
#[derive(Debug)]
pub enum Body {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Body {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// How many of the next bytes belong to the body. Where it is fewer than
    /// there are, the body is complete.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        match self {
            Self::Length(left) => {
                let count =
                    usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= count as u64;
                Ok(count)
            }
            Self::Chunked(chunks) => chunks.advance(bytes),
            Self::UntilClose => Ok(bytes.len()),
        }
    }

    /// Whether nothing more belongs to the body.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.state == State::Complete,
            Self::UntilClose => false,
        }
    }

    /// Whether the stream may end here.
    pub fn may_end(&self) -> bool {
        self.is_complete() || matches!(self, Self::UntilClose)
    }
}

/// The chunked transfer coding (RFC 9112, 7.1), followed byte by byte outside
/// the data and skipped inside it.
#[derive(Debug, Default)]
pub struct Chunks {
    state: State,
    /// Bytes of the framing line, or of all trailers, so far.
    length: usize,
    name: TrailerName,
}

/// The name of the trailer at hand, as far as it is looked at.
#[derive(Debug, Default)]
struct TrailerName {
    bytes: [u8; 18],
    length: usize,
}

impl TrailerName {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte.to_ascii_lowercase();
            self.length += 1;
        }
    }

    fn is_forbidden(&self) -> bool {
        FORBIDDEN_TRAILERS.contains(&&self.bytes[..self.length])
    }
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Start,
    Size(u64),
    Extension(u64),
    SizeFeed(u64),
    Data(u64),
    DataReturn,
    DataFeed,
    TrailerStart,
    TrailerName,
    Trailer,
    TrailerFeed,
    LastFeed,
    Complete,
}

impl Chunks {
    fn advance(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() {
            if let State::Data(left) = self.state {
                let there = bytes.len() - at;
                let count = usize::try_from(left).map_or(there, |left| left.min(there));
                at += count;
                self.state = match left - count as u64 {
                    0 => State::DataReturn,
                    left => State::Data(left),
                };
                continue;
            }
            if self.state == State::Complete {
                break;
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        self.length += 1;
        let in_trailers = matches!(
            self.state,
            State::TrailerStart
                | State::TrailerName
                | State::Trailer
                | State::TrailerFeed
                | State::LastFeed
        );
        if self.length > if in_trailers { MAX_TRAILERS } else { MAX_LINE } {
            return Err(ChunkError::TooLong);
        }
        let is_text = (byte >= b' ' && byte != 0x7f) || byte == b'\t';
        match (self.state, byte) {
            (State::Start, _) => Ok(State::Size(hex(byte).ok_or(ChunkError::Size)?)),
            (State::Size(size), b'\r') => Ok(State::SizeFeed(size)),
            (State::Size(size), b';') => Ok(State::Extension(size)),
            (State::Size(size), _) => {
                let digit = hex(byte).ok_or(ChunkError::Size)?;
                let size = size
                    .checked_mul(16)
                    .and_then(|size| size.checked_add(digit));
                size.map(State::Size).ok_or(ChunkError::Size)
            }
            (State::Extension(size), b'\r') => Ok(State::SizeFeed(size)),
            (State::Extension(size), _) if is_text => Ok(State::Extension(size)),
            (State::SizeFeed(size), b'\n') => {
                self.length = 0;
                Ok(match size {
                    0 => State::TrailerStart,
                    size => State::Data(size),
                })
            }
            (State::DataReturn, b'\r') => Ok(State::DataFeed),
            (State::DataFeed, b'\n') => {
                self.length = 0;
                Ok(State::Start)
            }
            (State::TrailerStart, b'\r') => Ok(State::LastFeed),
            // A line that is no field could be the next request to somebody who
            // does not read trailers.
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => {
                if self.state == State::TrailerStart {
                    self.name = TrailerName::default();
                }
                self.name.push(byte);
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') if self.name.is_forbidden() => Err(ChunkError::Trailer),
            (State::TrailerName, b':') => Ok(State::Trailer),
            (State::Trailer, _) if is_text => Ok(State::Trailer),
            (State::Trailer, b'\r') => Ok(State::TrailerFeed),
            (State::TrailerFeed, b'\n') => Ok(State::TrailerStart),
            (State::LastFeed, b'\n') => Ok(State::Complete),
            _ => Err(ChunkError::Line),
        }
    }
}

fn hex(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// Which rule of the chunked coding was broken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChunkError {
    Size,
    Line,
    Trailer,
    TooLong,
}

impl std::error::Error for ChunkError {}

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "a chunk's size is not a hexadecimal number (RFC 9112, 7.1)",
            Self::Line => "a line of the chunked coding is malformed (RFC 9112, 7.1)",
            Self::Trailer => {
                "a trailer says where the message ends or for whom it is (RFC 9110, 6.5.1)"
            }
            Self::TooLong => "a line of the chunked coding, or its trailers, are too long",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes belong to a chunked body that arrives in pieces of `size`.
    fn follow(bytes: &[u8], size: usize) -> Result<(usize, bool), ChunkError> {
        let mut body = Body::new(Framing::Chunked);
        let mut total = 0;
        for piece in bytes.chunks(size) {
            let count = body.advance(piece)?;
            total += count;
            if count < piece.len() {
                break;
            }
        }
        Ok((total, body.is_complete()))
    }

    #[test]
    fn a_chunked_body_ends_where_it_says_however_it_arrives() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A;name=\"v\"\r\n0123456789\r\n000\r\nTrailer: x\r\nOther: y\r\n\r\n",
        ] {
            let bytes = format!("{body}GET / HTTP/1.1\r\n");
            for size in 1..=bytes.len() {
                assert_eq!(
                    follow(bytes.as_bytes(), size),
                    Ok((body.len(), true)),
                    "{body:?}"
                );
            }
        }
    }

    #[test]
    fn bad_framing_is_refused() {
        for (body, error) in [
            ("\r\n", ChunkError::Size),
            ("-1\r\n", ChunkError::Size),
            ("0x5\r\n", ChunkError::Size),
            (" 5\r\n", ChunkError::Size),
            ("5 \r\n", ChunkError::Size),
            ("5\nhello", ChunkError::Size),
            ("10000000000000000\r\n", ChunkError::Size),
            ("5;a\nhello", ChunkError::Line),
            ("5\r\nhelloX\r\n", ChunkError::Line),
            ("5\r\nhello\n", ChunkError::Line),
            ("0\r\n\n", ChunkError::Line),
            ("0\r\n folded\r\n\r\n", ChunkError::Line),
            (
                "0\r\nA: b\r\nContent-Length: 5\r\n\r\n",
                ChunkError::Trailer,
            ),
            ("0\r\nTRANSFER-ENCODING: x\r\n\r\n", ChunkError::Trailer),
            ("0\r\nHost: x\r\n\r\n", ChunkError::Trailer),
            ("0\r\nA: b\nC: d\r\n\r\n", ChunkError::Line),
            ("0\r\n: b\r\n\r\n", ChunkError::Line),
            ("0\r\nGET / HTTP/1.1\r\n\r\n", ChunkError::Line),
        ] {
            assert_eq!(follow(body.as_bytes(), 3), Err(error), "{body:?}");
        }
        let long = format!("5;{}", "a".repeat(MAX_LINE));
        assert_eq!(follow(long.as_bytes(), 1000), Err(ChunkError::TooLong));
        let long = format!("0\r\n{}", "a: b\r\n".repeat(MAX_TRAILERS / 6 + 1));
        assert_eq!(follow(long.as_bytes(), 1000), Err(ChunkError::TooLong));
    }

    #[test]
    fn a_counted_body_ends_at_its_length() {
        let mut body = Body::new(Framing::Length(5));
        assert_eq!(body.advance(b"hel"), Ok(3));
        assert!(!body.is_complete());
        assert_eq!(body.advance(b"loGET"), Ok(2));
        assert!(body.is_complete());
    }
}
