//! The answers that the proxy makes by itself.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::Session;
use crate::buffer::Buffered;
use crate::failure::{Failure, REASON_HEADER, explanation, http_status};
use crate::metrics::{GrpcStatus, HttpRequest};

/// How long, and for how many bytes, a closing connection still listens. Closing
/// a socket with unread bytes makes the kernel send a reset, which can destroy
/// the answer before the client has read it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// What becomes of a connection whose request is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Afterwards {
    /// It is good for nothing more.
    Close,
    /// The next request may fare better.
    Keep,
}

/// Answers with the reason.
pub(crate) async fn refuse<D>(
    client: &mut Buffered<D>,
    failure: &Failure,
    seen: Option<(&HttpRequest, Instant)>,
    session: &Session,
    afterwards: Afterwards,
) -> io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
{
    let status = http_status(failure.reason);
    let took = seen.map_or(Duration::ZERO, |(_, since)| since.elapsed());
    let seen = seen.map(|(request, _)| request);
    let metrics = &session.metrics;
    metrics.refused(seen, failure, status, GrpcStatus(None), took);
    let answer = answer(status, failure, session.policy.as_deref(), afterwards);
    client.io.write_all(answer.as_bytes()).await?;
    client.io.flush().await
}

fn answer(status: u16, failure: &Failure, policy: Option<&str>, afterwards: Afterwards) -> String {
    let fate = match afterwards {
        Afterwards::Close => "connection: close\r\n",
        Afterwards::Keep => "",
    };
    let body = explanation(failure, policy);
    let phrase = http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default();
    format!(
        "HTTP/1.1 {status} {phrase}\r\n\
         content-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\n\
         {REASON_HEADER}: {}\r\n\
         {fate}\r\n{body}",
        body.len(),
        failure.reason
    )
}

/// Ends the sending side, then reads what the client still sends, within bounds.
pub(crate) async fn close_gently<D>(client: &mut Buffered<D>) -> io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
{
    client.io.shutdown().await?;
    let mut left = LINGER_BYTES;
    let listen = async {
        loop {
            client.buffer.consume(client.buffer.data().len());
            match client.fill().await {
                Ok(count) if count > 0 && count < left => left -= count,
                // The end, a reset, or more than anybody has to listen to.
                _ => return,
            }
        }
    };
    // A client that does not close is left to the kernel.
    let _ = timeout(LINGER, listen).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::reason::Reason;

    #[test]
    fn an_answer_names_the_reason_and_the_rule() {
        let failure = Failure::new(Reason::PlaintextRefused, "10.0.0.1 spoke HTTP/1");
        let answer = answer(
            403,
            &failure,
            Some("PeerAuthentication shop/default"),
            Afterwards::Keep,
        );
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"));
        assert!(answer.contains("\r\nbulkhead-reason: plaintext_refused\r\n"));
        assert!(answer.contains("PeerAuthentication shop/default"));
        assert!(!answer.contains("10.0.0.1"), "particulars are for the log");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
    }
}
