//! The threads of the data path.
//!
//! Each worker has a runtime of its own and serves its connections from accept
//! to end; nothing on the way of a request is shared with another thread. One
//! worker is the default, because a sidecar lives in a pod that was sized for
//! its application.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bulkhead_core::policy::InboundPolicy;
use bulkhead_core::reason::Reason;
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain;
use bulkhead_runtime::tasks::Tasks;
use futures::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local, unconstrained};
use tokio::time::{Instant, timeout};

use crate::accounts::Accounts;
use crate::budget::{self, Budget};
use crate::buffer;
use crate::bypass;
use crate::credentials::Latest;
use crate::discovery::{Directory, Targets};
use crate::inbound::{Inbound, Route};
use crate::metrics::{Direction, Metrics};
use crate::open_connections::OpenConnections;
use crate::outbound::{Destinations, Outbound, Towards};
use crate::socket;
use crate::upstream::{self, Presence, TlsSettings, Upstream};

/// How long to wait after a failed accept, which is nearly always a lack of file
/// descriptors: trying again at once would take the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The part of the drain in which those are waited for who have not heard that the
/// proxy is leaving. Some never hear of it; the rest is for what they have in hand.
const LATECOMERS_SHARE: u32 = 3;

/// How often a worker looks for what is idle.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// What one worker serves. The listening sockets are shared with the other
/// workers; whatever else it needs on a request's way, it makes for itself.
pub(crate) struct Work {
    pub(crate) config: Arc<SidecarConfig>,
    pub(crate) latest: Latest,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) policy: watch::Receiver<Arc<InboundPolicy>>,
    /// Whether that is what counts, and connections may be taken in.
    pub(crate) first_word: watch::Receiver<bool>,
    pub(crate) bypass: bypass::State,
    pub(crate) directory: Directory,
    pub(crate) budget: Budget,
    pub(crate) inbound_sockets: Vec<InboundSocket>,
    pub(crate) outbound_sockets: Vec<OutboundSocket>,
    pub(crate) inbound_drain: drain::Watch,
    pub(crate) outbound_drain: drain::Watch,
    /// Counts outbound connections, over all workers.
    pub(crate) open_outbound: watch::Sender<usize>,
    /// Ends the worker, whatever is still open.
    pub(crate) stop: watch::Receiver<bool>,
    /// Where it is told that a part of the worker has ended.
    pub(crate) tasks: Tasks,
}

/// A socket that takes inbound connections, and where they go.
pub(crate) struct InboundSocket {
    pub(crate) socket: std::net::TcpListener,
    /// The application, or nothing where redirection tells.
    pub(crate) forward: Option<SocketAddr>,
}

/// A socket that takes the application's connections.
pub(crate) struct OutboundSocket {
    pub(crate) socket: std::net::TcpListener,
    pub(crate) destination: Destination,
}

/// Where the connections of a socket go.
#[derive(Clone)]
pub(crate) enum Destination {
    /// To an upstream that stands in the settings.
    Upstream(Arc<Targets>),
    /// To one address, or wherever redirection says.
    Anywhere(Option<SocketAddr>),
}

/// Starts a worker.
pub(crate) fn spawn(index: u16, work: Work) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let _guard = work.tasks.guard("a worker");
            if let Err(error) = run(work) {
                tracing::error!(%error, index, "a worker could not start");
            }
        })
}

