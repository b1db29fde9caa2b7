//! A server's response on its way to the client.

use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bulkhead_core::reason::Reason;
use futures::poll;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::MAX_HEAD;
use super::body::{Body, ChunkError};
use super::head::{self, Framing, HeadEnd, Method, RequestHead, ResponseHead};
use crate::buffer::Buffer;
use crate::failure::{DRAINING_HEADER, Failure, REASON_HEADER, http_status};
use crate::metrics::{CutBy, HttpRequest};

/// How a response was relayed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed {
    pub(super) status: u16,
    /// Whether the server's connection can carry a next request.
    pub(super) server_reusable: bool,
    /// Whether the client's connection can.
    pub(super) client_reusable: bool,
    /// Both sides have left HTTP: an upgrade, or CONNECT.
    pub(super) tunnel: bool,
    /// The server is about to go, and should be asked for nothing more.
    pub(super) server_leaves: bool,
}

/// Why a response was not relayed to its end.
#[derive(Debug)]
pub(super) enum RelayError {
    /// The server closed before the first byte of a response.
    Silence(Silence),
    /// The server's proxy answered that the application never got the request.
    Undelivered,
    /// There is no usable response, and the client has been told nothing yet.
    Refused(Failure),
    /// The response had begun; all that can be done is to break off.
    Cut(CutBy, io::Error),
}

/// How a server closed that had said nothing.
#[derive(Debug)]
pub(super) struct Silence {
    pub(super) error: io::Error,
    /// It said that it would, instead of breaking off.
    pub(super) is_orderly: bool,
}

/// What decides over the client's connection after this response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// The server's wish to close is its own affair, not the client's.
    pub(super) pooled: bool,
    /// This is the last response on the client's connection.
    pub(super) last: bool,
    /// The server has all of the request: only then may it leave HTTP.
    pub(super) heard_out: bool,
    /// The reason for that is that this proxy is about to go.
    pub(super) draining: bool,
    /// The server's proxy has proved who it is, so what it says is its own word.
    pub(super) vouched: bool,
    /// A request that the application never got can be sent to another server.
    pub(super) elsewhere: bool,
}

/// Reads one final response, interim ones before it included, and writes it to
/// the client. `begins` is told before the client sees anything of it.
pub(super) async fn relay<S, C>(
    server: &mut S,
    buffer: &mut Buffer,
    client: &mut C,
    (request, seen): (&RequestHead, &HttpRequest),
    begins: impl Fn(),
    fate: impl Fn() -> Fate,
) -> Result<Relayed, RelayError>
where
    S: AsyncRead + Unpin,
    C: AsyncWrite + Unpin,
{
    let mut told = false;
    let mut interim = 0;
    let response = loop {
        let response = read_head(server, buffer, told).await?;
        if !(100..200).contains(&response.status) || response.status == 101 {
            break response;
        }
        interim += response.length;
        if interim > MAX_HEAD {
            let detail = format!("its interim responses are longer than {MAX_HEAD} bytes");
            let failure = Failure::new(Reason::ResponseMalformed, detail);
            return Err(unusable(failure, told));
        }
        // Interim responses are unknown to HTTP/1.0 (RFC 9110, 15.2).
        if !request.is_http10 {
            told = true;
            begins();
            let head = &buffer.data()[..response.length];
            write(client, head)
                .await
                .map_err(|error| RelayError::Cut(CutBy::Client, error))?;
        }
        buffer.consume(response.length);
    };
    let fate = fate();
    if fate.vouched && fate.elsewhere && !told && is_undelivered(&response, buffer.data()) {
        return Err(RelayError::Undelivered);
    }
    if response.status == 101 && !(request.upgrade && fate.heard_out) {
        // What is missing of a request's body would be taken for the new protocol.
        let detail = "it switched protocols unasked, or before it had the whole request";
        let failure = Failure::new(Reason::ResponseMalformed, detail);
        return Err(unusable(failure, told));
    }
    let tunnel = response.status == 101
        || (request.method == Method::Connect && (200..300).contains(&response.status));
    let framing = match request.method {
        Method::Head => Framing::NONE,
        _ if tunnel => Framing::NONE,
        _ => response.framing,
    };
    let mut body = Body::new(framing);
    let there = body
        .advance(&buffer.data()[response.length..])
        .map_err(|error| unusable(Failure::new(Reason::ResponseMalformed, error), told))?;
    let delimited = framing != Framing::UntilClose;
    let relayed = Relayed {
        status: response.status,
        server_reusable: delimited && response.keep_alive,
        client_reusable: request.keep_alive
            && !fate.last
            && delimited
            && (fate.pooled || response.keep_alive),
        tunnel,
        server_leaves: fate.vouched
            && response.says_close
            && has_line(&response, buffer.data(), DRAINING_LINE),
    };
    let head = Head {
        length: response.length,
        rewritten: head_for_client(&response, buffer.data(), fate, relayed),
    };
    begins();
    let sent = send(server, buffer, client, head, &mut body, there)
        .await
        .map_err(|error| match error {
            ForwardError::Write(error) => RelayError::Cut(CutBy::Client, error),
            error => RelayError::Cut(CutBy::Server, error.into()),
        })?;
    seen.sends(sent);
    Ok(relayed)
}

