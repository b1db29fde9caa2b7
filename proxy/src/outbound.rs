//! One outbound connection: from the application on loopback to an upstream's
//! proxy, over mesh mTLS.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bulkhead_core::sidecar::OutboundListener;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use futures::FutureExt as _;
use tokio::net::TcpStream;
use tokio::task::unconstrained;

use crate::buffer::Buffered;
use crate::copy::copy_both_ways;
use crate::credentials::Latest;
use crate::detect::{Sniff, first_bytes};
use crate::failure::Failure;
use crate::http1::{self, Session};
use crate::http2;
use crate::inbound::DETECTION_TIMEOUT;
use crate::metrics::{Direction, Metrics};
use crate::socket::{self, OverTcp};
use crate::upstream::{Connect as _, Mesh, MeshStream, Pool};

/// What a worker's connections to one upstream share.
pub(crate) struct Outbound {
    upstream: Arc<OutboundListener>,
    metrics: Metrics,
    http1: Pool,
    http2: Rc<Mesh>,
    opaque: Rc<Mesh>,
}

impl Outbound {
    pub(crate) fn new(
        upstream: OutboundListener,
        latest: &Latest,
        clock: &Clock,
        metrics: Metrics,
    ) -> Self {
        let upstream = Arc::new(upstream);
        let mesh = |inside| {
            let upstream = Arc::clone(&upstream);
            Mesh::new(upstream, inside, latest.clone(), clock.clone())
        };
        Self {
            http1: Pool::new(mesh(Protocol::Http1)),
            http2: Rc::new(mesh(Protocol::Http2)),
            opaque: Rc::new(mesh(Protocol::Opaque)),
            upstream,
            metrics,
        }
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(self: Rc<Self>, stream: TcpStream, drain: drain::Watch) {
        if let Err(error) = self.connection(stream, drain).await {
            tracing::debug!(%error, upstream = self.upstream.name, "an outbound connection broke");
        }
    }

    async fn connection(&self, stream: TcpStream, drain: drain::Watch) -> io::Result<()> {
        let mut client = Buffered::new(stream);
        let inside = match self.upstream.protocol {
            Protocol::Opaque => Sniff::Opaque,
            _ => first_bytes(&mut client, DETECTION_TIMEOUT).await?,
        };
        let labels = self
            .metrics
            .outbound(&self.upstream.name, &self.upstream.identity);
        let mut session = Session {
            metrics: Rc::new(self.metrics.http(Direction::Outbound, labels.clone())),
            drain,
            policy: None,
        };
        match inside {
            Sniff::Http1 => {
                let mut pool = self.http1.clone();
                let served = http1::serve(&mut client, &mut pool, &mut session).await;
                // Else a response that is cut off could look like a whole one.
                served.inspect_err(|_| socket::reset_on_close(&client))
            }
            Sniff::Http2 => http2::serve(client, Rc::clone(&self.http2), &mut session).await,
            Sniff::Tls(_) | Sniff::Opaque | Sniff::More => {
                let metrics = self.metrics.tcp(&labels);
                match self.opaque.connect().await {
                    Ok(server) => {
                        let mut server = Buffered::new(server);
                        let copied = copy_both_ways(&mut client, &mut server, &metrics.meter).await;
                        copied.inspect_err(|error| self.break_off(&client, &mut server, error))
                    }
                    Err(failure) => {
                        self.report(&failure);
                        socket::reset_on_close(&client);
                        Ok(())
                    }
                }
            }
        }
    }

    /// Makes a connection that broke on one side break on the other too. A server
    /// that refused the client said so in an alert, which may still be unread.
    fn break_off(
        &self,
        client: &impl OverTcp,
        server: &mut Buffered<MeshStream>,
        error: &io::Error,
    ) {
        let unread = unconstrained(server.fill()).now_or_never();
        let unread = unread.and_then(Result::err);
        let failures = [Some(error), unread.as_ref()].into_iter().flatten();
        let mut failures = failures.map(Failure::of_upstream);
        if let Some(refused) = failures.find(|it| it.reason == Reason::TlsHandshakeFailed) {
            self.report(&refused);
        }
        socket::reset_on_close(client);
        socket::reset_on_close(server);
    }

    fn report(&self, failure: &Failure) {
        self.metrics.refused(Direction::Outbound, failure.reason);
        tracing::info!(
            reason = failure.reason.code(),
            detail = failure.detail,
            upstream = self.upstream.name,
            "refused a connection: {}",
            failure.reason.cause()
        );
    }
}
