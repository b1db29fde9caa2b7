//! Which endpoint a request or connection goes to.
//!
//! The endpoints in turn, and of the one whose turn it is and another one the
//! less busy: an endpoint that is slow gets fewer, and nobody has to be asked.
//! What is known of the destination is looked at anew each time, so an endpoint
//! that has left gets nothing more from that moment on.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::identity::SpiffeId;
use bulkhead_core::protocol::Protocol;
use bulkhead_core::reason::Reason;
use bulkhead_runtime::clock::Clock;
use tokio::sync::watch;
use tokio::time::timeout;

use super::peer::{InFlight, Peer, Security};
use super::stream::Stream;
use super::tls::TlsSettings;
use crate::buffer::Buffered;
use crate::bypass;
use crate::credentials::Latest;
use crate::discovery::{Route, Targets};
use crate::failure::Failure;
use crate::http1::{Attempt, Lease, Upstreams};

/// A peer in another zone answers within a fraction of this; one that is gone
/// never does, and another endpoint is waiting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Where no other is waiting, a lost packet or two may come again.
const ONLY_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many endpoints are tried for one request or connection.
const MAX_TRIED: usize = 5;
/// How long to wait for news of endpoints that hang up where mesh TLS was agreed on:
/// control tells each proxy by itself, so one may hear of a change before its peers.
const NEWS_TIMEOUT: Duration = Duration::from_secs(5);

/// What all outbound connections of a worker share.
pub(crate) struct Worker {
    pub(crate) latest: Latest,
    pub(crate) clock: Clock,
    pub(crate) bypass: bypass::State,
    pub(crate) tls: TlsSettings,
    /// The pod's own addresses. What goes there does not pass through this
    /// proxy's inbound side, so nobody would answer mutual TLS.
    pub(crate) own: Vec<IpAddr>,
}

/// One destination, as one worker uses it.
pub(crate) struct Upstream {
    worker: Rc<Worker>,
    /// Where the application was going; nothing where that was a port which
    /// stands for an upstream.
    original: Option<Rc<Peer>>,
    source: RefCell<watch::Receiver<Option<Arc<Targets>>>>,
    known: RefCell<Known>,
    turn: Cell<usize>,
    /// Whether its servers are known to speak before their clients do, so that
    /// nobody need wait for these.
    pub(crate) speaks_first: Cell<bool>,
}

/// What the worker made of the latest that is known.
struct Known {
    targets: Arc<Targets>,
    peers: Vec<Rc<Peer>>,
}

/// An endpoint that was chosen, and how to speak to it.
#[derive(Clone)]
pub(crate) struct Place {
    peer: Rc<Peer>,
    security: Security,
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.peer, &other.peer) && self.security == other.security
    }
}

impl Place {
    /// The identity that a connection to it proves.
    pub(crate) fn identity(&self) -> Option<&SpiffeId> {
        match self.security {
            Security::Plain => None,
            Security::Mesh(_) => self.peer.identity.as_ref(),
        }
    }

    /// Leaves it alone for a while: it is about to go, or there is nobody behind its
    /// proxy.
    pub(crate) fn avoid(&self) {
        self.peer.avoid();
    }
}

impl Upstream {
    pub(crate) fn new(
        worker: Rc<Worker>,
        original: Option<SocketAddr>,
        source: watch::Receiver<Option<Arc<Targets>>>,
    ) -> Self {
        let original = original.map(|address| Peer::new(address, None));
        // Until something is known, everything goes where it was going.
        let address = original.as_ref().map(|peer| peer.address.to_string());
        let known = Known {
            targets: Arc::new(Targets {
                service: address.unwrap_or_default(),
                ..Targets::default()
            }),
            peers: original.clone().into_iter().collect(),
        };
        let targets = source.borrow().clone();
        let upstream = Self {
            worker,
            original,
            source: RefCell::new(source),
            known: RefCell::new(known),
            turn: Cell::new(0),
            speaks_first: Cell::new(false),
        };
        if let Some(targets) = targets {
            upstream.take_over(targets);
        }
        upstream
    }

    /// Whether anything was ever said of the destination.
    pub(crate) fn is_known(&self) -> bool {
        self.source.borrow().borrow().is_some()
    }

    /// What is known of the destination now.
    pub(crate) fn targets(&self) -> Arc<Targets> {
        self.refresh();
        Arc::clone(&self.known.borrow().targets)
    }

    /// Waits until something is known at all.
    pub(crate) async fn wait(&self) {
        let mut source = self.source.borrow().clone();
        // Whoever could tell is gone: then this is all that there is to know.
        let _ = source.wait_for(Option::is_some).await;
    }

