//! A connection to a server that hears it out, and remembers how it broke.
//!
//! A server that refuses a client says so in a TLS alert and resets the
//! connection. The HTTP/2 library gives up at the first write that fails, with
//! the alert still unread, and of an error passes on only that there was one.

use std::cell::OnceCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::budget;
use crate::failure::Failure;

/// What a connection broke with, once it has.
#[derive(Clone, Default)]
pub(super) struct Break(Rc<OnceCell<Failure>>);

impl Break {
    pub(super) fn failure(&self) -> Option<Failure> {
        self.0.get().cloned()
    }
}

pub(super) struct ServerIo<S> {
    io: S,
    /// The server reads no more. What is written is dropped, and reading comes
    /// to an end soon.
    is_deaf: bool,
    broke: Break,
}

impl<S> ServerIo<S> {
    pub(super) fn new(io: S) -> (Self, Break) {
        let broke = Break::default();
        let remembered = broke.clone();
        let this = Self {
            io,
            is_deaf: false,
            broke,
        };
        (this, remembered)
    }

    /// The outcome of a write, or `unheard` where nobody hears it any more.
    fn written<T>(&mut self, outcome: Poll<io::Result<T>>, unheard: T) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Err(error)) if is_reset(&error) => {
                self.is_deaf = true;
                Poll::Ready(Ok(unheard))
            }
            outcome => outcome,
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl<S: AsyncRead + Unpin> AsyncRead for ServerIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // What is read is kept for as long as the client takes nothing of it.
        let read = match budget::may_grow() {
            Ok(()) => Pin::new(&mut self.io).poll_read(cx, buffer),
            Err(error) => Poll::Ready(Err(error)),
        };
        if let Poll::Ready(Err(error)) = &read {
            self.broke.0.get_or_init(|| Failure::of_upstream(error));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ServerIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_deaf {
            return Poll::Ready(Ok(bytes.len()));
        }
        let outcome = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.written(outcome, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bytes.iter().map(|slice| slice.len()).sum();
        if self.is_deaf {
            return Poll::Ready(Ok(length));
        }
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.written(outcome, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_deaf {
            return Poll::Ready(Ok(()));
        }
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.written(outcome, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_deaf {
            return Poll::Ready(Ok(()));
        }
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(outcome, ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use bulkhead_core::reason::Reason;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn what_a_server_said_before_it_reset_the_connection_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        let (mut server, _) = server.unwrap();
        let (mut client, broke) = ServerIo::new(client.unwrap());
        client.write_all(b"unread").await.unwrap();
        server.readable().await.unwrap();
        server.write_all(b"a reason").await.unwrap();
        // Closed with bytes unread, which is a reset.
        drop(server);
        let until_reset = async {
            while !client.is_deaf {
                client.write_all(b"more").await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), until_reset)
            .await
            .unwrap();
        client.write_all(b"yet more").await.unwrap();
        client.flush().await.unwrap();
        let mut said = [0; 8];
        client.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"a reason");
        assert_eq!(broke.failure(), None);
    }

    #[tokio::test]
    async fn a_response_for_which_there_is_no_memory_is_not_read() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut server, broke) = ServerIo::new(near);
        far.write_all(b"a response").await.unwrap();
        let mut response = [0; 10];
        server.read_exact(&mut response[..2]).await.unwrap();
        budget::bind_thread(Budget::new(Some(1)));
        let refused = server.read_exact(&mut response[2..]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
        let broke = broke.failure().map(|failure| failure.reason);
        assert_eq!(broke, Some(Reason::Overloaded));
    }
}