fn run(work: Work) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    budget::bind_thread(work.budget.clone());
    let local = LocalSet::new();
    let mut stop = work.stop.clone();
    local.spawn_local(serve(work));
    local.block_on(&runtime, async move {
        // An error means that whoever could stop us is gone.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    Ok(())
}

async fn serve(work: Work) {
    let own_ports = own_ports(&work);
    let accounts = Accounts::new(work.budget.clone());
    let inbound = Rc::new(Inbound {
        policy: work.policy,
        bypass: work.bypass.clone(),
        open: OpenConnections::default(),
        presence: Presence::default(),
        config: Arc::clone(&work.config),
        latest: work.latest.clone(),
        metrics: work.metrics.clone(),
        clock: work.clock.clone(),
    });
    let guard = work.tasks.guard("a worker's look at policy");
    let follow_policy = Rc::clone(&inbound).follow_policy();
    spawn_local(async move {
        let _guard = guard;
        follow_policy.await;
    });
    for InboundSocket { socket, forward } in work.inbound_sockets {
        let inbound = Rc::clone(&inbound);
        let drain = work.inbound_drain.clone();
        let mut first_word = work.first_word.clone();
        let (budget, accounts) = (work.budget.clone(), accounts.clone());
        let guard = work.tasks.guard("a worker's inbound listener");
        spawn_local(async move {
            let _guard = guard;
            // Connections that come before wait in the kernel: what the settings
            // permit may be more than what control is about to say. Whoever could
            // say it being gone means that the settings count.
            let _ = first_word.wait_for(|is_said| *is_said).await;
            let end = End {
                within: inbound.config.drain_duration,
                quiet: inbound.config.drain_quiet,
                presence: inbound.presence.clone(),
            };
            let accepted = accept(socket, budget, drain, end, move |stream, source, drain| {
                if let Some(route) = route(&stream, source, forward, &inbound) {
                    let inbound = Rc::clone(&inbound);
                    accounts.serve(drain, |terms| inbound.serve(stream, route, terms));
                }
            });
            accepted.await;
        });
    }
    let shared = Rc::new(upstream::Worker {
        latest: work.latest,
        clock: work.clock,
        bypass: work.bypass,
        tls: TlsSettings::default(),
        own: work.config.pod_ips.clone(),
    });
    let mut named = Vec::new();
    let outbound = Rc::new(Outbound {
        config: work.config,
        metrics: work.metrics,
        destinations: Destinations::new(Rc::clone(&shared), work.directory),
        own_ports,
    });
    for OutboundSocket {
        socket,
        destination,
    } in work.outbound_sockets
    {
        let outbound = Rc::clone(&outbound);
        let towards = match destination {
            Destination::Anywhere(address) => Towards::Anywhere(address),
            Destination::Upstream(targets) => {
                let (_, targets) = watch::channel(Some(targets));
                let upstream = Rc::new(Upstream::new(Rc::clone(&shared), None, targets));
                named.push(Rc::clone(&upstream));
                Towards::Upstream(upstream)
            }
        };
        let open = work.open_outbound.clone();
        let drain = work.outbound_drain.clone();
        let guard = work.tasks.guard("a worker's outbound listener");
        let (budget, accounts) = (work.budget.clone(), accounts.clone());
        let end = End {
            within: outbound.config.drain_duration,
            quiet: outbound.config.drain_quiet,
            presence: Presence::default(),
        };
        let accepted = accept(socket, budget, drain, end, move |stream, _, drain| {
            let outbound = Rc::clone(&outbound);
            let towards = towards.clone();
            let open = Open::new(&open);
            accounts.serve(drain, |terms| async move {
                outbound.serve(stream, towards, terms).await;
                drop(open);
            });
        });
        spawn_local(async move {
            let _guard = guard;
            accepted.await;
        });
    }
    spawn_local(give_back(accounts, outbound, named));
}

/// Gives back what is idle: what has been so for long, and all of it while memory is
/// short.
async fn give_back(accounts: Accounts, outbound: Rc<Outbound>, named: Vec<Rc<Upstream>>) {
    let tidy = async {
        loop {
            tokio::time::sleep(TIDY_EVERY).await;
            outbound.destinations.tidy();
            named.iter().for_each(|upstream| upstream.tidy());
        }
    };
    let under_pressure = accounts.follow(|| {
        buffer::give_back_kept();
        outbound.destinations.close_idle();
        named.iter().for_each(|upstream| upstream.close_idle());
    });
    tokio::join!(tidy, under_pressure);
}

/// The ports that take connections to anywhere: what is sent to one of them goes
/// round in circles.
fn own_ports(work: &Work) -> Vec<u16> {
    let inbound = work.inbound_sockets.iter();
    let inbound = inbound
        .filter(|listener| listener.forward.is_none())
        .map(|listener| &listener.socket);
    let outbound = work.outbound_sockets.iter();
    let outbound = outbound
        .filter(|listener| matches!(listener.destination, Destination::Anywhere(_)))
        .map(|listener| &listener.socket);
    let addresses = inbound
        .chain(outbound)
        .map(std::net::TcpListener::local_addr);
    addresses.flatten().map(|address| address.port()).collect()
}

/// What decides when a listener that drains is closed.
struct End {
    /// How long the drain may take.
    within: Duration,
    /// For how long nobody must have come. Those who send work here hear of its end at
    /// different times, some of them seconds late; a closed port would fail what they
    /// send until then.
    quiet: Duration,
    /// Whether there is still somebody to serve those who come.
    presence: Presence,
}

/// Accepts while there is memory for it. Once the drain has started it goes on for
/// those who have not heard of it, each of whom is told to go elsewhere next time,
/// until nobody has come for a while or there is no application to serve them.
async fn accept(
    socket: std::net::TcpListener,
    budget: Budget,
    mut drain: drain::Watch,
    end: End,
    mut serve: impl FnMut(TcpStream, SocketAddr, drain::Watch),
) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "listening failed");
            return;
        }
    };
    let mut serve = |(stream, source), drain: &drain::Watch| {
        socket::prepare(&stream);
        serve(stream, source, drain.clone());
    };
    let mut has_clients = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.started() => break,
            accepted = budget.room().then(|()| listener.accept()) => accepted,
        };
        match accepted {
            Ok(accepted) => {
                has_clients = true;
                serve(accepted, &drain);
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let until = Instant::now() + end.within / LATECOMERS_SHARE;
    while has_clients && Instant::now() < until {
        let next = timeout(end.quiet, budget.room().then(|()| listener.accept()));
        tokio::select! {
            biased;
            () = end.presence.ended() => break,
            next = next => match next {
                Ok(Ok(accepted)) => serve(accepted, &drain),
                Ok(Err(_)) => tokio::time::sleep(ACCEPT_PAUSE).await,
                Err(_) => break,
            },
        }
    }
    // Closing the socket resets the connections that wait to be accepted, and whose
    // clients believe them to be open. Without tokio's limit on what a task does at
    // once, which would end this before the queue is empty.
    while let Some(Ok(accepted)) = unconstrained(listener.accept()).now_or_never() {
        serve(accepted, &drain);
    }
}

/// Where an inbound connection goes; nothing where it must not go anywhere.
fn route(
    stream: &TcpStream,
    source: SocketAddr,
    forward: Option<SocketAddr>,
    inbound: &Inbound,
) -> Option<Route> {
    let target = match forward {
        Some(target) => Ok(target),
        None => socket::original_destination(stream),
    };
    // Somebody dialled the proxy's own port: forwarding would dial it again.
    let to_itself = |target| {
        let local = stream.local_addr();
        local.is_ok_and(|local| is_same(local, target))
    };
    match target {
        Ok(target) if !to_itself(target) => Some(Route { source, target }),
        _ => {
            let reason = Reason::DestinationIsSelf;
            inbound.metrics.refused(Direction::Inbound, reason);
            tracing::info!(reason = reason.code(), %source, "refused a connection: {}", reason.cause());
            socket::reset_on_close(stream);
            None
        }
    }
}

/// Whether two addresses are one. A socket of all interfaces shows an IPv4
/// address as one of IPv6, redirection shows it as it is.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

/// Counts a connection for as long as it lives.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxys_own_port_is_known_in_both_spellings_of_its_address() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = address("[::ffff:10.0.0.1]:15006");
        assert!(is_same(own, address("10.0.0.1:15006")));
        assert!(is_same(own, own));
        assert!(!is_same(own, address("10.0.0.1:8080")));
        assert!(!is_same(own, address("10.0.0.2:15006")));
    }
}
