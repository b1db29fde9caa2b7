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
use crate::accounts::Waiting;
use crate::buffer::Buffered;
use crate::copy::{Meter, copy_both_ways};
use crate::failure::Failure;
use crate::metrics::{CutBy, HttpRequest};
use crate::trace::{Beginner, TRACEPARENT};

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

/// A request that is being answered.
pub(super) struct InHand<'a> {
    pub(super) seen: &'a HttpRequest,
    pub(super) started: Instant,
    pub(super) waiting: Waiting,
}

/// Sends one request, whose head is in the client's buffer, and relays its
/// response.
pub(super) async fn exchange<D, U>(
    client: &mut Buffered<D>,
    request: &RequestHead,
    in_hand: &InHand<'_>,
    upstreams: &mut U,
    session: &mut Session,
) -> Result<Next, Broken>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: Upstreams,
{
    let InHand {
        seen,
        started,
        ref waiting,
    } = *in_hand;
    let mut body = Body::new(request.framing);
    let there = body
        .advance(&client.buffer.data()[request.length..])
        .map_err(|error| Failure::new(Reason::RequestMalformed, error))?;
    seen.receives(there as u64);
    let there = request.length + there;
    // Such a request stays in the buffer until its response has come, and can be
    // sent once more; one that is streamed leaves the buffer as it is sent.
    let is_whole = body.is_complete();

    let again = is_whole && request.method.is_idempotent();

    let mut attempt = Attempt::First;
    let (mut server, relayed) = loop {
        let taken = upstreams.take(attempt, again).await;
        let Lease {
            mut connection,
            reused,
            vouched,
        } = match taken {
            // There is no other; so what the first one said is the answer.
            Err(_) if attempt == Attempt::Elsewhere => return Err(Failure::undelivered().into()),
            taken => taken?,
        };
        let fate = || {
            let draining = session.terms.drain.is_started();
            Fate {
                pooled: U::POOLED,
                last: session.terms.have_ended(),
                draining,
                heard_out: is_whole,
                vouched,
                elsewhere: is_whole,
            }
        };
        let sent = Sent {
            request,
            seen,
            trace: session.trace,
            waiting,
        };
        let sent = if is_whole {
            send_whole::<D, U>(client, &mut connection, sent, there, fate).await
        } else {
            send_streaming::<D, U>(client, &mut connection, sent, there, &mut body, fate).await
        };
        match sent {
            Ok(relayed) => break (connection, relayed),
            // The server closed an idle connection at the moment we used it. A proxy that
            // has taken a request answers it or breaks off; where it ends a connection
            // in good order, it has taken none.
            Err(RelayError::Silence(silence))
                if reused
                    && attempt != Attempt::Fresh
                    && (again || is_whole && vouched && silence.is_orderly) =>
            {
                attempt = Attempt::Fresh;
            }
            Err(RelayError::Undelivered) => attempt = Attempt::Elsewhere,
            Err(RelayError::Silence(silence)) => {
                return Err(Failure::of_upstream(&silence.error).into());
            }
            Err(RelayError::Refused(failure)) => return Err(failure.into()),
            Err(RelayError::Cut(by, error)) => {
                session.metrics.cut(seen, started.elapsed(), by, &error);
                return Err(Broken::Cut(error));
            }
        }
    };
    session
        .metrics
        .finished(seen, relayed.status, started.elapsed());
    if is_whole {
        client.buffer.consume(there);
    }
    if relayed.tunnel {
        let answered = || session.terms.account.finished_request();
        copy_both_ways(client, &mut server, &Meter::default(), answered)
            .await
            .map_err(Broken::Cut)?;
        return Ok(Next::Close);
    }
    if relayed.server_leaves {
        upstreams.avoid();
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

/// A request that is sent.
#[derive(Clone, Copy)]
struct Sent<'a> {
    request: &'a RequestHead,
    seen: &'a HttpRequest,
    trace: Option<Beginner>,
    waiting: &'a Waiting,
}

impl Sent<'_> {
    /// The request as the server gets it, where that is not as it came: without the
    /// client's wish to close, where the server's connection is not the client's, and
    /// with the beginning of a trace, where it belongs to none.
    fn rewritten<U: Upstreams>(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (came, body) = bytes.split_at(self.request.length);
        let goes_on = U::POOLED && self.request.says_close && !self.request.upgrade;
        let begun = self.trace.and_then(|trace| trace.for_head(came));
        if !goes_on && begun.is_none() {
            return None;
        }
        let mut head = Vec::new();
        if goes_on {
            head::replace_connection(came, b"", &mut head);
        } else {
            head.extend_from_slice(came);
        }
        if let Some(begun) = begun {
            // Before the empty line at its end.
            head.truncate(head.len() - 2);
            head.extend_from_slice(format!("{TRACEPARENT}: {begun}\r\n\r\n").as_bytes());
        }
        head.extend_from_slice(body);
        Some(head)
    }
}

/// Sends a request that is whole in the buffer, and leaves it there: it may have
/// to be sent once more.
async fn send_whole<D, U>(
    client: &mut Buffered<D>,
    server: &mut Buffered<U::Io>,
    sent: Sent<'_>,
    length: usize,
    fate: impl Fn() -> Fate,
) -> Result<Relayed, RelayError>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: Upstreams,
{
    let bytes = &client.buffer.data()[..length];
    let rewritten = sent.rewritten::<U>(bytes);
    // A server that stops reading may have answered first, or have said in a TLS
    // alert why. What there is to read tells more than the failed write.
    let _ = write(&mut server.io, rewritten.as_deref().unwrap_or(bytes)).await;
    relay(
        &mut server.io,
        &mut server.buffer,
        &mut client.io,
        (sent.request, sent.seen),
        || sent.waiting.ends(),
        fate,
    )
    .await
}

/// Sends a request whose body is still on its way, and relays the response at
/// the same time: the server may answer before it has everything.
async fn send_streaming<D, U>(
    client: &mut Buffered<D>,
    server: &mut Buffered<U::Io>,
    sent: Sent<'_>,
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
        let rewritten = sent.rewritten::<U>(bytes);
        write(&mut server_write, rewritten.as_deref().unwrap_or(bytes))
            .await
            .map_err(ForwardError::Write)?;
        client_buffer.consume(there);
        forward_body(&mut client_read, client_buffer, &mut server_write, body)
            .await
            .map(|count| {
                sent.seen.receives(count);
                uploaded.set(true);
            })
    };
    let begun = Cell::new(false);
    let fate = || {
        begun.set(true);
        let fate = fate();
        // A server that answers early may not want the rest of the request,
        // without which no next one can be told from it.
        let heard_out = uploaded.get();
        let last = fate.last || !heard_out;
        Fate {
            last,
            heard_out,
            ..fate
        }
    };
    let download = relay(
        &mut server_read,
        &mut server.buffer,
        &mut client_write,
        (sent.request, sent.seen),
        || sent.waiting.ends(),
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
