//! Wiring: from settings to a running proxy, and to its end.

mod sockets;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::identity::IdentityError;
use bulkhead_core::policy::InboundPolicy;
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain::{self, Outcome};
use bulkhead_runtime::http_server;
use bulkhead_runtime::log;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_runtime::tasks::{Ended, Tasks};
use bulkhead_workload::tokens::TokenSource;
use bulkhead_workload::{Renewal, RenewalRequests, Settings};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::access_log::{self, AccessLog};
use crate::budget::Budget;
use crate::bypass::{self, Switch};
use crate::credentials::{self, Latest};
use crate::discovery::{self, Directory, FirstWord, Subscribers};
use crate::metrics::Metrics;
use crate::status::{Admin, NOT_DRAINING, Status};
use crate::worker::{self, Work};
use crate::workload_api::WorkloadApi;
use sockets::Sockets;

/// How long the last lines of the access log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What a proxy needs besides its settings.
#[derive(Debug, Default)]
pub struct Dependencies {
    pub clock: Clock,
    /// Where the process's log is the proxy's own, and its level can be changed.
    pub log_level: Option<log::Level>,
    /// Where the access log is written, while it is on.
    pub access_log: access_log::Output,
}

/// A running proxy. Dropping it stops it at once; [`Proxy::drain`] lets it
/// finish.
pub struct Proxy {
    pub addresses: Addresses,
    /// The certificate in use.
    pub latest: Latest,
    pub renewals: RenewalRequests,
    pub monitoring: Monitoring,
    drain_duration: Duration,
    drain_requests: mpsc::Receiver<()>,
    path: DataPath,
    access_log: access_log::Ending,
    _servers: drain::Trigger,
    tasks: Tasks,
    _running: Running,
}

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the workload has no valid identity: {0}")]
    Identity(#[from] IdentityError),
    #[error("listening on {address} for {what} failed: {error}; does something else use the port?")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        error: io::Error,
    },
    #[error(
        "making the socket {path} for the Workload API failed: {error}; is its directory there, and may this user write to it?"
    )]
    WorkloadApi { path: String, error: io::Error },
    #[error("starting a worker thread failed: {0}")]
    Worker(io::Error),
}

impl Proxy {
    /// Binds every port, then starts. Nothing is accepted before all of them are
    /// bound. Must be called in a tokio runtime, which runs everything but the
    /// data path.
    pub fn start(config: SidecarConfig, dependencies: Dependencies) -> Result<Self, StartError> {
        let id = config.spiffe_id()?;
        let budget = Budget::new(config.memory_limit);
        let mut sockets = Sockets::bind(&config)?;
        sockets.bound_receiving(budget.socket_buffers());
        let addresses = Addresses::of(&sockets).map_err(StartError::Worker)?;
        let config = Arc::new(config);
        let monitoring = Monitoring::default();
        let access_log = AccessLog::new(dependencies.clock.clone(), dependencies.access_log);
        access_log
            .switch(config.access_log)
            .map_err(StartError::Worker)?;
        let metrics = Metrics::new(&config, &id, access_log.clone());
        let certificate_metrics = bulkhead_workload::metrics::Metrics::default();
        monitoring.register(|registry| {
            metrics.register(registry);
            certificate_metrics.register(registry);
        });

        let (publisher, latest) = credentials::channel();
        let settings = Settings::of_sidecar(&config, id.clone());
        let workload_api = sockets.workload_api.take().map(|listener| {
            let api = WorkloadApi {
                id,
                latest: latest.clone(),
                source: TokenSource::new(settings.clone(), latest.clone()),
                clock: dependencies.clock.clone(),
            };
            (api, listener)
        });
        let (renewal, renewals) = Renewal::new(
            settings,
            dependencies.clock.clone(),
            publisher,
            certificate_metrics,
            monitoring.readiness.condition("certificate"),
        );
        let renewal_state = renewal.state();
        let switch = Switch::new(dependencies.clock.clone(), metrics.process.clone());
        let (policy, policy_watch) = watch::channel(Arc::new(config.inbound_policy()));
        let subscribers = Subscribers {
            policy,
            switch: switch.clone(),
            has_policy: FirstWord::new(monitoring.readiness.condition("control's word on policy")),
        };
        let first_word = subscribers.has_policy.watch();
        let process_metrics = metrics.process.clone();
        let (directory, control) =
            discovery::Client::new(&config, latest.clone(), process_metrics, subscribers);
        let known = Known {
            latest: latest.clone(),
            policy: policy_watch,
            first_word,
            bypass: switch.state(),
            directory,
            budget: budget.clone(),
        };
        let tasks = Tasks::default();
        let path = DataPath::start(
            &config,
            &sockets,
            &known,
            &metrics,
            &dependencies.clock,
            &tasks,
        )
        .map_err(StartError::Worker)?;

        let (drain_sender, drain_requests) = mpsc::channel(1);
        let status = Arc::new(Status {
            config: Arc::clone(&config),
            monitoring: monitoring.clone(),
            bypass: switch.state(),
        });
        let admin = Arc::new(Admin {
            config: Arc::clone(&config),
            monitoring: monitoring.clone(),
            latest: latest.clone(),
            renewal: renewal_state,
            renewals: renewals.clone(),
            connections: metrics.connections.clone(),
            access_log: access_log.clone(),
            drain: drain_sender,
            level: dependencies.log_level,
            switch: switch.clone(),
        });
        // The small servers go on answering while the data path drains.
        let (servers, watch) = drain::channel();
        let bypass_file = (config.bypass_path.clone(), config.pod_name.clone());
        let mut running = vec![
            tasks.spawn("the renewal of the certificate", renewal.run()),
            tasks.spawn("the look at memory", budget.follow(metrics.memory.clone())),
            tasks.spawn(
                "the look at the bypass",
                switch.run(bypass_file.0, bypass_file.1),
            ),
            tasks.spawn(
                "the status server",
                http_server::serve(
                    sockets.status,
                    move |request, _| Arc::clone(&status).answer(request),
                    watch.clone(),
                ),
            ),
            tasks.spawn(
                "the admin server",
                http_server::serve(
                    sockets.admin,
                    move |request, _| Arc::clone(&admin).answer(request),
                    watch.clone(),
                ),
            ),
        ];
        running.extend(workload_api.map(|(api, listener)| {
            // Nobody's traffic is to end with it.
            tokio::spawn(api.serve(listener, watch)).abort_handle()
        }));
        running.extend(control.map(|control| tasks.spawn("discovery", control.run())));
        Ok(Self {
            addresses,
            latest,
            renewals,
            monitoring,
            drain_duration: config.drain_duration,
            drain_requests,
            path,
            access_log: access_log::Ending(access_log),
            _servers: servers,
            tasks,
            _running: Running(running),
        })
    }

