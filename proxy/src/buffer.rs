//! Buffers that hold memory only while they hold bytes.
//!
//! A sidecar has thousands of connections that say nothing most of the time.
//! Storage therefore belongs to the worker's thread: a buffer borrows it when
//! bytes arrive and gives it back when they have been passed on.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One TLS record's worth, so that a record is read and written whole.
const STORAGE_SIZE: usize = 16 * 1024;
/// The most storage that a thread keeps for later: 1 MiB.
const MAX_KEPT: usize = 64;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read and not yet passed on.
#[derive(Debug, Default)]
pub struct Buffer {
    /// Initialised to its whole length, or empty where nothing is borrowed.
    storage: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub fn data(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Forgets the first `count` bytes, which must be there.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.is_empty() {
            self.give_back();
        }
    }

    /// Reads more bytes behind those that are there; 0 at the end of the stream.
    /// Grows without limit: whoever waits for something whole checks how much
    /// there is.
    pub async fn fill<S: AsyncRead + Unpin>(&mut self, io: &mut S) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx, io)).await
    }

    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut free = ReadBuf::new(&mut self.storage[self.end..]);
        let result = Pin::new(io).poll_read(cx, &mut free);
        let count = free.filled().len();
        self.end += count;
        if self.is_empty() {
            self.give_back();
        }
        ready!(result)?;
        Poll::Ready(Ok(count))
    }

    fn make_room(&mut self) {
        if self.storage.is_empty() {
            self.storage = KEPT
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| vec![0; STORAGE_SIZE]);
        } else if self.end == self.storage.len() {
            if self.start > 0 {
                self.storage.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                self.storage.resize(self.storage.len() * 2, 0);
            }
        }
    }

    fn give_back(&mut self) {
        self.start = 0;
        self.end = 0;
        let storage = std::mem::take(&mut self.storage);
        if storage.len() == STORAGE_SIZE {
            // A thread that is ending has no use for it.
            let _ = KEPT.try_with(|kept| {
                let mut kept = kept.borrow_mut();
                if kept.len() < MAX_KEPT {
                    kept.push(storage);
                }
            });
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A stream, with the bytes that were read from it ahead of their use.
#[derive(Debug)]
pub struct Buffered<S> {
    pub io: S,
    pub buffer: Buffer,
}

impl<S> Buffered<S> {
    pub fn new(io: S) -> Self {
        Self {
            io,
            buffer: Buffer::default(),
        }
    }
}

impl<S: AsyncRead + Unpin> Buffered<S> {
    /// Reads more bytes into the buffer; 0 at the end of the stream.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.fill(&mut self.io).await
    }
}

/// Reading yields the buffered bytes first, so that whoever takes the stream
/// over need not know that somebody looked at it before.
impl<S: AsyncRead + Unpin> AsyncRead for Buffered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffer.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, out);
        }
        let count = this.buffer.data().len().min(out.remaining());
        out.put_slice(&this.buffer.data()[..count]);
        this.buffer.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Buffered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn memory_is_held_only_while_there_are_bytes() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut far = Buffered::new(far);
        {
            let fill = far.fill();
            let mut fill = std::pin::pin!(fill);
            let pending = poll_fn(|cx| Poll::Ready(fill.as_mut().poll(cx).is_pending())).await;
            assert!(pending, "nothing was sent yet");
        }
        assert!(far.buffer.storage.is_empty(), "waiting holds no memory");
        near.write_all(b"hello").await.unwrap();
        assert_eq!(far.fill().await.unwrap(), 5);
        assert_eq!(far.buffer.data(), b"hello");
        far.buffer.consume(5);
        assert!(far.buffer.storage.is_empty(), "nor does an empty buffer");
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_first() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut far = Buffered::new(far);
        near.write_all(b"one").await.unwrap();
        far.fill().await.unwrap();
        near.write_all(b"two").await.unwrap();
        drop(near);
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "onetwo");
    }

    #[tokio::test]
    async fn a_buffer_grows_and_slides_as_it_must() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut far = Buffered::new(far);
        let sent: Vec<u8> = (0..100_000_u32).map(|index| index as u8).collect();
        near.write_all(&sent).await.unwrap();
        drop(near);
        let mut received = Vec::new();
        while far.fill().await.unwrap() > 0 {
            if far.buffer.data().len() > 40_000 {
                received.extend_from_slice(&far.buffer.data()[..7_001]);
                far.buffer.consume(7_001);
            }
        }
        received.extend_from_slice(far.buffer.data());
        assert!(received == sent);
    }
}