    /// Whether connections go where they were going, as they are.
    pub(crate) fn is_passthrough(&self) -> bool {
        self.worker.bypass.forwards() || matches!(self.targets().route, Route::Unknown)
    }

    /// The identity that all endpoints prove, where that is one.
    pub(crate) fn identity(&self) -> Option<SpiffeId> {
        self.refresh();
        let known = self.known.borrow();
        let mut identities = known.peers.iter().map(|peer| peer.identity.as_ref());
        let first = identities.next()??;
        identities
            .all(|identity| identity == Some(first))
            .then(|| first.clone())
    }

    /// The workload of the endpoints, by the first that has one.
    pub(crate) fn workload(&self) -> String {
        match &self.targets().route {
            Route::Unknown => None,
            Route::Endpoint(endpoint) => Some(endpoint.workload.clone()),
            Route::Endpoints(endpoints) => {
                endpoints.endpoints.first().map(|it| it.workload.clone())
            }
        }
        .unwrap_or_default()
    }

    /// Makes a connection to an endpoint: to another one where the first, to
    /// which nothing has been said yet, does not answer.
    pub(crate) async fn connect(
        &self,
        first: Place,
        inside: Protocol,
    ) -> Result<(Place, Stream), Failure> {
        let mut tried = Vec::new();
        let mut place = first;
        loop {
            let failure = match self.connect_to(&place, inside).await {
                Ok(mut stream) => {
                    stream.in_flight = Some(place.peer.hold());
                    return Ok((place, stream));
                }
                Err(failure) => failure,
            };
            tried.push(place);
            place = self.next(&mut tried, failure).await?;
        }
    }

    /// Chooses another endpoint, after this failure of the one that was tried last.
    ///
    /// Where that one is there and hung up on mesh TLS, and no other is left, it was
    /// told something that this side has yet to hear: that its port is DISABLE now, or
    /// that its address belongs to somebody else. That is waited for.
    pub(crate) async fn next(
        &self,
        tried: &mut Vec<Place>,
        failure: Failure,
    ) -> Result<Place, Failure> {
        if let Ok(place) = self.choose(tried) {
            return Ok(place);
        }
        if !tried.last().is_some_and(|place| place.peer.hung_up()) {
            return Err(failure);
        }
        let mut source = self.source.borrow().clone();
        let changed = async {
            while source.changed().await.is_ok() {
                self.refresh();
                tried.retain(|place| self.is_current(place));
                if let Ok(place) = self.choose(tried) {
                    return Ok(place);
                }
            }
            Err(failure.clone())
        };
        timeout(NEWS_TIMEOUT, changed).await.unwrap_or(Err(failure))
    }

    pub(crate) async fn connect_to(
        &self,
        place: &Place,
        inside: Protocol,
    ) -> Result<Stream, Failure> {
        let within = if self.known.borrow().peers.len() > 1 {
            CONNECT_TIMEOUT
        } else {
            ONLY_CONNECT_TIMEOUT
        };
        let Place { peer, security } = place;
        peer.connect(&self.worker, inside, security, within).await
    }

    pub(crate) fn hold(&self, place: &Place) -> InFlight {
        place.peer.hold()
    }

    /// Chooses an endpoint, none of those that were tried.
    pub(crate) fn choose(&self, tried: &[Place]) -> Result<Place, Failure> {
        self.refresh();
        let forwards = self.worker.bypass.forwards();
        let is_tried = |peer: &Rc<Peer>| tried.iter().any(|place| Rc::ptr_eq(&place.peer, peer));
        let peer = match &self.original {
            Some(original) if forwards && !is_tried(original) => Some(Rc::clone(original)),
            Some(_) if forwards => None,
            _ if tried.len() == MAX_TRIED => None,
            _ => self.take_turn(is_tried),
        };
        let Some(peer) = peer else {
            let service = &self.known.borrow().targets.service;
            let detail = format!("none of {service} is left to try");
            return Err(Failure::new(Reason::NoReadyEndpoint, detail));
        };
        let security = if forwards || peer.identity.is_none() {
            Security::Plain
        } else {
            let latest = self.worker.latest.get();
            Security::Mesh(latest.ok_or_else(|| {
                Failure::new(Reason::NoCertificate, "the CA has not issued one yet")
            })?)
        };
        Ok(Place { peer, security })
    }