    /// Waits until somebody asks for a drain on the admin port.
    pub async fn drain_requested(&mut self) {
        if self.drain_requests.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until something has ended without which the proxy is of no use; it
    /// is to be drained then, and started again.
    pub fn task_ended(&self) -> impl Future<Output = Ended> + use<> {
        let tasks = self.tasks.clone();
        async move { tasks.ended().await }
    }

    /// Takes no new inbound work, finishes what is in hand, then waits until the
    /// application has closed its outbound connections: as long as one is open,
    /// the application is alive and may need others.
    pub async fn drain(self) -> Outcome {
        // Whoever sends work here is to send it elsewhere.
        self.monitoring.readiness.condition(NOT_DRAINING);
        let outcome = self.path.drain(self.drain_duration).await;
        let access_log = self.access_log.0.clone();
        // A panic in it has been told already.
        let _ = tokio::task::spawn_blocking(move || access_log.end(LAST_LINES)).await;
        outcome
    }
}

/// What the data path is told while it runs.
struct Known {
    latest: Latest,
    policy: watch::Receiver<Arc<InboundPolicy>>,
    first_word: watch::Receiver<bool>,
    bypass: bypass::State,
    directory: Directory,
    budget: Budget,
}

/// The workers, and the means to end them.
struct DataPath {
    inbound_drain: drain::Trigger,
    /// Outbound connections are never told to finish: they end with the
    /// application, or with the process.
    _outbound_drain: drain::Trigger,
    open_outbound: watch::Receiver<usize>,
    stop: watch::Sender<bool>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

impl DataPath {
    fn start(
        config: &Arc<SidecarConfig>,
        sockets: &Sockets,
        known: &Known,
        metrics: &Metrics,
        clock: &Clock,
        tasks: &Tasks,
    ) -> io::Result<Self> {
        let (inbound_drain, inbound_watch) = drain::channel();
        let (outbound_drain, outbound_watch) = drain::channel();
        let (open_outbound, open_count) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let mut workers = Vec::new();
        for index in 0..config.concurrency {
            let (inbound_sockets, outbound_sockets) = sockets.share()?;
            let work = Work {
                config: Arc::clone(config),
                latest: known.latest.clone(),
                metrics: metrics.clone(),
                clock: clock.clone(),
                policy: known.policy.clone(),
                first_word: known.first_word.clone(),
                bypass: known.bypass.clone(),
                directory: known.directory.clone(),
                budget: known.budget.clone(),
                inbound_sockets,
                outbound_sockets,
                inbound_drain: inbound_watch.clone(),
                outbound_drain: outbound_watch.clone(),
                open_outbound: open_outbound.clone(),
                stop: stopped.clone(),
                tasks: tasks.clone(),
            };
            workers.push(worker::spawn(index, work)?);
        }
        Ok(Self {
            inbound_drain,
            _outbound_drain: outbound_drain,
            open_outbound: open_count,
            stop,
            workers,
        })
    }

    async fn drain(mut self, within: Duration) -> Outcome {
        let deadline = Instant::now() + within;
        let inbound = self.inbound_drain.drain(within).await;
        let none_open = self.open_outbound.wait_for(|open| *open == 0);
        let closed = tokio::time::timeout_at(deadline, none_open).await.is_ok();
        self.stop.send_replace(true);
        let workers = self.workers;
        let joined = tokio::task::spawn_blocking(move || {
            for worker in workers {
                // A worker that panicked has said so already.
                let _ = worker.join();
            }
        });
        let _ = joined.await;
        match (inbound, closed) {
            (Outcome::Finished, true) => Outcome::Finished,
            _ => Outcome::DeadlinePassed,
        }
    }
}

/// Tasks that end with the proxy.
struct Running(Vec<AbortHandle>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Where a proxy listens, in the order of its settings.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub inbound: Vec<SocketAddr>,
    pub outbound: Vec<SocketAddr>,
    pub redirected: Vec<SocketAddr>,
    pub status: SocketAddr,
    pub admin: SocketAddr,
}

impl Addresses {
    fn of(sockets: &Sockets) -> io::Result<Self> {
        let inbound = sockets
            .inbound
            .iter()
            .map(|listener| listener.socket.local_addr());
        let outbound = sockets
            .outbound
            .iter()
            .map(|listener| listener.socket.local_addr());
        let redirected = sockets
            .redirected
            .iter()
            .map(|listener| listener.socket.local_addr());
        Ok(Self {
            inbound: inbound.collect::<io::Result<_>>()?,
            outbound: outbound.collect::<io::Result<_>>()?,
            redirected: redirected.collect::<io::Result<_>>()?,
            status: sockets.status.local_addr()?,
            admin: sockets.admin.local_addr()?,
        })
    }
}