/// Whether this is how a proxy of ours says that it could not connect to its
/// application, which happens while a pod is on its way out.
fn is_undelivered(response: &ResponseHead, bytes: &[u8]) -> bool {
    let reason = Reason::UpstreamConnectFailed;
    let line = || format!("{REASON_HEADER}: {reason}\r\n").into_bytes();
    response.status == http_status(reason) && has_line(response, bytes, &line())
}

/// What tells the client, and its proxy why.
const CLOSE_AND_DRAINING: &[u8] = b"connection: close\r\nbulkhead-draining: true\r\n";
const DRAINING_LINE: &[u8] = b"bulkhead-draining: true\r\n";

/// Whether a head has exactly this line.
fn has_line(response: &ResponseHead, bytes: &[u8], line: &[u8]) -> bool {
    let head = &bytes[..response.length];
    memmem::find_iter(head, line).any(|at| head[..at].ends_with(b"\r\n"))
}

/// What a response that nobody can use comes to: the client can be told, unless
/// it was told something already.
fn unusable(failure: Failure, told: bool) -> RelayError {
    if told {
        RelayError::Cut(CutBy::Server, io::Error::other(failure))
    } else {
        RelayError::Refused(failure)
    }
}

async fn read_head<S>(
    server: &mut S,
    buffer: &mut Buffer,
    told: bool,
) -> Result<ResponseHead, RelayError>
where
    S: AsyncRead + Unpin,
{
    let refused =
        |reason, detail: &dyn std::fmt::Display| unusable(Failure::new(reason, detail), told);
    let mut end = HeadEnd::default();
    loop {
        if let Some(length) = end.find(buffer.data()) {
            return head::parse_response(&buffer.data()[..length])
                .map_err(|error| refused(Reason::ResponseMalformed, &error));
        }
        if buffer.data().len() > MAX_HEAD {
            let detail = format!("its head is longer than {MAX_HEAD} bytes");
            return Err(refused(Reason::ResponseMalformed, &detail));
        }
        let silent = buffer.is_empty() && !told;
        match buffer.fill(server).await {
            Ok(0) if silent => {
                return Err(RelayError::Silence(Silence {
                    error: io::ErrorKind::UnexpectedEof.into(),
                    is_orderly: true,
                }));
            }
            Err(error) if silent => {
                let is_orderly = false;
                return Err(RelayError::Silence(Silence { error, is_orderly }));
            }
            Ok(0) => {
                return Err(refused(
                    Reason::UpstreamClosed,
                    &"inside the response's head",
                ));
            }
            Err(error) => return Err(unusable(Failure::of_upstream(&error), told)),
            Ok(_) => {}
        }
    }
}

/// A response's head, as it came and as it goes on.
struct Head {
    length: usize,
    /// Nothing where it goes on as it came.
    rewritten: Option<Vec<u8>>,
}

