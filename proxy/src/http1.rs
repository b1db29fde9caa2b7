//! HTTP/1.0 and 1.1: requests forwarded one after the other, unchanged but for
//! the Connection header where the connection's own fate demands it.
//!
//! ```text
//!  read a head ─▶ take a server connection ─▶ send ─▶ relay the response ─▶ again
//!                  ▲        │ it had gone away, and nothing came back
//!                  ├────────┤ (once, idempotent requests only)
//!                  │        │ its proxy did not reach the application
//!                  └────────┘ (while there are other servers)
//! ```
//!
//! A request that is whole in the buffer, as nearly all are, is sent with one
//! write and its response awaited. Only a request whose body is still on its way
//! is sent and answered at the same time.

pub mod body;
mod exchange;
pub mod head;
mod relay;
mod reply;

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bulkhead_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::accounts::{self, Terms};
use crate::buffer::Buffered;
use crate::failure::Failure;
use crate::metrics::HttpMetrics;
use crate::trace::Beginner;
use exchange::{Broken, InHand, Next, exchange};
use head::{Framing, HeadEnd, Method, RequestHead};

pub(crate) use reply::{Afterwards, close_gently, refuse};

/// The longest head that is accepted, in bytes. Servers in the wild accept 8 to
/// 64 KiB; a proxy that accepts less than the server behind it breaks a service
/// that worked.
pub(crate) const MAX_HEAD: usize = 64 * 1024;
/// How long a head may take to arrive once it has begun.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an idle connection may wait for a next request. Longer than any
/// client's pool keeps one, so that it is the client who closes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How long an idle connection is still listened to when it is to end: a request
/// may be on its way, and a closed connection would lose it.
const LAST_REQUEST: Duration = Duration::from_millis(500);

/// Where requests go.
pub(crate) trait Upstreams {
    type Io: AsyncRead + AsyncWrite + Unpin;

    /// Whether connections serve many clients. Then the fate of the client's
    /// connection and that of the server's are kept apart.
    const POOLED: bool;

    /// A connection to send a request on. One that cannot be sent `again` goes on none
    /// that its server may be about to close for being idle.
    async fn take(&mut self, attempt: Attempt, again: bool) -> Result<Lease<Self::Io>, Failure>;

    /// Leaves the server of the connection in use alone for a while, which is about
    /// to go.
    fn avoid(&mut self);

    /// Takes back a connection on which a next request may be sent.
    fn give_back(&mut self, connection: Buffered<Self::Io>);
}

/// Which connection a request is to be sent on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Attempt {
    /// Any.
    First,
    /// A new one: the last had been idle for too long.
    Fresh,
    /// One to another server: the last could not be reached behind its proxy.
    Elsewhere,
}

/// A connection to a server.
pub(crate) struct Lease<S> {
    pub(crate) connection: Buffered<S>,
    /// Whether it has carried requests before, so that the server may have
    /// closed it in the meantime.
    pub(crate) reused: bool,
    /// Whether the server's proxy has proved who it is, so that what it says of
    /// a request's delivery is its own word.
    pub(crate) vouched: bool,
}

/// What the requests of one client connection share.
pub(crate) struct Session {
    pub(crate) metrics: Rc<HttpMetrics>,
    pub(crate) terms: Terms,
    /// Named in the answer to a refused request.
    pub(crate) policy: Option<String>,
    /// Begins a trace for requests that belong to none.
    pub(crate) trace: Option<Beginner>,
}

