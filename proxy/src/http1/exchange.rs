//! One request and its response.

use std::cell::Cell;
use std::io;
use std::time::Instant;

use bulkhead_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, split};

use super::body::Body;
use super::head::{self, RequestHead};
use super::relay::{Fate, ForwardError, RelayError, Relayed, forward_body, relay, write};
use super::{Attempt, Lease, Session, Upstreams};
use crate::buffer::Buffered;
use crate::copy::{Meter, copy_both_ways};
use crate::failure::Failure;
use crate::metrics::CutBy;

/// What follows a response.
pub(super) enum Next {
    Request,
    Close,
}

/// Why there was no whole response.
pub(super) enum Broken {
    /// The client has been told nothing yet and can be told why.
    Refused(Failure),
    /// It has; all that is left is to break off.
    Cut(io::Error),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

/// Sends one request, whose head is in the client's buffer, and relays its
/// response.
pub(super) async fn exchange<D, U>(
    client: &mut Buffered<D>,
    request: &RequestHead,
    upstreams: &mut U,
    session: &mut Session,
) -> Result<Next, Broken>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: Upstreams,
{
    let started = Instant::now();
    let seen = session.metrics.begin(request, client.buffer.data());
    let mut body = Body::new(request.framing);
    let there = body
        .advance(&client.buffer.data()[request.length..])
        .map_err(|error| Failure::new(Reason::RequestMalformed, error))?;
    let there = request.length + there;
    // Such a request stays in the buffer until its response has come, and can be
    // sent once more; one that is streamed leaves the buffer as it is sent.
    let is_whole = body.is_complete();

    let mut attempt = Attempt::First;
    let (mut server, relayed) = loop {
        let taken = upstreams.take(attempt).await;
        let Lease {
            mut connection,
            reused,
            vouched,
        } = match taken {
            // There is no other; so what the first one said is the answer.
            Err(_) if attempt == Attempt::Elsewhere => return Err(undelivered().into()),
            taken => taken?,
        };
        let fate = || Fate {
            pooled: U::POOLED,
            last: session.drain.is_started(),
            elsewhere: vouched && is_whole,
        };
        let sent = if is_whole {
            send_whole::<D, U>(client, &mut connection, request, there, fate).await
        } else {
            send_streaming::<D, U>(client, &mut connection, request, there, &mut body, fate).await
        };
        match sent {
            Ok(relayed) => break (connection, relayed),
            // The server closed an idle connection at the moment we used it.
            Err(RelayError::Silence(_))
                if reused
                    && attempt != Attempt::Fresh
                    && is_whole
                    && request.method.is_idempotent() =>
            {
                attempt = Attempt::Fresh;
            }
            Err(RelayError::Undelivered) => attempt = Attempt::Elsewhere,
            Err(RelayError::Silence(error)) => {
                return Err(Failure::of_upstream(&error).into());
            }
            Err(RelayError::Refused(failure)) => return Err(failure.into()),
            Err(RelayError::Cut(by, error)) => {
                session.metrics.cut(&seen, started.elapsed(), by, &error);
                return Err(Broken::Cut(error));
            }
        }
    };
    session
        .metrics
        .finished(&seen, relayed.status, started.elapsed());
    if is_whole {
        client.buffer.consume(there);
    }
    if relayed.tunnel {
        copy_both_ways(client, &mut server, &Meter::default())
            .await
            .map_err(Broken::Cut)?;
        return Ok(Next::Close);
    }
    if relayed.server_reusable && body.is_complete() && server.buffer.is_empty() {
        upstreams.give_back(server);
    }
    Ok(if relayed.client_reusable && body.is_complete() {
        Next::Request
    } else {
        Next::Close
    })
}

fn undelivered() -> Failure {
    let detail = "the server's proxy could not connect to its application";
    Failure::new(Reason::UpstreamConnectFailed, detail)
}

/// The request's head as the server gets it: without the client's wish to
/// close, where the server's connection is not the client's.
fn head_for_server<U: Upstreams>(request: &RequestHead, bytes: &[u8]) -> Option<Vec<u8>> {
    if !(U::POOLED && request.says_close && !request.upgrade) {
        return None;
    }
    let mut rewritten = Vec::new();
    head::replace_connection(&bytes[..request.length], b"", &mut rewritten);
    rewritten.extend_from_slice(&bytes[request.length..]);
    Some(rewritten)
}

/// Sends a request that is whole in the buffer, and leaves it there: it may have
/// to be sent once more.
async fn send_whole<D, U>(
    client: &mut Buffered<D>,
    server: &mut Buffered<U::Io>,
    request: &RequestHead,
    length: usize,
    fate: impl Fn() -> Fate,
) -> Result<Relayed, RelayError>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: Upstreams,
{
    let bytes = &client.buffer.data()[..length];
    let rewritten = head_for_server::<U>(request, bytes);
    // A server that stops reading may have answered first, or have said in a TLS
    // alert why. What there is to read tells more than the failed write.
    let _ = write(&mut server.io, rewritten.as_deref().unwrap_or(bytes)).await;
    relay(
        &mut server.io,
        &mut server.buffer,
        &mut client.io,
        request,
        fate,
    )
    .await
}

/// Sends a request whose body is still on its way, and relays the response at
/// the same time: the server may answer before it has everything.
async fn send_streaming<D, U>(
    client: &mut Buffered<D>,
    server: &mut Buffered<U::Io>,
    request: &RequestHead,
    there: usize,
    body: &mut Body,
    fate: impl Fn() -> Fate,
) -> Result<Relayed, RelayError>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: Upstreams,
{
    let (mut client_read, mut client_write) = split(&mut client.io);
    let (mut server_read, mut server_write) = split(&mut server.io);
    let client_buffer = &mut client.buffer;
    let uploaded = Cell::new(false);
    let upload = async {
        let bytes = &client_buffer.data()[..there];
        let rewritten = head_for_server::<U>(request, bytes);
        write(&mut server_write, rewritten.as_deref().unwrap_or(bytes))
            .await
            .map_err(ForwardError::Write)?;
        client_buffer.consume(there);
        forward_body(&mut client_read, client_buffer, &mut server_write, body)
            .await
            .inspect(|()| uploaded.set(true))
    };
    let begun = Cell::new(false);
    let fate = || {
        begun.set(true);
        let fate = fate();
        // A server that answers early may not want the rest of the request,
        // without which no next one can be told from it.
        let last = fate.last || !uploaded.get();
        Fate { last, ..fate }
    };
    let download = relay(
        &mut server_read,
        &mut server.buffer,
        &mut client_write,
        request,
        fate,
    );
    let mut upload = std::pin::pin!(upload);
    let mut download = std::pin::pin!(download);
    tokio::select! {
        biased;
        uploaded = upload.as_mut() => match uploaded {
            // A server may stop reading, answer and close; what it answers counts.
            Ok(()) | Err(ForwardError::Write(_)) => download.await,
            Err(ForwardError::Framing(error)) if !begun.get() => {
                Err(RelayError::Refused(Failure::new(Reason::RequestMalformed, error)))
            }
            Err(error) => Err(RelayError::Cut(CutBy::Client, error.into())),
        },
        relayed = download.as_mut() => relayed,
    }
}
