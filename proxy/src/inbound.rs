//! One inbound connection, top to bottom: whose it is, whether it may speak,
//! and on to the application.
//!
//! ```text
//!  first bytes ─▶ screen ─┬─ terminate TLS ─▶ peer ─┐
//!                         ├─ as it is ──────────────┼─▶ decide ─▶ Permit ─▶ HTTP/1, HTTP/2 or bytes
//!                         └─ refuse, in words that the client understands
//! ```

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::alpn;
use bulkhead_core::policy::{
    self, Connection, FirstBytes, InboundPolicy, MtlsMode, Permit, Screening,
};
use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_pki::verifier::PeerId;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::buffer::Buffered;
use crate::bypass;
use crate::copy::copy_both_ways;
use crate::credentials::Latest;
use crate::detect::{Sniff, first_bytes};
use crate::failure::Failure;
use crate::http1::{self, Session};
use crate::http2;
use crate::metrics::{Direction, Metrics, PeerLabels};
use crate::open_connections::{Admitted, Guard, OpenConnections};
use crate::socket::{self, OverTcp};
use crate::upstream::{App, Connect as _, OneToOne};

/// How long a client may stay silent before the application, which might be meant
/// to speak first, is connected to. It is the whole price of not knowing a port's
/// protocol.
pub(crate) const DETECTION_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a client may take to prove who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a worker's inbound connections share.
pub(crate) struct Inbound {
    pub(crate) config: Arc<SidecarConfig>,
    /// The latest that control said, or what the settings say.
    pub(crate) policy: watch::Receiver<Arc<InboundPolicy>>,
    pub(crate) bypass: bypass::State,
    pub(crate) open: OpenConnections,
    pub(crate) latest: Latest,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
}

/// Where a connection came from and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) source: SocketAddr,
    /// The application's listener.
    pub(crate) target: SocketAddr,
}

impl Inbound {
    /// Serves one connection to its end. Whatever goes wrong is counted and
    /// logged here, because nobody waits for it.
    pub(crate) async fn serve(
        self: Rc<Self>,
        stream: TcpStream,
        route: Route,
        drain: drain::Watch,
    ) {
        match self.connection(stream, route, drain).await {
            Ok(()) => {}
            Err(Ended::Broken(error)) => {
                tracing::debug!(%error, source = %route.source, "an inbound connection broke");
            }
            Err(Ended::Refused(failure)) => {
                self.metrics.refused(Direction::Inbound, failure.reason);
                tracing::info!(
                    reason = failure.reason.code(),
                    detail = failure.detail,
                    source = %route.source,
                    port = route.target.port(),
                    policy = self.policy().name,
                    "refused a connection: {}",
                    failure.reason.cause()
                );
            }
        }
    }

    async fn connection(
        &self,
        stream: TcpStream,
        route: Route,
        drain: drain::Watch,
    ) -> Result<(), Ended> {
        let port = route.target.port();
        let mode = self.policy().mode(port);
        let mut client = Buffered::new(stream);
        let mut first = self.look(&mut client, mode, port).await?;
        if first == Sniff::More && mode != MtlsMode::Strict {
            let mut app = connect(route, &client).await?;
            match outwait(&mut client, &mut app).await {
                Some(known) => first = known,
                None => {
                    let permit = self.decide(port, None)?;
                    self.metrics.plaintext(route.source.ip());
                    let labels = self.metrics.inbound(None);
                    return self.carry(client, app, &labels, drain, permit).await;
                }
            }
        }
        let screened = policy::screen(mode, beginning(first));
        match screened {
            Ok(Screening::TerminateTls) => self.mutual_tls(client, route, drain).await,
            Ok(Screening::Forward) => {
                let permit = self.decide(port, None)?;
                self.metrics.plaintext(route.source.ip());
                let inside = match first {
                    _ if self.is_opaque(port) || self.bypass.forwards() => Protocol::Opaque,
                    Sniff::Http1 => Protocol::Http1,
                    Sniff::Http2 => Protocol::Http2,
                    Sniff::Tls(_) | Sniff::Opaque | Sniff::More => Protocol::Opaque,
                };
                self.forward(client, inside, None, route, drain, permit)
                    .await
            }
            Err(reason) => self.refuse(client, first, reason, route, drain).await,
        }
    }

    /// The policy in force at this moment.
    fn policy(&self) -> Arc<InboundPolicy> {
        self.in_force().0
    }

