//! A server's response on its way to the client.

use std::io;

use bulkhead_core::reason::Reason;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::MAX_HEAD;
use super::body::{Body, ChunkError};
use super::head::{self, Framing, HeadEnd, Method, RequestHead, ResponseHead};
use crate::buffer::Buffer;
use crate::failure::{Failure, REASON_HEADER, http_status};
use crate::metrics::CutBy;

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
}

/// Why a response was not relayed to its end.
#[derive(Debug)]
pub(super) enum RelayError {
    /// The server closed before the first byte of a response.
    Silence(io::Error),
    /// The server's proxy answered that the application never got the request.
    Undelivered,
    /// There is no usable response, and the client has been told nothing yet.
    Refused(Failure),
    /// The response had begun; all that can be done is to break off.
    Cut(CutBy, io::Error),
}

/// What decides over the client's connection after this response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// The server's wish to close is its own affair, not the client's.
    pub(super) pooled: bool,
    /// This is the last response on the client's connection.
    pub(super) last: bool,
    /// A request that the application never got can be sent to another server,
    /// and the proxy that says so is known to be one.
    pub(super) elsewhere: bool,
}

/// Reads one final response, interim ones before it included, and writes it to
/// the client.
pub(super) async fn relay<S, C>(
    server: &mut S,
    buffer: &mut Buffer,
    client: &mut C,
    request: &RequestHead,
    fate: impl Fn() -> Fate,
) -> Result<Relayed, RelayError>
where
    S: AsyncRead + Unpin,
    C: AsyncWrite + Unpin,
{
    let mut told = false;
    let response = loop {
        let response = read_head(server, buffer, told).await?;
        if !(100..200).contains(&response.status) || response.status == 101 {
            break response;
        }
        // Interim responses are unknown to HTTP/1.0 (RFC 9110, 15.2).
        if !request.is_http10 {
            told = true;
            let head = &buffer.data()[..response.length];
            write(client, head)
                .await
                .map_err(|error| RelayError::Cut(CutBy::Client, error))?;
        }
        buffer.consume(response.length);
    };
    let fate = fate();
    if fate.elsewhere && !told && is_undelivered(&response, buffer.data()) {
        return Err(RelayError::Undelivered);
    }
    if response.status == 101 && !request.upgrade {
        let detail = "it switched protocols unasked";
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
    };
    let head = Head {
        length: response.length,
        rewritten: head_for_client(&response, buffer.data(), fate, relayed),
    };
    send(server, buffer, client, head, &mut body, there)
        .await
        .map_err(|error| match error {
            ForwardError::Write(error) => RelayError::Cut(CutBy::Client, error),
            error => RelayError::Cut(CutBy::Server, error.into()),
        })?;
    Ok(relayed)
}

/// Whether this is how a proxy of ours says that it could not connect to its
/// application, which happens while a pod is on its way out.
fn is_undelivered(response: &ResponseHead, bytes: &[u8]) -> bool {
    let reason = Reason::UpstreamConnectFailed;
    let line = || format!("\r\n{REASON_HEADER}: {reason}\r\n").into_bytes();
    response.status == http_status(reason)
        && memmem::find(&bytes[..response.length], &line()).is_some()
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
                return Err(RelayError::Silence(io::ErrorKind::UnexpectedEof.into()));
            }
            Err(error) if silent => return Err(RelayError::Silence(error)),
            Ok(0) => {
                return Err(refused(
                    Reason::UpstreamClosed,
                    &"inside the response's head",
                ));
            }
            Err(error) => return Err(refused(Reason::UpstreamClosed, &error)),
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
    let own = is_second_hand.then(|| head::without(came, REASON_HEADER.as_bytes()));
    // The client learns the truth about its own connection.
    let says_close = !relayed.client_reusable && !relayed.tunnel;
    if says_close == response.says_close {
        return own;
    }
    let close: &[u8] = if says_close {
        b"connection: close\r\n"
    } else {
        b""
    };
    let mut rewritten = Vec::new();
    head::replace_connection(own.as_deref().unwrap_or(came), close, &mut rewritten);
    Some(rewritten)
}

/// Writes the head, with the bytes of the body that are there, then the rest.
async fn send<S, C>(
    server: &mut S,
    buffer: &mut Buffer,
    client: &mut C,
    head: Head,
    body: &mut Body,
    there: usize,
) -> Result<(), ForwardError>
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
    forward_body(server, buffer, client, body).await
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

/// Forwards what is missing of a body.
pub(super) async fn forward_body<R, W>(
    from: &mut R,
    buffer: &mut Buffer,
    to: &mut W,
    body: &mut Body,
) -> Result<(), ForwardError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while !body.is_complete() {
        if buffer.is_empty() && buffer.fill(from).await.map_err(ForwardError::Read)? == 0 {
            return if body.may_end() {
                Ok(())
            } else {
                Err(ForwardError::Read(io::ErrorKind::UnexpectedEof.into()))
            };
        }
        let count = body.advance(buffer.data()).map_err(ForwardError::Framing)?;
        write(to, &buffer.data()[..count])
            .await
            .map_err(ForwardError::Write)?;
        buffer.consume(count);
    }
    Ok(())
}

/// Writes all bytes, and sees to it that they leave.
pub(super) async fn write<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}
