//! What is set on every socket.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustls::ConnectionCommon;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::budget::{self, SocketBuffers};
use crate::buffer::{Buffered, ReadAhead};

/// How many connections may wait to be accepted. The kernel lowers it to
/// net.core.somaxconn, 4096 on current kernels.
const BACKLOG: i32 = 4096;
/// When a silent peer is first asked whether it is still there, and how often
/// then. A peer whose node vanished is noticed after 90 s, where TCP alone would
/// hold the connection for ever.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(45);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;

/// How many encrypted bytes may wait to be written: two records.
const ENCRYPTED: usize = 33 * 1024;

/// Sets up a connected socket. A socket on which that fails is one whose peer is
/// gone already, which reading it will tell.
pub(crate) fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let buffers = budget::socket_buffers();
    let _ = socket.set_tcp_notsent_lowat(buffers.unsent);
    bound_receiving(&socket, buffers);
}

/// Bounds what may wait to be read from a connected socket, or from each of those that
/// wait to be accepted from a listening one.
pub(crate) fn bound_receiving(socket: &SockRef<'_>, buffers: SocketBuffers) {
    if let Some(size) = buffers.receive {
        let _ = socket.set_recv_buffer_size(size);
    }
}

/// Bounds what a TLS connection keeps for a peer that reads slowly.
pub(crate) fn bound_tls<D>(connection: &mut ConnectionCommon<D>) {
    connection.set_buffer_limit(Some(ENCRYPTED));
}

/// A connection over a TCP socket, whatever is in between.
pub(crate) trait OverTcp {
    fn socket(&self) -> &TcpStream;
}

impl OverTcp for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl<S: OverTcp> OverTcp for Buffered<S> {
    fn socket(&self) -> &TcpStream {
        self.io.socket()
    }
}

impl<S: OverTcp> OverTcp for ReadAhead<S> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().socket()
    }
}

impl<S: OverTcp> OverTcp for Box<S> {
    fn socket(&self) -> &TcpStream {
        self.as_ref().socket()
    }
}

impl<S: OverTcp> OverTcp for client::TlsStream<S> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.socket()
    }
}

impl<S: OverTcp> OverTcp for server::TlsStream<S> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.socket()
    }
}

/// Makes closing the socket send a reset: for peers to whom nothing can be said
/// in a protocol that they understand, and for those who would otherwise take
/// the bytes so far for all that there are.
pub(crate) fn reset_on_close(connection: &impl OverTcp) {
    let _ = SockRef::from(connection.socket()).set_linger(Some(Duration::ZERO));
}

/// Binds a listener. An address of all IPv6 interfaces takes IPv4 too, and where
/// the kernel has no IPv6 it means all IPv4 interfaces.
pub(crate) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    match bind(address) {
        Err(error) if has_no_ipv6(&error) && address.ip().is_unspecified() => bind(
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()),
        ),
        result => result,
    }
}

pub(crate) fn has_no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT, or EADDRNOTAVAIL where IPv6 is there but switched off.
    matches!(error.raw_os_error(), Some(97 | 99))
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where a redirected connection was going before redirection.
pub(crate) fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let is_ipv4 = stream.local_addr()?.ip().to_canonical().is_ipv4();
    let original = if is_ipv4 {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    original?
        .as_socket()
        .ok_or_else(|| io::Error::other("the original destination is not an IP address"))
}