    /// The policy in force at this moment, and what those are let in by that it
    /// permits.
    fn in_force(&self) -> (Arc<InboundPolicy>, Admitted) {
        match self.bypass.policy() {
            Some(policy) => (Arc::new(policy), Admitted::ByBypass),
            None => (Arc::clone(&self.policy.borrow()), Admitted::ByPolicy),
        }
    }

    /// Decides by the policy in force, and has the connection decided on again
    /// whenever that changes.
    fn decide(&self, port: u16, peer: Option<&PeerId>) -> Result<Permitted, Failure> {
        let (policy, admitted) = self.in_force();
        let peer = peer.map(PeerId::id);
        let permit = policy::decide(&policy, Connection { port, peer })
            .map_err(|reason| Failure::new(reason, format!("the rule: {}", policy.name)))?;
        Ok(Permitted {
            _permit: permit,
            guard: self.open.add(port, peer.cloned(), admitted),
        })
    }

    /// Ends what policy no longer permits, for ever.
    pub(crate) async fn follow_policy(self: Rc<Self>) {
        let (policies, phases) = (self.policy.clone(), self.bypass.changes());
        self.open.follow(policies, phases).await;
    }

    /// Whether somebody said that nobody looks at this port's bytes.
    fn is_opaque(&self, port: u16) -> bool {
        self.config.protocol(port) == Protocol::Opaque
    }

    /// Waits for as many bytes as it takes to know what a connection is.
    async fn look(
        &self,
        client: &mut Buffered<TcpStream>,
        mode: MtlsMode,
        port: u16,
    ) -> io::Result<Sniff> {
        match mode {
            MtlsMode::Disable if self.is_opaque(port) => Ok(Sniff::Opaque),
            // Nobody but a TLS client may speak here, and it speaks first.
            MtlsMode::Strict => first_bytes(client, HANDSHAKE_TIMEOUT).await,
            MtlsMode::Permissive | MtlsMode::Disable => {
                first_bytes(client, DETECTION_TIMEOUT).await
            }
        }
    }

    async fn mutual_tls(
        &self,
        client: Buffered<TcpStream>,
        route: Route,
        drain: drain::Watch,
    ) -> Result<(), Ended> {
        let Some(credentials) = self.latest.get() else {
            socket::reset_on_close(&client);
            let detail = "the CA has not issued one yet";
            return Err(Failure::new(Reason::NoCertificate, detail).into());
        };
        let handshake = TlsAcceptor::from(credentials.server_config()).accept(client);
        let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return Err(Failure::new(Reason::TlsHandshakeFailed, error).into());
            }
            Err(_) => {
                let detail = format!("not finished within {HANDSHAKE_TIMEOUT:?}");
                return Err(Failure::new(Reason::TlsHandshakeFailed, detail).into());
            }
        };
        let peer = credentials
            .peer(stream.get_ref().1, self.clock.now())
            .map_err(|error| Failure::new(Reason::TlsHandshakeFailed, error))?;
        let permit = self.decide(route.target.port(), Some(&peer))?;
        let mut client = Buffered::new(stream);
        let inside = self.inside(&mut client, route.target.port()).await?;
        self.forward(client, inside, Some(&peer), route, drain, permit)
            .await
    }

    /// What is inside mesh TLS: what the port is known for, what the client's
    /// protocol name says, and else what the bytes look like.
    async fn inside(
        &self,
        client: &mut Buffered<TlsStream<Buffered<TcpStream>>>,
        port: u16,
    ) -> io::Result<Protocol> {
        if self.is_opaque(port) {
            return Ok(Protocol::Opaque);
        }
        match alpn::inside(client.io.get_ref().1.alpn_protocol()) {
            Protocol::Auto => Ok(match first_bytes(client, DETECTION_TIMEOUT).await? {
                Sniff::Http1 => Protocol::Http1,
                Sniff::Http2 => Protocol::Http2,
                Sniff::Tls(_) | Sniff::Opaque | Sniff::More => Protocol::Opaque,
            }),
            named => Ok(named),
        }
    }

    /// Forwards what a permit was given for.
    async fn forward<S>(
        &self,
        mut client: Buffered<S>,
        inside: Protocol,
        peer: Option<&PeerId>,
        route: Route,
        drain: drain::Watch,
        permit: Permitted,
    ) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + OverTcp + Unpin + 'static,
    {
        let labels = self.metrics.inbound(peer.map(PeerId::id));
        let app = App(route.target);
        match inside {
            Protocol::Http1 => {
                let mut session = self.session(labels, drain);
                let mut app = OneToOne::new(app);
                let served = http1::serve(&mut client, &mut app, &mut session);
                let served = permit.hold(served).await;
                // Else a response that is cut off could look like a whole one.
                served.inspect_err(|_| socket::reset_on_close(&client))
            }
            Protocol::Http2 | Protocol::Grpc => {
                let mut session = self.session(labels, drain);
                permit.hold(http2::serve(client, app, &mut session)).await
            }
            Protocol::Opaque | Protocol::Auto => {
                let app = connect(route, &client).await?;
                self.carry(client, app, &labels, drain, permit).await
            }
        }
    }

    /// Carries bytes that nobody looks at.
    async fn carry<S>(
        &self,
        mut client: Buffered<S>,
        mut app: Buffered<TcpStream>,
        labels: &PeerLabels,
        drain: drain::Watch,
        permit: Permitted,
    ) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + OverTcp + Unpin,
    {
        let metrics = self.metrics.tcp(labels);
        let copied = copy_both_ways(&mut client, &mut app, &metrics.meter);
        let copied = permit.hold(copied).await;
        drop(drain);
        copied.inspect_err(|_| {
            // What broke on one side must not look whole on the other.
            socket::reset_on_close(&client);
            socket::reset_on_close(&app);
        })
    }

    /// Says no in the client's own protocol, where it has one to say it in.
    async fn refuse(
        &self,
        mut client: Buffered<TcpStream>,
        first: Sniff,
        reason: Reason,
        route: Route,
        drain: drain::Watch,
    ) -> Result<(), Ended> {
        let reason = match first {
            Sniff::More => Reason::DetectionTimeout,
            _ => reason,
        };
        // For the log: whoever is on call looks for the client and for the rule.
        let detail = format!(
            "{} began with {first:?} on port {}; the rule: {}",
            route.source,
            route.target.port(),
            self.policy().name
        );
        let failure = Failure::new(reason, detail);
        let mut session = self.session(self.metrics.inbound(None), drain);
        match first {
            Sniff::Http1 => {
                http1::refuse(&mut client, &failure, &session).await?;
                Ok(http1::close_gently(&mut client).await?)
            }
            Sniff::Http2 => Ok(http2::refuse(client, failure, &mut session).await?),
            Sniff::Tls(_) | Sniff::Opaque | Sniff::More => {
                socket::reset_on_close(&client);
                Err(failure.into())
            }
        }
    }

    fn session(&self, labels: PeerLabels, drain: drain::Watch) -> Session {
        Session {
            metrics: Rc::new(self.metrics.http(Direction::Inbound, labels)),
            drain,
            policy: Some(self.policy().name.clone()),
        }
    }
}

