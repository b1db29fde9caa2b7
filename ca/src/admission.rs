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
use std::time::{Duration, Instant};

use bulkhead_runtime::clock::Clock;
use tonic::metadata::MetadataMap;

use crate::audit::Record;
use crate::authenticate::{Authenticate, Caller, bearer_token};
use crate::metrics::Metrics;
use crate::queue::{Busy, FairQueue, Key, Limits, Load, Turn};
use crate::server::Peer;
use crate::service::Refusal;

/// How long a call waits in each of the two lines. With a review of its token in
/// between it is answered within the ten seconds that clients wait.
const PATIENCE: Duration = Duration::from_secs(4);
/// The most calls that wait in each: a request with its token takes some 10 KiB.
const WAITING: usize = 1024;
/// The most that wait of one caller. A workload needs one certificate at a time.
const WAITING_OF_ONE: usize = 32;
/// How many tokens are looked at at once where somebody else is asked about each.
pub const REMOTE: usize = 64;

/// Whom the second line tells apart: an identity, the pod that asks, and the
/// identity that it asks for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct CallerKey {
    pub identity: String,
    /// The pod's UID, or the identity that asks, where that is no pod's.
    pub asks: String,
}

/// Both lines, and who stands between them.
#[derive(Clone)]
pub struct Admission {
    authenticator: Arc<dyn Authenticate>,
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
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let limits = |in_service, waiting_of_one| Limits {
            in_service,
            waiting: WAITING,
            waiting_of_one,
        };
        let addresses = limits(places.authenticating, WAITING);
        let callers = limits(places.issuing, WAITING_OF_ONE);
        Self {
            authenticator,
            clock,
            addresses: FairQueue::start(addresses, PATIENCE),
            callers: FairQueue::start(callers, PATIENCE),
            metrics,
        }
    }

    /// Whose call it is, once it is its address's turn.
    pub async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Caller, Refusal> {
        let token = bearer_token(metadata)?;
        let address = peer.address().ip();
        let turn = self.wait("authentication", &self.addresses, address, record);
        let _turn = turn.await?;
        let caller = self.authenticator.authenticate(token).await?;
        record.caller(&caller);
        peer.is_authenticated();
        Ok(caller)
    }

    /// Waits until `caller` may be served with something for `identity`.
    pub async fn turn(
        &self,
        caller: &Caller,
        identity: &str,
        record: &mut Record,
    ) -> Result<Turn<CallerKey>, Busy> {
        let asks = caller.pod().map_or(caller.id().as_str(), |pod| &pod.uid);
        let key = CallerKey {
            identity: identity.to_owned(),
            asks: asks.to_owned(),
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
