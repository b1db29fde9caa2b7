//! What a connection sends, in as few packets as there can be.
//!
//! HTTP/2 flushes after each frame with data: an answer, its trailers, and the
//! answers to other calls of the same connection would each be a packet, and the
//! kernel takes longer for a packet than for what is in it. So flushes are put
//! off until the connection has nothing more to say for now:
//!
//! ```text
//!  HTTP/2 ─▶ TLS ─▶ write, flush ─▶ waits ── connection polled, send ──▶ socket
//!                                     └────── MOST bytes ───────────────▶
//! ```
//!
//! What waits takes memory while it waits, and none between answers.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So many bytes are sent without waiting for more; some five answers.
const MOST: usize = 16 * 1024;

/// A stream whose flushes may be put off. Clones are the same one.
#[derive(Debug)]
pub(super) struct Outbox<S>(Arc<Mutex<Inner<S>>>);

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    waiting: Vec<u8>,
    /// How much of that was sent already.
    sent: usize,
    puts_off: bool,
}

impl<S: AsyncWrite + Unpin> Outbox<S> {
    /// A stream that sends at each flush, until told otherwise.
    pub(super) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream,
            waiting: Vec::new(),
            sent: 0,
            puts_off: false,
        })))
    }

    /// From now on flushes are put off until [`Self::poll_send`].
    pub(super) fn put_off(&self) {
        self.inner().puts_off = true;
    }

    /// Sends what waits.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_send(cx)
    }
}

impl<S> Outbox<S> {
    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Clone for Outbox<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let rest = &self.waiting[self.sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        self.waiting = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Outbox<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Outbox<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner();
        if inner.waiting.len() + bytes.len() > MOST {
            ready!(inner.poll_drain(cx))?;
        }
        inner.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        if inner.puts_off {
            return Poll::Ready(Ok(()));
        }
        inner.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    async fn received(peer: &mut DuplexStream) -> usize {
        let mut buffer = vec![0; 4 * MOST];
        peer.read(&mut buffer).await.unwrap()
    }

    #[tokio::test]
    async fn frames_that_are_flushed_one_by_one_leave_together() {
        let (stream, mut peer) = duplex(4 * MOST);
        let mut outbox = Outbox::new(stream);
        outbox.write_all(b"handshake").await.unwrap();
        outbox.flush().await.unwrap();
        assert_eq!(received(&mut peer).await, 9, "nothing is put off yet");

        outbox.put_off();
        for frame in [b"answer--", b"trailers"] {
            outbox.write_all(frame).await.unwrap();
            outbox.flush().await.unwrap();
        }
        assert!(poll!(std::pin::pin!(received(&mut peer))).is_pending());
        poll_fn(|cx| outbox.poll_send(cx)).await.unwrap();
        assert_eq!(received(&mut peer).await, 16);
        assert_eq!(outbox.inner().waiting.capacity(), 0, "nothing is kept");
    }

    #[tokio::test]
    async fn what_waits_for_a_client_that_does_not_read_is_bounded() {
        let (stream, mut peer) = duplex(1024);
        let mut outbox = Outbox::new(stream);
        outbox.put_off();
        let mut answers = Box::pin(async {
            for _ in 0..100 {
                outbox.write_all(&[7; 1024]).await?;
            }
            outbox.shutdown().await
        });
        assert!(poll!(answers.as_mut()).is_pending());
        let mut all = Vec::new();
        let (ended, read) = tokio::join!(answers, peer.read_to_end(&mut all));
        ended.unwrap();
        assert_eq!((read.unwrap(), all.len()), (100 * 1024, 100 * 1024));
    }
}
