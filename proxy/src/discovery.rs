//! What destinations are: asked of control when the application first dials
//! them, kept while it uses them, and told again by control when they change.
//!
//! ```text
//!  a connection ─▶ Directory ─▶ watch ◀─ cache ◀─ stream ◀─ control
//!                      └── first dial: subscribe ──▶ stream ──▶
//! ```
//!
//! - [`Directory`]: where connections ask.
//! - `cache`: what is known and what is wanted, by name.
//! - `stream`: the conversation with control.
//!
//! A control that is away takes nothing from what is known.

mod cache;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::discovery::{Destination, Endpoint, Endpoints};
use bulkhead_core::protocol::Protocol;
use bulkhead_core::sidecar::OutboundListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::upstream::Upstream;
use cache::Cache;

pub(crate) use stream::{Client, FirstWord, Subscribers};

/// How long a first dial waits for control to say what the destination is.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// Where connections to one destination go, as it is known at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Targets {
    /// The destination's name, for metrics and logs.
    pub(crate) service: String,
    /// The Service's namespace, where there is a Service.
    pub(crate) namespace: Option<String>,
    pub(crate) protocol: Protocol,
    pub(crate) route: Route,
}

/// [`bulkhead_core::discovery::Route`], with the endpoints that it names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Route {
    #[default]
    Unknown,
    Endpoint(Endpoint),
    Endpoints(Arc<Endpoints>),
}

impl Targets {
    /// What control says of an address, with the endpoints where it names some.
    fn new(address: SocketAddr, destination: &Destination, route: Route) -> Self {
        let (service, namespace) = match &destination.service {
            Some(service) => (
                format!("{}.{}.svc.cluster.local", service.name, service.namespace),
                Some(service.namespace.clone()),
            ),
            None => (address.to_string(), None),
        };
        Self {
            service,
            namespace,
            protocol: destination.protocol,
            route,
        }
    }

    /// An upstream whose endpoints stand in the settings.
    pub(crate) fn of_settings(listener: &OutboundListener) -> Self {
        let endpoints = listener.addresses.iter().map(|address| Endpoint {
            address: *address,
            ready: true,
            zone: String::new(),
            workload: String::new(),
            identity: Some(listener.identity.clone()),
        });
        let endpoints = endpoints.collect();
        Self {
            service: listener.name.clone(),
            namespace: None,
            protocol: listener.protocol,
            route: Route::Endpoints(Arc::new(Endpoints { endpoints })),
        }
    }

    /// The endpoints that may be given something new. A pod that was dialled by
    /// its own address is one whatever it says of itself.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let (one, several) = match &self.route {
            Route::Unknown => (None, &[][..]),
            Route::Endpoint(endpoint) => (Some(endpoint), &[][..]),
            Route::Endpoints(endpoints) => (None, &endpoints.endpoints[..]),
        };
        let ready = several.iter().filter(|endpoint| endpoint.ready);
        one.into_iter().chain(ready)
    }
}

/// How it stands with control.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Link {
    /// It is being connected to, for the first time or after a moment's loss.
    Connecting,
    Connected,
    /// It could not be connected to, or there is none.
    Away,
}

/// Where connections ask what their destination is. Cheap to clone; all clones
/// are one.
#[derive(Clone)]
pub(crate) struct Directory {
    cache: Arc<Cache>,
    link: watch::Receiver<Link>,
}

impl Directory {
    /// What is known of an address, from now on; nothing where so many are in
    /// use that no more can be asked about.
    pub(crate) fn watch(
        &self,
        address: SocketAddr,
    ) -> Option<watch::Receiver<Option<Arc<Targets>>>> {
        self.cache.watch(address)
    }

    /// Waits for a first answer, where one can be expected.
    pub(crate) async fn first_answer(&self, upstream: &Upstream) {
        let mut link = self.link.clone();
        let away = async {
            // An error means that nobody will ever connect.
            let _ = link.wait_for(|link| *link == Link::Away).await;
        };
        let answer = async {
            tokio::select! {
                biased;
                () = upstream.wait() => {}
                () = away => {}
            }
        };
        // Without an answer the connection goes where it was going.
        let _ = timeout(FIRST_ANSWER, answer).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(ready: bool) -> Endpoint {
        Endpoint {
            address: "192.0.2.1:80".parse().unwrap(),
            ready,
            zone: String::new(),
            workload: String::new(),
            identity: None,
        }
    }

    #[test]
    fn a_service_sends_to_ready_pods_and_a_pods_own_address_to_that_pod() {
        let targets = |route| Targets {
            route,
            ..Targets::default()
        };
        let endpoints = vec![endpoint(true), endpoint(false)];
        let service = targets(Route::Endpoints(Arc::new(Endpoints { endpoints })));
        assert_eq!(service.endpoints().count(), 1);
        let pod = targets(Route::Endpoint(endpoint(false)));
        assert_eq!(pod.endpoints().count(), 1);
        assert_eq!(targets(Route::Unknown).endpoints().count(), 0);
    }
}
