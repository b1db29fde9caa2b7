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
use std::pin::pin;
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
use bulkhead_runtime::backoff::jitter;
use bulkhead_runtime::clock::Clock;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::accounts::{Account, Terms};
use crate::buffer::{Buffered, ReadAhead};
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
use crate::trace::Beginner;
use crate::upstream::{App, Connect as _, OneToOne, Presence};

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
    pub(crate) presence: Presence,
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

/// Mutual TLS with a client's proxy.
type MeshStream = TlsStream<ReadAhead<TcpStream>>;

impl Inbound {
    /// Serves one connection to its end. Whatever goes wrong is counted and
    /// logged here, because nobody waits for it.
    pub(crate) async fn serve(self: Rc<Self>, stream: TcpStream, route: Route, mut terms: Terms) {
        // Not all at the same age: those that were made at once would come at once again.
        let age = self.config.max_connection_age;
        terms.until = age.map(|age| Instant::now() + age.mul_f64(0.9 + 0.2 * jitter()));
        let account = terms.account.clone();
        let served = tokio::select! {
            biased;
            served = self.connection(stream, route, terms) => served,
            failure = account.ended() => Err(failure.into()),
        };
        match served {
            Ok(()) => {}
            Err(Ended::Broken(error)) => {
                if error.kind() == io::ErrorKind::OutOfMemory {
                    let reason = Reason::Overloaded;
                    self.metrics.refused(Direction::Inbound, reason);
                }
                tracing::debug!(%error, source = %route.source, "an inbound connection broke");
            }
            Err(Ended::Refused(failure)) => {
                self.metrics.refused(Direction::Inbound, failure.reason);
                if failure.reason == Reason::Overloaded {
                    // The budget says once that this begins, and once that it is over.
                    return;
                }
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

    async fn connection(&self, stream: TcpStream, route: Route, terms: Terms) -> Result<(), Ended> {
        let port = route.target.port();
        let mode = self.policy().mode(port);
        let mut client = Buffered::new(stream);
        let protocol = self.config.protocol(port);
        let mut first = self.look(&mut client, mode, port).await?;
        if first == Sniff::More && mode != MtlsMode::Strict {
            let mut app = connect(&self.app(route), &client).await?;
            match outwait(&mut client, &mut app).await {
                Some(known) => first = known,
                None if protocol.is_http() => {}
                None => {
                    let permit = self.decide(port, None)?;
                    self.metrics.plaintext(route.source.ip());
                    let labels = self.metrics.inbound(None);
                    return self.carry(client, app, &labels, terms, permit).await;
                }
            }
        }
        let screened = policy::screen(mode, beginning(first));
        match screened {
            Ok(Screening::TerminateTls) => self.mutual_tls(client, route, terms).await,
            Ok(Screening::Forward) => {
                let permit = self.decide(port, None)?;
                self.metrics.plaintext(route.source.ip());
                let inside = match first {
                    _ if self.is_opaque(port) || self.bypass.forwards() => Protocol::Opaque,
                    first => first.on_port_of(protocol).inside(),
                };
                self.forward(client, inside, None, route, terms, permit)
                    .await
            }
            Err(reason) => Box::pin(self.refuse(client, first, reason, route, terms)).await,
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
        terms: Terms,
    ) -> Result<(), Ended> {
        let Some(credentials) = self.latest.get() else {
            socket::reset_on_close(&client);
            let detail = "the CA has not issued one yet";
            return Err(Failure::new(Reason::NoCertificate, detail).into());
        };
        let protocol = self.config.protocol(route.target.port());
        let server = credentials.server_config(protocol);
        // A handshake takes kilobytes, which the connection would keep to its end.
        let stream = Box::pin(handshake(server, client)).await?;
        let peer = credentials
            .peer(stream.get_ref().1, self.clock.now())
            .map_err(|error| Failure::new(Reason::TlsHandshakeFailed, error))?;
        let permit = self.decide(route.target.port(), Some(&peer))?;
        let mut client = Buffered::new(stream);
        let inside = self.inside(&mut client, route.target.port()).await?;
        self.forward(client, inside, Some(&peer), route, terms, permit)
            .await
    }

    /// What is inside mesh TLS: what the port is known for, what the client's
    /// protocol name says, and else what the bytes look like.
    async fn inside(
        &self,
        client: &mut Buffered<Box<MeshStream>>,
        port: u16,
    ) -> io::Result<Protocol> {
        if self.is_opaque(port) {
            return Ok(Protocol::Opaque);
        }
        match alpn::inside(client.io.get_ref().1.alpn_protocol()) {
            Protocol::Auto => {
                let first = first_bytes(client, DETECTION_TIMEOUT).await?;
                Ok(first.on_port_of(self.config.protocol(port)).inside())
            }
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
        terms: Terms,
        permit: Permitted,
    ) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + OverTcp + Unpin + 'static,
    {
        let labels = self.metrics.inbound(peer.map(PeerId::id));
        let app = self.app(route);
        let account = terms.account.clone();
        match inside {
            Protocol::Http1 => {
                let mut session = self.session(labels, terms);
                let mut app = OneToOne::new(app);
                let served = {
                    let work = pin!(http1::serve(&mut client, &mut app, &mut session));
                    permit.hold(&account, work).await
                };
                // Else a response that is cut off could look like a whole one.
                served.inspect_err(|_| socket::reset_on_close(&client))
            }
            Protocol::Http2 | Protocol::Grpc => {
                let mut session = self.session(labels, terms);
                let work = Box::pin(http2::serve(client, app, &mut session));
                permit.hold(&account, work).await
            }
            Protocol::Opaque | Protocol::Auto => {
                let app = connect(&self.app(route), &client).await?;
                self.carry(client, app, &labels, terms, permit).await
            }
        }
    }

    /// Carries bytes that nobody looks at.
    async fn carry<S>(
        &self,
        mut client: Buffered<S>,
        mut app: Buffered<TcpStream>,
        labels: &PeerLabels,
        terms: Terms,
        permit: Permitted,
    ) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + OverTcp + Unpin,
    {
        let metrics = self.metrics.tcp(Direction::Inbound, labels.clone());
        let copied = {
            let answered = || terms.account.finished_request();
            let work = copy_both_ways(&mut client, &mut app, &metrics.meter, answered);
            permit.hold(&terms.account, pin!(work)).await
        };
        drop(terms);
        copied.inspect_err(|_| {
            // What broke on one side must not look whole on the other.
            socket::reset_on_close(&client);
            socket::reset_on_close(&app);
        })
    }

    /// Where a connection goes on to.
    fn app(&self, route: Route) -> App {
        App {
            address: route.target,
            presence: self.presence.clone(),
        }
    }

    /// Says no in the client's own protocol, where it has one to say it in.
    async fn refuse(
        &self,
        mut client: Buffered<TcpStream>,
        first: Sniff,
        reason: Reason,
        route: Route,
        terms: Terms,
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
        let mut session = self.session(self.metrics.inbound(None), terms);
        match first {
            Sniff::Http1 => {
                let close = http1::Afterwards::Close;
                http1::refuse(&mut client, &failure, None, &session, close).await?;
                Ok(http1::close_gently(&mut client).await?)
            }
            Sniff::Http2 => Ok(http2::refuse(client, failure, &mut session).await?),
            Sniff::Tls(_) | Sniff::Opaque | Sniff::More => {
                socket::reset_on_close(&client);
                Err(failure.into())
            }
        }
    }

    fn session(&self, labels: PeerLabels, terms: Terms) -> Session {
        Session {
            metrics: Rc::new(self.metrics.http(Direction::Inbound, labels)),
            terms,
            policy: Some(self.policy().name.clone()),
            trace: Beginner::new(self.config.trace_sampling),
        }
    }
}

/// Has a client prove who it is.
async fn handshake(
    config: Arc<ServerConfig>,
    client: Buffered<TcpStream>,
) -> Result<Box<MeshStream>, Failure> {
    let handshake = TlsAcceptor::from(config).accept(client.into());
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(mut stream)) => {
            socket::bound_tls(stream.get_mut().1);
            Ok(Box::new(stream))
        }
        Ok(Err(error)) => Err(Failure::new(Reason::TlsHandshakeFailed, error)),
        Err(_) => {
            let detail = format!("not finished within {HANDSHAKE_TIMEOUT:?}");
            Err(Failure::new(Reason::TlsHandshakeFailed, detail))
        }
    }
}

/// Connects to the application for a client whose protocol may have no words for
/// a failure: it gets what the application's own host would have sent.
async fn connect(app: &App, client: &impl OverTcp) -> Result<Buffered<TcpStream>, Failure> {
    let connected = app.connect().await;
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
    /// Does the connection's work, to its end or until it is no longer permitted, or
    /// its memory is needed. It takes what is pinned already: a future that is handed over
    /// is kept twice for as long as the connection lives.
    async fn hold(
        &self,
        account: &Account,
        work: impl Future<Output = io::Result<()>> + Unpin,
    ) -> Result<(), Ended> {
        tokio::select! {
            biased;
            done = work => Ok(done?),
            reason = self.guard.revoked() => {
                let detail = "a new policy no longer permits this connection";
                Err(Failure::new(reason, detail).into())
            }
            failure = account.ended() => Err(failure.into()),
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