    /// The one whose turn it is or another one, whichever is less busy.
    fn take_turn(&self, is_tried: impl Fn(&Rc<Peer>) -> bool) -> Option<Rc<Peer>> {
        let known = self.known.borrow();
        let peers = &known.peers;
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let from = |first: usize| {
            let count = peers.len();
            let in_turn = (0..count).map(move |offset| &peers[first.wrapping_add(offset) % count]);
            let mut untried = in_turn.filter(|peer| !is_tried(peer));
            let first = untried.next()?;
            if !first.is_avoided() {
                return Some(first);
            }
            Some(untried.find(|peer| !peer.is_avoided()).unwrap_or(first))
        };
        let one = from(turn)?;
        let other = from(scattered(turn)).unwrap_or(one);
        let less_busy = if other.in_flight() < one.in_flight() {
            other
        } else {
            one
        };
        Some(Rc::clone(less_busy))
    }

    /// Whether connections to a place may carry anything new.
    pub(crate) fn is_current(&self, place: &Place) -> bool {
        let known = self.known.borrow();
        let mut all = known.peers.iter().chain(&self.original);
        all.any(|peer| Rc::ptr_eq(peer, &place.peer))
            && match &place.security {
                Security::Plain => true,
                Security::Mesh(with) => {
                    let latest = self.worker.latest.get();
                    latest.is_some_and(|latest| Arc::ptr_eq(with, &latest))
                }
            }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn tidy(&self) {
        self.each_peer(Peer::tidy);
    }

    /// Closes all that is idle.
    pub(crate) fn close_idle(&self) {
        self.each_peer(Peer::close_idle);
    }

    fn each_peer(&self, act: impl Fn(&Peer)) {
        let known = self.known.borrow();
        let all = known.peers.iter().chain(&self.original);
        all.for_each(|peer| act(peer));
    }

    /// Takes over what has become known since.
    fn refresh(&self) {
        let mut source = self.source.borrow_mut();
        // An error means that nothing will ever change.
        if !source.has_changed().unwrap_or(false) {
            return;
        }
        if let Some(targets) = source.borrow_and_update().clone() {
            self.take_over(targets);
        }
    }

    /// Endpoints that stay keep their connections.
    fn take_over(&self, targets: Arc<Targets>) {
        let mut known = self.known.borrow_mut();
        let key = |peer: &Rc<Peer>| (peer.address, peer.identity.clone());
        let before = known.peers.drain(..).map(|peer| (key(&peer), peer));
        let mut before: HashMap<_, _> = before.collect();
        let peers = targets.endpoints().map(|endpoint| {
            let is_own = self.worker.own.contains(&endpoint.address.ip());
            let identity = endpoint.identity.clone().filter(|_| !is_own);
            let key = (endpoint.address, identity);
            before
                .remove(&key)
                .unwrap_or_else(|| Peer::new(key.0, key.1))
        });
        known.peers = peers.collect();
        if matches!(targets.route, Route::Unknown) {
            known.peers.extend(self.original.clone());
        }
        known.targets = targets;
    }
}

/// A number that looks random beside its neighbours (Knuth's multiplicative
/// hash).
fn scattered(number: usize) -> usize {
    (number as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_right(32) as usize
}

/// The HTTP/1 requests of one client connection on their way to a destination.
pub(crate) struct Requests {
    upstream: Rc<Upstream>,
    /// Where the connection in use goes.
    in_use: Option<Place>,
    /// Where the request at hand could not be delivered.
    tried: Vec<Place>,
}

impl Requests {
    pub(crate) fn new(upstream: Rc<Upstream>) -> Self {
        Self {
            upstream,
            in_use: None,
            tried: Vec::new(),
        }
    }
}

impl Upstreams for Requests {
    type Io = Stream;
    const POOLED: bool = true;

    async fn take(&mut self, attempt: Attempt, again: bool) -> Result<Lease<Stream>, Failure> {
        match (attempt, self.in_use.take()) {
            (Attempt::First, _) => self.tried.clear(),
            (Attempt::Elsewhere, Some(place)) => {
                place.peer.avoid();
                self.tried.push(place);
            }
            _ => {}
        }
        let place = self.upstream.choose(&self.tried)?;
        if attempt != Attempt::Fresh
            && let Some(mut connection) = place.peer.take_idle(&place.security, again)
        {
            connection.io.in_flight = Some(place.peer.hold());
            let vouched = connection.io.is_vouched();
            self.in_use = Some(place);
            return Ok(Lease {
                connection,
                reused: true,
                vouched,
            });
        }
        let (place, stream) = self.upstream.connect(place, Protocol::Http1).await?;
        let vouched = stream.is_vouched();
        self.in_use = Some(place);
        Ok(Lease {
            connection: Buffered::new(stream),
            reused: false,
            vouched,
        })
    }

    fn avoid(&mut self) {
        if let Some(place) = &self.in_use {
            place.avoid();
        }
    }

    fn give_back(&mut self, connection: Buffered<Stream>) {
        if let Some(Place { peer, security }) = self.in_use.take() {
            peer.give_back(connection, security);
        }
    }
}
