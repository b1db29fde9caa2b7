//! A connection to a server that remembers how it broke. The HTTP/2 library
//! passes on only that it did, and a TLS alert says why.

use std::cell::OnceCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::failure::Failure;

/// What a connection broke with, once it has.
#[derive(Clone, Default)]
pub(super) struct Break(Rc<OnceCell<Failure>>);

impl Break {
    pub(super) fn failure(&self) -> Option<Failure> {
        self.0.get().cloned()
    }
}

/// The connection, as it is but for its memory.
pub(super) struct ServerIo<S> {
    io: S,
    broke: Break,
}

impl<S> ServerIo<S> {
    pub(super) fn new(io: S) -> (Self, Break) {
        let broke = Break::default();
        let remembered = broke.clone();
        (Self { io, broke }, remembered)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ServerIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &read {
            self.broke.0.get_or_init(|| Failure::of_upstream(error));
        }
        read
    }
}

/// Nothing is to be learned from a failed write: what the server said before it
/// closed is there to be read.
impl<S: AsyncWrite + Unpin> AsyncWrite for ServerIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
