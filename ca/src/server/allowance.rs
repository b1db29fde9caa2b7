//! How much a client may send before it proves anything.
//!
//! HTTP/2 has frames that cost the sender next to nothing and that the receiver
//! must read and answer: PING, SETTINGS, streams that are reset at once, headers
//! without end. Whatever the kind, a flood is bytes: a client that sends many and
//! no good token among them is not one of ours.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that may still come. Clones are the same ones.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    most: usize,
    left: Arc<AtomicUsize>,
}

impl Allowance {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            left: Arc::new(AtomicUsize::new(most)),
        }
    }

    /// The client proved who it is: all of it again.
    pub(super) fn renew(&self) {
        self.left.store(self.most, Ordering::Relaxed);
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    fn take(&self, bytes: usize) {
        let less = |left: usize| Some(left.saturating_sub(bytes));
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// A stream of which no more is read than allowed.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    allowance: Allowance,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, allowance: Allowance) -> Self {
        Self { stream, allowance }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.allowance.is_used_up() {
            let error = "the client sent too much, and no call with a good token";
            return Poll::Ready(Err(io::Error::other(error)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.allowance.take(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_client_sends_so_much_and_then_has_to_prove_something() {
        let bytes = [7; 100];
        let allowance = Allowance::new(40);
        let mut stream = Metered::new(bytes.as_slice(), allowance.clone());
        let mut buffer = [0; 20];
        for _ in 0..2 {
            stream.read_exact(&mut buffer).await.unwrap();
        }
        assert!(stream.read_exact(&mut buffer).await.is_err());
        allowance.renew();
        stream.read_exact(&mut buffer).await.unwrap();
    }
}
