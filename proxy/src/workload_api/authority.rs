//! Calls whose `:authority` is the path of the socket.
//!
//! A client of gRPC's C core (Python, C++, Ruby) calls `unix:///run/api.sock` with
//! the `:authority` `run%2Fapi.sock`; those of Java and Swift have such forms too.
//! None of them is the host that RFC 9110, 4.2.3 has there, so that h2 takes the
//! call for malformed and offers no way to be told otherwise. Nobody here looks at
//! the value: on this socket, and before h2 reads them, the bytes in it that no host
//! has are written as others.
//!
//! ```text
//!  socket ──▶ Reader ──▶ hyper, h2
//!               └─ Rewriter: frames ──▶ fields: where a value is, by the lengths
//! ```
//!
//! Nothing is decoded, kept or made longer, and what both sides keep of earlier
//! fields (RFC 7541, 2.3) stays the same. Whatever is not HTTP/2 as RFC 9113 has it
//! passes as it is from there on: what is to become of it, h2 says.

mod fields;
#[cfg(test)]
mod tests;

use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use fields::Fields;

/// What a client says first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// RFC 9113, 4.1.
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 0x01;
const CONTINUATION: u8 = 0x09;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// What the flag PRIORITY puts before the fields (RFC 9113, 6.2).
const PRIORITY_LENGTH: u32 = 5;

/// Reads a connection of which each `:authority` is such as h2 takes.
pub(super) struct Reader<R> {
    inner: R,
    rewriter: Rewriter,
}

impl<R> Reader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            rewriter: Rewriter::default(),
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Reader<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        this.rewriter.rewrite(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

/// Follows what one client sends, however it is cut.
#[derive(Debug, Default)]
pub struct Rewriter {
    state: State,
    fields: Fields,
    /// The stream whose fields go on in the next frame (RFC 9113, 6.10).
    unfinished: Option<u32>,
}

#[derive(Debug)]
enum State {
    Preface {
        seen: usize,
    },
    Head {
        bytes: [u8; FRAME_HEAD],
        seen: usize,
    },
    /// The first byte of a padded frame is next.
    PadLength {
        head: Head,
    },
    Payload {
        payload: Payload,
    },
    /// Not understood; so is all that follows.
    Lost,
}

impl Default for State {
    fn default() -> Self {
        Self::Preface { seen: 0 }
    }
}

impl State {
    const HEAD: Self = Self::Head {
        bytes: [0; FRAME_HEAD],
        seen: 0,
    };
}

#[derive(Clone, Copy, Debug)]
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// What a frame has yet to bring, in bytes and in this order.
#[derive(Clone, Copy, Debug)]
struct Payload {
    before: u32,
    fields: u32,
    after: u32,
}

impl Payload {
    fn of_other_frame(length: u32) -> Self {
        Self {
            before: length,
            fields: 0,
            after: 0,
        }
    }

    /// Of HEADERS with `length` bytes left, of which the last are padding; nothing
    /// if they cannot be.
    fn of_headers(head: Head, length: u32, padding: u32) -> Option<Self> {
        let before = if head.flags & PRIORITY == 0 {
            0
        } else {
            PRIORITY_LENGTH
        };
        Some(Self {
            before,
            fields: length.checked_sub(before)?.checked_sub(padding)?,
            after: padding,
        })
    }
}

impl Rewriter {
    /// Takes the next bytes, and leaves them as they are to be read.
    pub fn rewrite(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let state = mem::replace(&mut self.state, State::Lost);
            let (state, taken) = self.step(state, bytes);
            self.state = state;
            bytes = &mut bytes[taken..];
        }
    }

    /// The next state, and how many of the bytes, which are some, led there.
    fn step(&mut self, state: State, bytes: &mut [u8]) -> (State, usize) {
        match state {
            State::Preface { seen } if bytes[0] != PREFACE[seen] => (State::Lost, 1),
            State::Preface { seen } if seen + 1 == PREFACE.len() => (State::HEAD, 1),
            State::Preface { seen } => (State::Preface { seen: seen + 1 }, 1),
            State::Head {
                bytes: mut head,
                seen,
            } => {
                head[seen] = bytes[0];
                let seen = seen + 1;
                let state = if seen < FRAME_HEAD {
                    State::Head { bytes: head, seen }
                } else {
                    self.start(head)
                };
                (state, 1)
            }
            State::PadLength { head } => {
                let padding = u32::from(bytes[0]);
                let payload = Payload::of_headers(head, head.length - 1, padding);
                (self.enter(payload), 1)
            }
            State::Payload { payload } => self.follow(payload, bytes),
            State::Lost => (State::Lost, bytes.len()),
        }
    }

    /// Looks at the head of a frame.
    fn start(&mut self, bytes: [u8; FRAME_HEAD]) -> State {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        let head = Head {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            // The first bit means nothing.
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        };
        let payload = match (head.kind, self.unfinished) {
            (CONTINUATION, Some(stream)) if stream == head.stream => {
                self.unfinished = head.unfinished();
                Payload {
                    before: 0,
                    fields: head.length,
                    after: 0,
                }
            }
            // Nothing may come between the frames of one block of fields.
            (CONTINUATION, _) | (_, Some(_)) => return State::Lost,
            (HEADERS, None) => {
                self.fields = Fields::default();
                self.unfinished = head.unfinished();
                if head.flags & PADDED != 0 {
                    return if head.length == 0 {
                        State::Lost
                    } else {
                        State::PadLength { head }
                    };
                }
                return self.enter(Payload::of_headers(head, head.length, 0));
            }
            (_, None) => Payload::of_other_frame(head.length),
        };
        self.enter(Some(payload))
    }

    fn enter(&self, payload: Option<Payload>) -> State {
        match payload {
            None => State::Lost,
            Some(Payload {
                before: 0,
                fields: 0,
                after: 0,
            }) if self.unfinished.is_none() && !self.fields.is_whole() => State::Lost,
            Some(Payload {
                before: 0,
                fields: 0,
                after: 0,
            }) => State::HEAD,
            Some(payload) => State::Payload { payload },
        }
    }

    fn follow(&mut self, mut payload: Payload, bytes: &mut [u8]) -> (State, usize) {
        let part = if payload.before > 0 {
            &mut payload.before
        } else if payload.fields > 0 {
            let length = at_most(payload.fields, bytes);
            if !self.fields.rewrite(&mut bytes[..length]) {
                return (State::Lost, length);
            }
            &mut payload.fields
        } else {
            &mut payload.after
        };
        let taken = at_most(*part, bytes);
        *part -= u32::try_from(taken).expect("at most the part itself");
        (self.enter(Some(payload)), taken)
    }
}

impl Head {
    /// The stream, if the fields go on in another frame.
    fn unfinished(self) -> Option<u32> {
        (self.flags & END_HEADERS == 0).then_some(self.stream)
    }
}

/// How many of the bytes belong to a part of that length.
fn at_most(length: u32, bytes: &[u8]) -> usize {
    usize::try_from(length).map_or(bytes.len(), |length| length.min(bytes.len()))
}
