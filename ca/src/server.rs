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
use bulkhead_runtime::tasks::Tasks;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::queue::{self, FairQueue};
use crate::service::CaService;
use crate::serving::ServingTls;
use crate::workload_tokens::TokenService;
use calls::Calls;
use connection::Connection;
use guests::Guests;

mod allowance;
mod calls;
mod connection;
mod guests;
mod outbox;

pub use connection::Peer;

/// After a failed accept, which is nearly always a lack of file descriptors:
/// trying again at once would take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a lack of room is worth a line in the log.
const SAY_EVERY: Duration = Duration::from_secs(10);
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
    pub limits: Limits,
    pub metrics: Metrics,
}

/// The line in which connections wait for their handshake.
pub fn strangers(limits: &Limits, tasks: &Tasks) -> FairQueue<IpAddr> {
    let line = queue::Limits {
        in_service: limits.strangers,
        waiting: limits.connections_waiting,
        waiting_of_one: limits.connections_waiting,
    };
    let name = "the line for handshakes";
    FairQueue::start(name, line, limits.connection_patience, tasks)
}

impl Server {
    /// Serves until the drain starts, and then the calls in hand.
    pub async fn serve(self, listener: TcpListener, mut drain: drain::Watch) {
        let calls = Calls::new(self.certificates, self.tokens);
        let guests = Guests::new(self.limits.guests, self.limits.leaving);
        let mut room = Room::new(self.limits.connections(), self.metrics.clone());
        loop {
            let accepted = async {
                let place = room.place().await;
                listener.accept().await.map(|accepted| (accepted, place))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = drain.started() => {
                    // The port is free before anybody hears that the drain is done.
                    drop(listener);
                    return;
                }
            };
            match accepted {
                Ok(((stream, client), place)) => {
                    let connection = Connection {
                        client: canonical(client),
                        calls: calls.clone(),
                        tls: Arc::clone(&self.tls),
                        strangers: self.strangers.clone(),
                        guests: guests.clone(),
                        limits: self.limits,
                        metrics: self.metrics.clone(),
                        drain: drain.clone(),
                        _place: place,
                    };
                    tokio::spawn(connection.serve(stream));
                }
                Err(error) => {
                    self.metrics.accept_failures.inc();
                    if room.says_so() {
                        tracing::warn!(%error, "accepting a connection failed; it is tried again all the time");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// All the connections that there may be. More wait in the kernel.
struct Room {
    places: Arc<Semaphore>,
    metrics: Metrics,
    said: Option<Instant>,
}

impl Room {
    fn new(connections: usize, metrics: Metrics) -> Self {
        metrics.connection_limit(connections);
        Self {
            places: Arc::new(Semaphore::new(connections)),
            metrics,
            said: None,
        }
    }

    /// Waits for a place.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return place;
        }
        self.metrics.connections_held_back.inc();
        if self.says_so() {
            tracing::warn!(
                "all connections that this CA may have are open; more wait in the kernel until one ends"
            );
        }
        let place = Arc::clone(&self.places).acquire_owned().await;
        place.expect("the semaphore is never closed")
    }

    /// Whether it is time for a line in the log again.
    fn says_so(&mut self) -> bool {
        let is_time = self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY);
        if is_time {
            self.said = Some(Instant::now());
        }
        is_time
    }
}

/// A socket that listens on all addresses shows IPv4 clients as IPv6 ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
