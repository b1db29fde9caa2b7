//! Connections: TCP, TLS, HTTP/2, and a bound on everything that a stranger can
//! make us hold.
//!
//! ```text
//!  accept ─▶ waits, by address ─▶ handshake ─▶ a stranger ── first good token ─▶ a guest
//!            (no memory but a socket)          (few, shared   (more; the one that was
//!                                               by address)    silent longest goes first)
//! ```
//!
//! A handshake costs more than all the rest of a call, and whoever makes one has
//! proved nothing. So strangers share few places, fairly by address: a node
//! behind whose address many pods sit has as much as any other, and all of it
//! where nobody else wants it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_runtime::drain;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::queue::{FairQueue, Limits};
use crate::service::CaService;
use crate::serving::ServingTls;
use crate::workload_tokens::TokenService;
use calls::Calls;
use connection::Connection;
use guests::Guests;

mod calls;
mod connection;
mod guests;

pub use connection::Peer;

/// Strangers: connections that proved nothing yet. With what TLS and HTTP/2 keep
/// for each they take some 30 MiB.
const STRANGERS: Limits = Limits {
    in_service: 768,
    waiting: 4096,
    waiting_of_one: 4096,
};
/// How long an accepted connection waits for its handshake. Clients give a whole
/// call ten seconds, so that later would be for nobody.
const STRANGERS_WAIT: Duration = Duration::from_secs(8);
/// Connections that had a call with a good token.
const MAX_GUESTS: usize = 1024;
/// After a failed accept, which is nearly always a lack of file descriptors:
/// trying again at once would take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How many connections wait in the kernel: a cluster that starts all at once
/// must not be turned away.
const BACKLOG: u32 = 4096;

/// Binds the port.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What the server is made of.
pub struct Server {
    pub tls: Arc<ServingTls>,
    pub certificates: CaService,
    pub tokens: TokenService,
    pub strangers: FairQueue<IpAddr>,
    pub metrics: Metrics,
}

/// The line in which connections wait for their handshake.
pub fn strangers() -> FairQueue<IpAddr> {
    FairQueue::start(STRANGERS, STRANGERS_WAIT)
}

impl Server {
    /// Serves until the drain starts, and then the calls in hand.
    pub async fn serve(self, listener: TcpListener, mut drain: drain::Watch) {
        let calls = Calls::new(self.certificates, self.tokens);
        let guests = Guests::new(MAX_GUESTS);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.started() => {
                    // The port is free before anybody hears that the drain is done.
                    drop(listener);
                    return;
                }
            };
            match accepted {
                Ok((stream, client)) => {
                    let connection = Connection {
                        client: canonical(client),
                        calls: calls.clone(),
                        tls: Arc::clone(&self.tls),
                        strangers: self.strangers.clone(),
                        guests: guests.clone(),
                        metrics: self.metrics.clone(),
                        drain: drain.clone(),
                    };
                    tokio::spawn(connection.serve(stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A socket that listens on all addresses shows IPv4 clients as IPv6 ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
