//! One outbound connection: from the application to wherever it is going.
//!
//! ```text
//!  destination ─▶ Directory ─▶ Upstream ─┬─ unknown, or standing aside: as it is
//!                                        ├─ HTTP: an endpoint for each request
//!                                        └─ bytes: an endpoint for the connection
//! ```

mod destinations;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bulkhead_core::sidecar::SidecarConfig;
use futures::FutureExt as _;
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::Instant;

use crate::accounts::{Account, Terms};
use crate::buffer::Buffered;
use crate::copy::copy_both_ways;
use crate::detect::{Sniff, first_bytes};
use crate::failure::Failure;
use crate::http1::{self, Session};
use crate::http2;
use crate::inbound::DETECTION_TIMEOUT;
use crate::metrics::{Direction, Metrics, Server};
use crate::socket;
use crate::trace::Beginner;
use crate::upstream::{Place, Requests, Stream, Upstream};

pub(crate) use destinations::Destinations;

/// What connections that nobody knows more about count under, which is what
/// Istio's dashboards know them by.
const PASSTHROUGH: &str = "PassthroughCluster";
/// How soon a server must have spoken first to be known for it. One that gives
/// up on a silent client speaks later.
const SERVER_FIRST: Duration = Duration::from_secs(1);

/// What a worker's outbound connections share.
pub(crate) struct Outbound {
    pub(crate) config: Arc<SidecarConfig>,
    pub(crate) metrics: Metrics,
    pub(crate) destinations: Destinations,
    /// The ports on which the proxy itself takes redirected connections.
    pub(crate) own_ports: Vec<u16>,
}

/// Where a listener's connections go.
#[derive(Clone)]
pub(crate) enum Towards {
    Upstream(Rc<Upstream>),
    /// The one address that the listener stands for, or wherever each was going
    /// before it was redirected.
    Anywhere(Option<SocketAddr>),
}

impl Outbound {
    /// Serves one connection to its end. Whatever goes wrong is counted and
    /// logged here, because nobody waits for it.
    pub(crate) async fn serve(self: Rc<Self>, stream: TcpStream, towards: Towards, terms: Terms) {
        let (upstream, port) = match towards {
            Towards::Upstream(upstream) => (upstream, None),
            Towards::Anywhere(destination) => match self.destination(&stream, destination) {
                Ok(address) => (self.destinations.get(address).await, Some(address.port())),
                Err(failure) => {
                    self.report(&failure, "the proxy itself");
                    socket::reset_on_close(&stream);
                    return;
                }
            },
        };
        let client = Buffered::new(stream);
        if let Err(error) = self.connection(client, &upstream, port, terms).await {
            let service = &upstream.targets().service;
            if error.kind() == io::ErrorKind::OutOfMemory {
                self.metrics
                    .refused(Direction::Outbound, Reason::Overloaded);
            }
            tracing::debug!(%error, service, "an outbound connection broke");
        }
    }

    /// Where a connection was going; never to this proxy, which would send it to
    /// itself for ever.
    fn destination(
        &self,
        stream: &TcpStream,
        destination: Option<SocketAddr>,
    ) -> Result<SocketAddr, Failure> {
        let failure = |detail: &dyn std::fmt::Display| {
            Failure::new(
                Reason::DestinationIsSelf,
                format!("the destination: {detail}"),
            )
        };
        let address = match destination {
            Some(address) => address,
            None => socket::original_destination(stream).map_err(|error| failure(&error))?,
        };
        let ip = address.ip().to_canonical();
        let is_here = ip.is_loopback() || self.config.pod_ips.contains(&ip);
        if is_here && self.own_ports.contains(&address.port()) {
            return Err(failure(&address));
        }
        Ok(SocketAddr::new(ip, address.port()))
    }

    async fn connection(
        &self,
        mut client: Buffered<TcpStream>,
        upstream: &Rc<Upstream>,
        port: Option<u16>,
        terms: Terms,
    ) -> io::Result<()> {
        let targets = upstream.targets();
        let is_opaque = match targets.protocol {
            _ if upstream.is_passthrough() => true,
            Protocol::Opaque => true,
            Protocol::Auto => {
                upstream.speaks_first.get()
                    || port.is_some_and(|port| self.config.opaque_ports.contains(port))
            }
            Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => false,
        };
        let mut inside = if is_opaque {
            Sniff::Opaque
        } else {
            let first = first_bytes(&mut client, DETECTION_TIMEOUT).await?;
            first.on_port_of(targets.protocol)
        };
        let mut tunnel = None;
        if inside == Sniff::More {
            // The server may be the one that begins; whoever speaks first tells.
            let Some(mut opened) = self.open(&client, upstream).await else {
                return Ok(());
            };
            inside = outwait(&mut client, &mut opened.server, upstream).await?;
            tunnel = Some(opened);
        }
        match inside {
            Sniff::Http1 => {
                drop(tunnel);
                let account = terms.account.clone();
                let mut requests = Requests::new(Rc::clone(upstream));
                let mut session = self.session(upstream, terms);
                let served = {
                    let work = pin!(http1::serve(&mut client, &mut requests, &mut session));
                    self.until_ended(&account, work).await
                };
                // Else a response that is cut off could look like a whole one.
                served.inspect_err(|_| socket::reset_on_close(&client))
            }
            Sniff::Http2 => {
                drop(tunnel);
                let account = terms.account.clone();
                let mut session = self.session(upstream, terms);
                let work = Box::pin(http2::serve(client, Rc::clone(upstream), &mut session));
                self.until_ended(&account, work).await
            }
            Sniff::Tls(_) | Sniff::Opaque | Sniff::More => {
                let tunnel = match tunnel {
                    Some(tunnel) => Some(tunnel),
                    None => self.open(&client, upstream).await,
                };
                let Some(tunnel) = tunnel else {
                    return Ok(());
                };
                let carried = {
                    let account = &terms.account;
                    let work = pin!(self.carry(&mut client, upstream, tunnel, account));
                    self.until_ended(account, work).await
                };
                carried.inspect_err(|_| socket::reset_on_close(&client))
            }
        }
    }

