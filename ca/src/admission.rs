//! How a call comes to be served: in its turn, by its address while nobody knows
//! whose it is, then by its caller.
//!
//! ```text
//!  call ─▶ line of its address ─▶ whose token is it? ─▶ line of its caller ─▶ signing
//! ```
//!
//! Before authentication an address is all that cannot be made up: a token can
//! say anything, and whoever sends ten thousand different ones would have ten
//! thousand turns. Behind one address may sit a whole node (NAT, a node proxy);
//! it has one turn in each round as others have, all that others leave, and
//! within its line the urgent go first, so that it is never starved. Afterwards
//! the address says nothing: a pod is a caller wherever it calls from, and a
//! node proxy has a turn for each identity that it asks for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::tasks::Tasks;
use tonic::metadata::MetadataMap;

use crate::audit::Record;
use crate::authenticate::certificate::CertificateRenewal;
use crate::authenticate::{Authenticate, AuthenticationError, Caller, bearer_token};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::queue::{self, Busy, FairQueue, Key, Load, Turn};
use crate::server::Peer;
use crate::service::Refusal;

/// How many tokens are looked at at once where somebody else is asked about each.
pub const REMOTE: usize = 64;

/// Whom the second line tells apart: an identity, the pod that asks, and the
/// identity that it asks for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct CallerKey {
    pub identity: String,
    /// The pod's UID, or what else tells callers of one identity apart
    /// ([`Caller::instance`]).
    pub asks: String,
}

/// Both lines, and who stands between them.
#[derive(Clone)]
pub struct Admission {
    authenticator: Arc<dyn Authenticate>,
    renewal: Option<CertificateRenewal>,
    clock: Clock,
    addresses: FairQueue<IpAddr>,
    callers: FairQueue<CallerKey>,
    metrics: Metrics,
}

/// How full they are.
#[derive(Clone, Debug)]
pub struct Loads {
    pub addresses: Load<IpAddr>,
    pub callers: Load<CallerKey>,
}

/// How many are served at once.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Tokens that are looked at.
    pub authenticating: usize,
    /// Certificates and tokens that are made.
    pub issuing: usize,
}

impl Admission {
    pub fn start(
        authenticator: Arc<dyn Authenticate>,
        places: Places,
        limits: &Limits,
        clock: Clock,
        metrics: Metrics,
        tasks: &Tasks,
    ) -> Self {
        let line = |in_service, waiting_of_one| queue::Limits {
            in_service,
            waiting: limits.calls_waiting,
            waiting_of_one,
        };
        let addresses = line(places.authenticating, limits.calls_waiting);
        let callers = line(places.issuing, limits.calls_waiting_of_one);
        let patience = limits.call_patience;
        Self {
            authenticator,
            renewal: None,
            clock,
            addresses: FairQueue::start("the line of addresses", addresses, patience, tasks),
            callers: FairQueue::start("the line of callers", callers, patience, tasks),
            metrics,
        }
    }

    /// Also lets workloads renew by the certificates that they have.
    pub fn with_renewal(mut self, renewal: CertificateRenewal) -> Self {
        self.renewal = Some(renewal);
        self
    }

    /// Whose call it is, once it is its address's turn.
    pub async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Caller, Refusal> {
        let token = bearer_token(metadata)?;
        let _turn = self.turn_of_address(peer, record).await?;
        let caller = self.authenticator.authenticate(token).await?;
        Ok(known(caller, peer, record))
    }

    /// The same for a call that may be made with a certificate in place of a token.
    /// Whoever has a token is judged by that alone, whatever else it shows.
    pub async fn authenticate_renewal(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Caller, Refusal> {
        let has_no_token = matches!(bearer_token(metadata), Err(AuthenticationError::NoToken));
        let (Some(renewal), Some(shown), true) = (&self.renewal, peer.shown(), has_no_token) else {
            return self.authenticate(metadata, peer, record).await;
        };
        let _turn = self.turn_of_address(peer, record).await?;
        let caller = renewal.caller(shown)?;
        Ok(known(caller, peer, record))
    }

    async fn turn_of_address(
        &self,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Turn<IpAddr>, Busy> {
        let address = peer.address().ip();
        self.wait("authentication", &self.addresses, address, record)
            .await
    }

    /// Waits until `caller` may be served with something for `identity`.
    pub async fn turn(
        &self,
        caller: &Caller,
        identity: &str,
        record: &mut Record,
    ) -> Result<Turn<CallerKey>, Busy> {
        let key = CallerKey {
            identity: identity.to_owned(),
            asks: caller.instance(),
        };
        self.wait("issuance", &self.callers, key, record).await
    }

    /// How full both lines are, with so many of the longest.
    pub fn loads(&self, longest: usize) -> Loads {
        Loads {
            addresses: self.addresses.load(longest),
            callers: self.callers.load(longest),
        }
    }

    async fn wait<K: Key>(
        &self,
        name: &'static str,
        queue: &FairQueue<K>,
        key: K,
        record: &mut Record,
    ) -> Result<Turn<K>, Busy> {
        let urgency = record.claims().urgency(self.clock.now());
        let began = Instant::now();
        let _waiting = self.metrics.waiting(name);
        let turn = queue.turn(key, urgency).await;
        let waited = began.elapsed();
        self.metrics.waited(name, waited);
        record.waited(waited);
        turn
    }
}

/// Notes who calls, now that it is known.
fn known(caller: Caller, peer: &Peer, record: &mut Record) -> Caller {
    let caller = caller.from_address(peer.address().ip());
    record.caller(&caller);
    peer.is_authenticated(&format!("{} {}", caller.id(), caller.instance()));
    caller
}
