//! Connections to servers: the application behind an inbound port, or the
//! endpoints of an outbound destination.
//!
//! - `app`: the application, always one.
//! - `balancer`: which endpoint of a destination; `peer`: one of them; `stream`:
//!   a connection to it; `tls`: the settings for that.

mod app;
mod balancer;
mod peer;
mod stream;
mod tls;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::buffer::Buffered;
use crate::failure::Failure;
use crate::http1::{Attempt, Lease, Upstreams};

pub(crate) use app::{App, Presence};
pub(crate) use balancer::{Place, Requests, Upstream, Worker};
pub(crate) use peer::InFlight;
pub(crate) use stream::Stream;
pub(crate) use tls::TlsSettings;

/// For how long servers keep an idle connection, even those that keep one for the
/// shortest time: gunicorn for 2 s, Node for 5 s, Apache for 5 s, nginx for 75 s. One
/// that has been idle for longer may be closed at the moment when it is used.
pub(crate) const SURELY_KEPT: Duration = Duration::from_secs(1);

/// Makes connections to one destination.
pub(crate) trait Connect {
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;

    async fn connect(&self) -> Result<Self::Io, Failure>;
}

/// A destination to which nothing is ever sent: whoever asks is told why.
pub(crate) struct Refused(pub Failure);

impl Connect for Refused {
    type Io = tokio::io::DuplexStream;

    async fn connect(&self) -> Result<Self::Io, Failure> {
        Err(self.0.clone())
    }
}

/// One server connection for one client connection. What a server ties to its
/// connection (NTLM does) stays with the client that it belongs to.
pub(crate) struct OneToOne<C: Connect> {
    connector: C,
    /// And since when it has been idle.
    kept: Option<(Buffered<C::Io>, Instant)>,
}

impl<C: Connect> OneToOne<C> {
    pub(crate) fn new(connector: C) -> Self {
        Self {
            connector,
            kept: None,
        }
    }
}

impl<C: Connect> Upstreams for OneToOne<C> {
    type Io = C::Io;
    const POOLED: bool = false;

    async fn take(&mut self, attempt: Attempt, again: bool) -> Result<Lease<C::Io>, Failure> {
        if let Some((mut connection, since)) = self.kept.take()
            && attempt == Attempt::First
            && (again || since.elapsed() < SURELY_KEPT)
            && peer::is_quiet(&mut connection)
        {
            return Ok(Lease {
                connection,
                reused: true,
                vouched: false,
            });
        }
        Ok(Lease {
            connection: Buffered::new(self.connector.connect().await?),
            reused: false,
            vouched: false,
        })
    }

    fn avoid(&mut self) {}

    fn give_back(&mut self, connection: Buffered<C::Io>) {
        self.kept = Some((connection, Instant::now()));
    }
}