    /// Does a connection's work, to its end or until its memory is needed. It takes
    /// what is pinned already: a future that is handed over is kept twice for as long as
    /// the connection lives.
    async fn until_ended(
        &self,
        account: &Account,
        work: impl Future<Output = io::Result<()>> + Unpin,
    ) -> io::Result<()> {
        tokio::select! {
            biased;
            done = work => done,
            failure = account.ended() => {
                self.metrics.refused(Direction::Outbound, failure.reason);
                Err(io::Error::other(failure))
            }
        }
    }

    /// What the requests of one connection share.
    fn session(&self, upstream: &Upstream, terms: Terms) -> Session {
        let targets = upstream.targets();
        let labels = self.metrics.outbound(&Server {
            service: &targets.service,
            namespace: targets.namespace.as_deref(),
            workload: &upstream.workload(),
            identity: upstream.identity().as_ref(),
        });
        Session {
            metrics: Rc::new(self.metrics.http(Direction::Outbound, labels)),
            terms,
            policy: None,
            trace: Beginner::new(self.config.trace_sampling),
        }
    }

    /// A connection to one endpoint for bytes that nobody looks at. Where there
    /// is none to be had, the client's is reset.
    async fn open(&self, client: &Buffered<TcpStream>, upstream: &Upstream) -> Option<Tunnel> {
        let passthrough = upstream.is_passthrough();
        let connected = async {
            let place = upstream.choose(&[])?;
            upstream.connect(place, Protocol::Opaque).await
        };
        match connected.await {
            Ok((place, stream)) => Some(Tunnel {
                server: Buffered::new(stream),
                place,
                passthrough,
            }),
            Err(failure) => {
                self.report(&failure, &upstream.targets().service);
                socket::reset_on_close(client);
                None
            }
        }
    }

    /// Carries bytes both ways, to the end.
    async fn carry(
        &self,
        client: &mut Buffered<TcpStream>,
        upstream: &Upstream,
        tunnel: Tunnel,
        account: &Account,
    ) -> io::Result<()> {
        let Tunnel {
            mut server,
            place,
            passthrough,
        } = tunnel;
        let targets = upstream.targets();
        let labels = if passthrough {
            self.metrics.process.passthrough();
            self.metrics.outbound(&Server {
                service: PASSTHROUGH,
                ..Server::default()
            })
        } else {
            self.metrics.outbound(&Server {
                service: &targets.service,
                namespace: targets.namespace.as_deref(),
                workload: &upstream.workload(),
                identity: place.identity(),
            })
        };
        let metrics = self.metrics.tcp(Direction::Outbound, labels);
        let answered = || account.finished_request();
        let copied = copy_both_ways(client, &mut server, &metrics.meter, answered).await;
        copied.inspect_err(|error| self.break_off(&targets.service, &mut server, error))
    }

    /// Makes a connection that broke on one side break on the other too. A server
    /// that refused the client said so in an alert, which may still be unread.
    fn break_off(&self, service: &str, server: &mut Buffered<Stream>, error: &io::Error) {
        let unread = unconstrained(server.fill()).now_or_never();
        let unread = unread.and_then(Result::err);
        let failures = [Some(error), unread.as_ref()].into_iter().flatten();
        let mut failures = failures.map(Failure::of_upstream);
        if let Some(refused) = failures.find(|it| it.reason == Reason::TlsHandshakeFailed) {
            self.report(&refused, service);
        }
        socket::reset_on_close(server);
    }

    fn report(&self, failure: &Failure, service: &str) {
        self.metrics.refused(Direction::Outbound, failure.reason);
        tracing::info!(
            reason = failure.reason.code(),
            detail = failure.detail,
            upstream = service,
            "refused a connection: {}",
            failure.reason.cause()
        );
    }
}

/// A connection to an endpoint that carries bytes.
struct Tunnel {
    server: Buffered<Stream>,
    place: Place,
    passthrough: bool,
}

/// Waits with a client that was silent at first until it or the server speaks,
/// and says what the client speaks. A machine that is busy makes every client
/// slow; it must not change what is known of their requests. Nothing is taken:
/// whatever either says is in its buffer.
async fn outwait(
    client: &mut Buffered<TcpStream>,
    server: &mut Buffered<Stream>,
    upstream: &Upstream,
) -> io::Result<Sniff> {
    let began = Instant::now();
    let client_is_first = tokio::select! {
        biased;
        _ = client.fill() => true,
        _ = server.fill() => false,
    };
    if client_is_first && !client.buffer.is_empty() {
        return first_bytes(client, DETECTION_TIMEOUT).await;
    }
    if !server.buffer.is_empty() && began.elapsed() < SERVER_FIRST {
        upstream.speaks_first.set(true);
    }
    Ok(Sniff::Opaque)
}