/// Connects to the application for a client whose protocol may have no words for
/// a failure: it gets what the application's own host would have sent.
async fn connect(route: Route, client: &impl OverTcp) -> Result<Buffered<TcpStream>, Failure> {
    let connected = App(route.target).connect().await;
    let app = connected.inspect_err(|_| socket::reset_on_close(client))?;
    Ok(Buffered::new(app))
}

/// Waits for a silent client and for the application at once. The client may
/// wait for the server to speak, or be slow: a segment of it was lost, or its CPU
/// was given to others. Gives what the client began with, or nothing where the
/// application was first, or neither said anything.
async fn outwait(client: &mut Buffered<TcpStream>, app: &mut Buffered<TcpStream>) -> Option<Sniff> {
    let first = tokio::select! {
        biased;
        first = first_bytes(client, HANDSHAKE_TIMEOUT) => first.ok(),
        _ = app.fill() => None,
    };
    first.filter(|first| *first != Sniff::More)
}

fn beginning(first: Sniff) -> FirstBytes {
    match first {
        Sniff::Tls(hello) if hello.offers_mesh => FirstBytes::MeshTls,
        Sniff::Tls(_) => FirstBytes::OtherTls,
        Sniff::Http1 | Sniff::Http2 | Sniff::Opaque | Sniff::More => FirstBytes::Plaintext,
    }
}

/// The right to go on with one connection, for as long as policy has it so.
struct Permitted {
    _permit: Permit,
    guard: Guard,
}

impl Permitted {
    /// Does the connection's work, to its end or until it is no longer permitted.
    async fn hold(&self, work: impl Future<Output = io::Result<()>>) -> Result<(), Ended> {
        tokio::select! {
            biased;
            done = work => Ok(done?),
            reason = self.guard.revoked() => {
                let detail = "a new policy no longer permits this connection";
                Err(Failure::new(reason, detail).into())
            }
        }
    }
}

/// How a connection ended before its time.
enum Ended {
    Refused(Failure),
    Broken(io::Error),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}
