//! A connection to an endpoint, with or without mutual TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bulkhead_core::alpn;
use bulkhead_core::protocol::Protocol;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::peer::InFlight;
use crate::budget;
use crate::buffer::ReadAhead;
use crate::socket::OverTcp;

/// Mutual TLS with a peer's proxy.
pub(super) type MeshStream = TlsStream<ReadAhead<TcpStream>>;

/// A connection to an endpoint.
pub(crate) struct Stream {
    io: Io,
    /// While it carries something.
    pub(super) in_flight: Option<InFlight>,
}

enum Io {
    Plain(TcpStream),
    /// Large, and the fewer of two by far where the mesh is not everywhere.
    Mesh(Box<MeshStream>),
}

impl Stream {
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self {
            io: Io::Plain(stream),
            in_flight: None,
        }
    }

    pub(super) fn mesh(stream: Box<MeshStream>) -> Self {
        Self {
            io: Io::Mesh(stream),
            in_flight: None,
        }
    }
}

impl Stream {
    /// Whether a proxy is there which has proved who it is and which reads HTTP/1, so
    /// that what it says of a request's delivery is its own word.
    pub(super) fn is_vouched(&self) -> bool {
        match &self.io {
            Io::Plain(_) => false,
            Io::Mesh(stream) => alpn::inside(stream.get_ref().1.alpn_protocol()) == Protocol::Http1,
        }
    }
}

impl OverTcp for Stream {
    fn socket(&self) -> &TcpStream {
        match &self.io {
            Io::Plain(stream) => stream,
            Io::Mesh(stream) => stream.socket(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            Io::Mesh(stream) => {
                budget::may_grow()?;
                Pin::new(stream).poll_read(cx, out)
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Mesh(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Mesh(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Mesh(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Mesh(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Mesh(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