/// The head as the client is to see it, where that is not as it came.
fn head_for_client(
    response: &ResponseHead,
    bytes: &[u8],
    fate: Fate,
    relayed: Relayed,
) -> Option<Vec<u8>> {
    let came = &bytes[..response.length];
    // An application that passes on what its own upstream's proxy said has had
    // the request; in our mouth it would say the contrary.
    let is_second_hand = !fate.pooled && is_undelivered(response, bytes);
    let own = if is_second_hand {
        Some(head::without(came, REASON_HEADER.as_bytes()))
    } else {
        let told_us = relayed.server_leaves;
        told_us.then(|| head::without(came, DRAINING_HEADER.as_bytes()))
    };
    // The client learns the truth about its own connection.
    let says_close = !relayed.client_reusable && !relayed.tunnel;
    if says_close == response.says_close {
        return own;
    }
    let close: &[u8] = match says_close {
        true if fate.draining && !fate.pooled => CLOSE_AND_DRAINING,
        true => b"connection: close\r\n",
        false => b"",
    };
    let mut rewritten = Vec::new();
    head::replace_connection(own.as_deref().unwrap_or(came), close, &mut rewritten);
    Some(rewritten)
}

/// Writes the head, with the bytes of the body that are there, then the rest. Gives the
/// length of the body, with its framing.
async fn send<S, C>(
    server: &mut S,
    buffer: &mut Buffer,
    client: &mut C,
    head: Head,
    body: &mut Body,
    there: usize,
) -> Result<u64, ForwardError>
where
    S: AsyncRead + Unpin,
    C: AsyncWrite + Unpin,
{
    let whole = head.length + there;
    let written = match head.rewritten {
        None => write(client, &buffer.data()[..whole]).await,
        Some(mut rewritten) => {
            rewritten.extend_from_slice(&buffer.data()[head.length..whole]);
            write(client, &rewritten).await
        }
    };
    written.map_err(ForwardError::Write)?;
    buffer.consume(whole);
    let rest = forward_body(server, buffer, client, body).await?;
    Ok(there as u64 + rest)
}

/// Why a body was not forwarded to its end.
#[derive(Debug)]
pub(super) enum ForwardError {
    /// The side that the body comes from went away.
    Read(io::Error),
    /// The side that it goes to did.
    Write(io::Error),
    /// The framing is broken.
    Framing(ChunkError),
}

impl From<ForwardError> for io::Error {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Read(error) | ForwardError::Write(error) => error,
            ForwardError::Framing(error) => Self::other(error),
        }
    }
}

/// Forwards what is missing of a body, and gives its length.
pub(super) async fn forward_body<R, W>(
    from: &mut R,
    buffer: &mut Buffer,
    to: &mut W,
    body: &mut Body,
) -> Result<u64, ForwardError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut forwarded = 0;
    while !body.is_complete() {
        if buffer.is_empty() && buffer.fill(from).await.map_err(ForwardError::Read)? == 0 {
            return if body.may_end() {
                Ok(forwarded)
            } else {
                Err(ForwardError::Read(io::ErrorKind::UnexpectedEof.into()))
            };
        }
        let count = body.advance(buffer.data()).map_err(ForwardError::Framing)?;
        write(to, &buffer.data()[..count])
            .await
            .map_err(ForwardError::Write)?;
        buffer.consume(count);
        forwarded += count as u64;
    }
    Ok(forwarded)
}

/// How long a side that reads may take for what it is written at once, which is no more
/// than is read at once: a reader that is slow is not yet gone.
const STALLED: Duration = Duration::from_secs(5 * 60);

/// Writes all bytes, and sees to it that they leave.
///
/// # Errors
/// The other side is gone, or has not read them within [`STALLED`].
pub(super) async fn write<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> io::Result<()> {
    let mut written = pin!(async {
        to.write_all(bytes).await?;
        to.flush().await
    });
    // Nearly always there is room for them, and no need of a timer.
    if let Poll::Ready(written) = poll!(written.as_mut()) {
        return written;
    }
    let stalled = || io::Error::new(io::ErrorKind::TimedOut, "the other side does not read");
    let in_time = timeout(STALLED, written).await;
    in_time.unwrap_or_else(|_| Err(stalled()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, duplex};
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn a_side_that_does_not_read_is_given_up_and_one_that_reads_slowly_is_not() {
        let (mut near, mut far) = duplex(8);
        let reads = async {
            let mut came = [0; 16];
            sleep(STALLED / 2).await;
            far.read_exact(&mut came).await
        };
        let (written, read) = tokio::join!(write(&mut near, &[1; 16]), reads);
        assert_eq!((written.unwrap(), read.unwrap()), ((), 16));
        let given_up = write(&mut near, &[1; 16]).await.unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
    }
}
