//! Ports for programs that must be told where to listen.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the kernel gives to connections (32768, ip(7)): one that it names
/// free may be a client's before the program listens there.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;

/// An address on loopback that nobody listens on, another one each time.
///
/// # Errors
/// Where there is none.
pub fn free_address() -> io::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = LAST - FIRST;
    // Several processes may look for one, each from a place of its own.
    let begin = std::process::id() % u32::from(count);
    let begin = u16::try_from(begin).unwrap_or_default();
    for _ in 0..count {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (begin + next % count) % count;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(io::ErrorKind::AddrNotAvailable.into())
}
