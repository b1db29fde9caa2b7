//! The connections that are open, for whoever looks at the admin port.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};

use super::{Direction, PeerLabels};

/// The most connections that are shown one by one.
const MAX_SHOWN: usize = 1000;

#[derive(Clone, Debug, Eq, PartialEq, Hash, EncodeLabelSet)]
pub(super) struct Labels {
    direction: &'static str,
    protocol: &'static str,
}

/// Those of one proxy. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Connections {
    list: Arc<Mutex<List>>,
    pub(super) count: Family<Labels, Gauge>,
}

#[derive(Default)]
struct List {
    next: u64,
    open: BTreeMap<u64, Connection>,
}

struct Connection {
    labels: Labels,
    peers: Arc<PeerLabels>,
    since: Instant,
}

impl Connections {
    /// Lists a connection for as long as the guard lives.
    pub(super) fn open(
        &self,
        direction: Direction,
        protocol: &'static str,
        peers: Arc<PeerLabels>,
    ) -> Listed {
        let labels = Labels {
            direction: direction.as_str(),
            protocol,
        };
        let gauge = self.count.get_or_create_owned(&labels);
        gauge.inc();
        let mut list = self.lock();
        let number = list.next;
        list.next += 1;
        let connection = Connection {
            labels,
            peers,
            since: Instant::now(),
        };
        list.open.insert(number, connection);
        drop(list);
        Listed {
            number,
            gauge,
            connections: self.clone(),
        }
    }

    /// How many there are, and the oldest of them one by one.
    pub(crate) fn to_json(&self) -> Value {
        let list = self.lock();
        let count = |direction: Direction| {
            let all = list.open.values();
            all.filter(|it| it.labels.direction == direction.as_str())
                .count()
        };
        let shown = list.open.values().take(MAX_SHOWN).map(|connection| {
            json!({
                "direction": connection.labels.direction,
                "protocol": connection.labels.protocol,
                "source": connection.peers.source_principal,
                "destination": connection.peers.destination_principal,
                "service": connection.peers.destination_service,
                "security": connection.peers.connection_security_policy,
                "open_seconds": connection.since.elapsed().as_secs(),
            })
        });
        json!({
            "inbound": count(Direction::Inbound),
            "outbound": count(Direction::Outbound),
            "connections": shown.collect::<Vec<_>>(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the list.
pub(super) struct Listed {
    number: u64,
    gauge: Gauge,
    connections: Connections,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.gauge.dec();
        self.connections.lock().open.remove(&self.number);
    }
}