/// Serves one client connection to its end.
///
/// # Errors
/// The client's connection broke, or had to be broken because a response could
/// not be completed. There is nobody left to tell.
pub(crate) async fn serve<D, U>(
    client: &mut Buffered<D>,
    upstreams: &mut U,
    session: &mut Session,
) -> io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: Upstreams,
{
    let account = session.terms.account.clone();
    let mut busy = account.busy();
    loop {
        drop(busy);
        let request = match next_request(client, &mut session.terms).await? {
            Waited::Request(request) => request,
            Waited::End => break,
            Waited::Bad(failure) => {
                refuse(client, &failure, None, session, Afterwards::Close).await?;
                break;
            }
        };
        busy = account.busy();
        let started = Instant::now();
        let seen = session.metrics.begin(&request, client.buffer.data());
        if let Err(failure) = account.check() {
            let began = Some((&seen, started));
            // Whoever may ask again on the same connection need not wait for a new one.
            if may_ask_again(&request) {
                client.buffer.consume(request.length);
                refuse(client, &failure, began, session, Afterwards::Keep).await?;
                continue;
            }
            refuse(client, &failure, began, session, Afterwards::Close).await?;
            break;
        }
        let in_hand = InHand {
            seen: &seen,
            started,
            waiting: account.waiting(),
        };
        let exchanged = tokio::select! {
            biased;
            exchanged = exchange(client, &request, &in_hand, upstreams, session) => exchanged,
            failure = account.asked_to_answer() => Err(failure.into()),
        };
        match exchanged {
            Ok(Next::Request) => account.finished_request(),
            Ok(Next::Close) => break,
            Err(Broken::Refused(failure)) => {
                let began = Some((&seen, started));
                refuse(client, &failure, began, session, Afterwards::Close).await?;
                break;
            }
            Err(Broken::Cut(error)) => return Err(error),
        }
    }
    close_gently(client).await
}

/// Whether nothing more belongs to a request than its head, and an answer of ours leaves
/// its connection fit for another.
fn may_ask_again(request: &RequestHead) -> bool {
    let is_head_only = request.framing == Framing::NONE;
    let is_plain = !matches!(request.method, Method::Head | Method::Connect);
    is_head_only && is_plain && request.keep_alive && !request.is_http10
}

enum Waited {
    Request(RequestHead),
    /// The client is done, or the connection was idle for too long.
    End,
    Bad(Failure),
}

/// Waits for a whole request head.
async fn next_request<D>(client: &mut Buffered<D>, terms: &mut Terms) -> io::Result<Waited>
where
    D: AsyncRead + AsyncWrite + Unpin,
{
    if client.buffer.is_empty() && !wait_for_first_byte(client, terms).await? {
        return Ok(Waited::End);
    }
    let mut end = HeadEnd::default();
    let whole = async {
        loop {
            if let Some(length) = end.find(client.buffer.data()) {
                return io::Result::Ok(Some(length));
            }
            if client.buffer.data().len() > MAX_HEAD || client.fill().await? == 0 {
                return Ok(None);
            }
        }
    };
    let whole = tokio::select! {
        biased;
        whole = timeout(HEAD_TIMEOUT, whole) => whole,
        () = terms.account.asked_to_close() => {
            let detail = "its head was still on its way when memory was short";
            return Ok(Waited::Bad(accounts::overloaded(detail)));
        }
    };
    let length = match whole {
        Ok(length) => length?,
        Err(_) => {
            let detail = "the request's head did not arrive within a minute";
            return Ok(Waited::Bad(Failure::new(Reason::RequestMalformed, detail)));
        }
    };
    let read = client.buffer.data().len();
    match length {
        Some(length) if length <= MAX_HEAD => {
            Ok(match head::parse_request(&client.buffer.data()[..length]) {
                Ok(request) => Waited::Request(request),
                Err(error) => Waited::Bad(Failure::new(Reason::RequestMalformed, error)),
            })
        }
        None if read <= MAX_HEAD => Ok(Waited::End),
        _ => {
            let detail = format!("the limit is {MAX_HEAD} bytes");
            Ok(Waited::Bad(Failure::new(
                Reason::RequestHeadTooLarge,
                detail,
            )))
        }
    }
}

/// Waits on an idle connection; false where nothing more is to come.
async fn wait_for_first_byte<D>(client: &mut Buffered<D>, terms: &mut Terms) -> io::Result<bool>
where
    D: AsyncRead + AsyncWrite + Unpin,
{
    let account = terms.account.clone();
    let count = tokio::select! {
        biased;
        count = timeout(IDLE_TIMEOUT, client.fill()) => count,
        () = terms.end() => timeout(LAST_REQUEST, client.fill()).await,
        () = account.asked_to_close() => return Ok(false),
    };
    match count {
        Ok(count) => Ok(count? > 0),
        Err(_) => Ok(false),
    }
}
