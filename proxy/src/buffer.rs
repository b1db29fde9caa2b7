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

use crate::budget;

/// One TLS record's worth, so that a record is read and written whole.
const STORAGE_SIZE: usize = 16 * 1024;
/// The most storage that a thread keeps for later: 1 MiB.
const MAX_KEPT: usize = 64;
/// The storage that it keeps when memory is short, so that there is some for whoever
/// needs it for no longer than a small request takes.
const RESERVE: usize = 8;

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

    /// Hands over as many bytes as there is room for.
    fn take(&mut self, out: &mut ReadBuf<'_>) {
        let count = self.data().len().min(out.remaining());
        out.put_slice(&self.data()[..count]);
        self.consume(count);
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
        self.make_room()?;
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

    /// # Errors
    /// There is no memory for more bytes.
    fn make_room(&mut self) -> io::Result<()> {
        if self.storage.is_empty() {
            self.storage = match KEPT.with_borrow_mut(Vec::pop) {
                Some(kept) => kept,
                None => {
                    budget::may_grow()?;
                    vec![0; STORAGE_SIZE]
                }
            };
        } else if self.end == self.storage.len() {
            if self.start > 0 {
                self.storage.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                budget::may_grow()?;
                self.storage.resize(self.storage.len() * 2, 0);
            }
        }
        Ok(())
    }

    fn give_back(&mut self) {
        self.start = 0;
        self.end = 0;
        let storage = std::mem::take(&mut self.storage);
        if storage.len() == STORAGE_SIZE {
            let most = if budget::may_keep() {
                MAX_KEPT
            } else {
                RESERVE
            };
            // A thread that is ending has no use for it.
            let _ = KEPT.try_with(|kept| {
                let mut kept = kept.borrow_mut();
                if kept.len() < most {
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

/// Gives back what this thread keeps for later, but for its reserve.
pub(crate) fn give_back_kept() {
    KEPT.with_borrow_mut(|kept| kept.truncate(RESERVE));
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
            budget::may_grow()?;
            return Pin::new(&mut this.io).poll_read(cx, out);
        }
        this.buffer.take(out);
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

/// A stream from which more is read than is asked for, as long as there is more: who
/// reads TLS asks for a quarter of a record at a time.
#[derive(Debug)]
pub(crate) struct ReadAhead<S> {
    stream: Buffered<S>,
    /// The last read got all that it had room for.
    is_more: bool,
}

impl<S> ReadAhead<S> {
    pub(crate) fn get_ref(&self) -> &S {
        &self.stream.io
    }
}

impl<S> From<Buffered<S>> for ReadAhead<S> {
    fn from(stream: Buffered<S>) -> Self {
        Self {
            stream,
            is_more: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, is_more } = self.get_mut();
        if stream.buffer.is_empty() {
            budget::may_grow()?;
            if !std::mem::take(is_more) {
                ready!(Pin::new(&mut stream.io).poll_read(cx, out))?;
                *is_more = out.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            let count = ready!(stream.buffer.poll_fill(cx, &mut stream.io))?;
            *is_more = count == STORAGE_SIZE;
        }
        stream.buffer.take(out);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
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
    async fn where_there_is_more_than_was_asked_for_it_is_read_at_once() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut far = ReadAhead::from(Buffered::new(far));
        near.write_all(b"a whole record").await.unwrap();
        let mut start = [0; 4];
        far.read_exact(&mut start[..2]).await.unwrap();
        assert!(
            far.stream.buffer.is_empty(),
            "it may have been all there is"
        );
        far.read_exact(&mut start[2..]).await.unwrap();
        assert_eq!(
            (&start, far.stream.buffer.data()),
            (b"a wh", &b"ole record"[..])
        );
        drop(near);
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "ole record");
        assert!(far.stream.buffer.storage.is_empty());
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
