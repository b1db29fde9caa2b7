//! The wiring, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_crds::lease::{self, Holder};
use bulkhead_crds::owner::Owner;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_runtime::readiness::Condition;
use bulkhead_runtime::tasks::{Ended, Tasks};
use bulkhead_runtime::{drain, http_server};
use bulkhead_workload::{Renewal, RenewalRequests, credentials};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::config::{Config, Source};
use crate::emergency::keeper;
use crate::emergency::time_limits::TimeLimits;
use crate::holders::keeper::Keeper;
use crate::hub::Hub;
use crate::index;
use crate::metrics::Metrics;
use crate::missing::{self, Missing};
use crate::object::{Kind, Reading};
use crate::server::{self, Server};
use crate::service::Discovery;
use crate::source::cluster::{self, Cluster, Events};
use crate::source::directory::Directory;

pub use crate::server::Limits;

/// The name of the Lease: whoever holds it does what needs doing once.
const LEASE: &str = "bulkhead-control";
/// How often the objects that are known are counted for the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// What control is given from outside.
#[derive(Clone, Default)]
pub struct Dependencies {
    pub clock: Clock,
    pub monitoring: Monitoring,
    /// The API server, where the settings ask for it.
    pub kube: Option<kube::Client>,
    pub limits: Limits,
}

/// A running control.
pub struct App {
    address: SocketAddr,
    monitoring_address: SocketAddr,
    monitoring: Monitoring,
    renewals: RenewalRequests,
    renewal: AbortHandle,
    accepting: Condition,
    tasks: Tasks,
    trigger: drain::Trigger,
}

impl App {
    /// Starts everything. Until its certificate is there and all objects have
    /// been listed, control is not ready and says what it waits for.
    pub async fn start(config: Config, given: Dependencies) -> anyhow::Result<Self> {
        let Dependencies {
            clock,
            monitoring,
            kube,
            limits,
        } = given;
        let id = config.spiffe_id().context("control has no identity")?;
        let listener = server::bind(config.listen)
            .with_context(|| format!("binding discovery to {} failed", config.listen))?;
        let address = listener.local_addr()?;
        let monitoring_listener = TcpListener::bind(config.monitoring_listen)
            .await
            .with_context(|| format!("binding {} failed", config.monitoring_listen))?;
        let monitoring_address = monitoring_listener.local_addr()?;

        let (trigger, drain) = drain::channel();
        let tasks = Tasks::default();
        let metrics = Metrics::register(&monitoring);
        let accepting = monitoring.readiness.condition("accepting");
        let shown = monitoring.clone();
        let answer = move |request, _| std::future::ready(shown.answer_or_not_found(&request));
        tasks.spawn(
            "the monitoring server",
            http_server::serve(monitoring_listener, answer, drain.clone()),
        );

        let (publisher, latest) = credentials::channel();
        let certificate_metrics = bulkhead_workload::metrics::Metrics::default();
        monitoring.register(|registry| certificate_metrics.register(registry));
        let (renewal, renewals) = Renewal::new(
            bulkhead_workload::Settings {
                id,
                trust_domain: config.trust_domain.clone(),
                ca_address: config.ca_address.clone(),
                ca_roots_path: config.ca_roots_path.clone(),
                token_path: config.token_path.clone(),
                certificate_lifetime: config.certificate_lifetime,
                // Nobody reports it when there is no API server.
                reports_to_control: false,
            },
            clock.clone(),
            publisher,
            certificate_metrics,
            monitoring.readiness.condition("certificate"),
        );
        let renewal = tasks.spawn("the renewal of the certificate", renewal.run());

        let hub = Hub::new(
            index::Settings {
                trust_domain: config.trust_domain.clone(),
                root_namespaces: config.root_namespaces.clone(),
                default_policy: config.default_policy(),
            },
            config.namespace.clone(),
            metrics.clone(),
            clock.clone(),
        );
        let synced = monitoring.readiness.condition("synced");
        let running = Running {
            drain: &drain,
            tasks: &tasks,
        };
        follow(&config, kube.clone(), &hub, &metrics, synced, &running)?;
        tend(&config, kube, &hub, &latest, &metrics, &clock, &running);
        tasks.spawn(
            "the count of objects",
            count(hub.clone(), metrics.clone(), drain.clone()),
        );
        let server = Server {
            discovery: Discovery {
                hub,
                metrics: metrics.clone(),
                drain: drain.clone(),
            },
            credentials: latest,
            clock,
            metrics,
            limits,
        };
        tasks.spawn("the discovery server", server.serve(listener, drain));
        accepting.set(true);
        tracing::info!(
            %address,
            monitoring = %monitoring_address,
            trust_domain = %config.trust_domain,
            source = %config.source,
            "control serves"
        );
        Ok(Self {
            address,
            monitoring_address,
            monitoring,
            renewals,
            renewal,
            accepting,
            tasks,
            trigger,
        })
    }

    /// Where discovery listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics`, `/ready` and `/live` are.
    pub fn monitoring_address(&self) -> SocketAddr {
        self.monitoring_address
    }

    pub fn monitoring(&self) -> &Monitoring {
        &self.monitoring
    }

    /// Asks for a new certificate before it is due.
    pub fn renewals(&self) -> &RenewalRequests {
        &self.renewals
    }

    /// Waits until something has ended without which control is of no use; it is
    /// to be drained then, and started again.
    pub async fn task_ended(&self) -> Ended {
        self.tasks.ended().await
    }

    /// Ends all streams, so that proxies go to another replica, within
    /// `deadline`.
    pub async fn drain(self, deadline: Duration) -> drain::Outcome {
        self.accepting.set(false);
        self.renewal.abort();
        self.trigger.drain(deadline).await
    }
}

/// What long work is given.
struct Running<'a> {
    drain: &'a drain::Watch,
    tasks: &'a Tasks,
}

/// Starts following the source of objects.
fn follow(
    config: &Config,
    kube: Option<kube::Client>,
    hub: &Hub,
    metrics: &Metrics,
    synced: Condition,
    Running { drain, tasks }: &Running<'_>,
) -> anyhow::Result<()> {
    let reading = Reading {
        system_namespace: config.namespace.clone(),
        inject_by_default: config.inject_by_default,
        root_namespaces: config.root_namespaces.clone(),
    };
    match &config.source {
        Source::Kubernetes => {
            let client = kube
                .context("the settings name the API server, and there is no connection to one")?;
            let (events, writing) = Events::new(client.clone(), &config.instance);
            tasks.spawn("the writer of Events", writing);
            cluster::watch(&Cluster {
                client,
                events,
                hub: hub.clone(),
                reading,
                metrics: metrics.clone(),
                synced,
                drain: (*drain).clone(),
                tasks: (*tasks).clone(),
            });
        }
        Source::Directory(path) => {
            let directory = Directory::new(path.clone(), reading, metrics.clone());
            tasks.spawn(
                "the look at the directory",
                directory.follow(hub.clone(), synced, (*drain).clone()),
            );
        }
    }
    Ok(())
}

/// Starts what looks after the kill switch and after missing sidecars.
fn tend(
    config: &Config,
    kube: Option<kube::Client>,
    hub: &Hub,
    latest: &credentials::Latest,
    metrics: &Metrics,
    clock: &Clock,
    running: &Running<'_>,
) {
    let Running { drain, tasks } = *running;
    let (standing, standings) = watch::channel(Vec::new());
    tasks.spawn(
        "the keeper of bypasses",
        keeper::advance(hub.clone(), standing, drain.clone()),
    );
    let no_injection = Arc::new(AtomicBool::new(true));
    let cluster = kube.map(|client| {
        let writer = keeper::Writer {
            client: client.clone(),
            namespace: config.namespace.clone(),
            instance: config.instance.clone(),
            hub: hub.clone(),
        };
        tasks.spawn(
            "the writer of statuses",
            writer.run(standings, drain.clone()),
        );
        let limits = TimeLimits::new(
            client.clone(),
            clock.clone(),
            Arc::clone(&no_injection),
            metrics.clone(),
        );
        tasks.spawn("the keeper of time limits", limits.run(drain.clone()));
        let owner = Owner::named(client.clone(), config.owner.as_deref());
        let (holder, held) = Holder::new(
            client.clone(),
            lease::Settings {
                namespace: config.namespace.clone(),
                name: LEASE.to_owned(),
                instance: config.instance.clone(),
                owner: owner.clone(),
                clock: clock.clone(),
            },
        );
        tasks.spawn("the holder of the lease", holder.run(drain.clone()));
        let keeper = Keeper {
            client: client.clone(),
            namespace: config.namespace.clone(),
            instance: config.instance.clone(),
            service_account: config.service_account.clone(),
            credentials: latest.clone(),
            owner,
            held: held.clone(),
            hub: hub.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
        };
        tasks.spawn("the keeper of proxies' reports", keeper.run(drain.clone()));
        let instance = &config.instance;
        missing::Cluster::new(client, instance, held, config.restart_missing, no_injection)
    });
    let missing = Missing::new(hub.clone(), metrics.clone(), cluster);
    tasks.spawn("the look for missing sidecars", missing.run(drain.clone()));
}

/// Shows how much is known, until the drain starts.
async fn count(hub: Hub, metrics: Metrics, mut drain: drain::Watch) {
    let mut looks = tokio::time::interval(COUNT_EVERY);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = drain.started() => return,
        }
        for kind in Kind::ALL {
            metrics.objects(kind, hub.count(kind));
        }
    }
}
