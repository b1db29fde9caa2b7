//! Wiring: which parts run, and what they share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bulkhead_crds::owner::Owner;
use bulkhead_pki::certificate::Certificate;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::drain::{self, Outcome};
use bulkhead_runtime::http_server;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_runtime::readiness::{Condition, Readiness};
use bulkhead_runtime::tasks::{Ended, Tasks};
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::admission::Injector;
use crate::config::{CertificateSource, Config};
use crate::events::Notices;
use crate::metrics::Metrics;
use crate::namespaces::{NamespaceSource, Namespaces, watch_namespaces};
use crate::registration::{Standing, ca_bundle, keeper};
use crate::self_test::SelfTest;
use crate::server::{self, Serving};
use crate::serving_certificate::secret::{self, Store};
use crate::serving_certificate::{Publisher, files};
use crate::stops::{Stops, watch_stops};

/// What the webhook is given by whoever starts it.
pub struct Deps {
    pub namespaces: NamespaceSource,
    /// The API server to register with, to keep the certificate at and to tell
    /// of Events. Without one the webhook only answers.
    pub client: Option<Client>,
    pub clock: Clock,
    pub monitoring: Monitoring,
}

impl Deps {
    /// In a cluster.
    pub fn cluster(client: Client) -> Self {
        Self {
            namespaces: NamespaceSource::Cluster(client.clone()),
            client: Some(client),
            clock: Clock::system(),
            monitoring: Monitoring::default(),
        }
    }

    /// Without a cluster, with these namespaces.
    pub fn fixed(namespaces: Vec<bulkhead_inject::Namespace>) -> Self {
        Self {
            namespaces: NamespaceSource::Fixed(namespaces),
            client: None,
            clock: Clock::system(),
            monitoring: Monitoring::default(),
        }
    }
}

/// A running webhook. Dropping it ends it at once; see [`App::shutdown`].
pub struct App {
    address: SocketAddr,
    monitoring_address: SocketAddr,
    monitoring: Monitoring,
    authorities: watch::Receiver<Vec<Certificate>>,
    accepting: Condition,
    leaving: watch::Sender<bool>,
    tasks: Tasks,
    drain: drain::Trigger,
    config: Config,
}

impl App {
    /// Binds the addresses and starts everything.
    ///
    /// # Errors
    /// An address cannot be bound, or the settings name no usable host.
    /// Whatever needs the API server is tried until it works; until then the
    /// webhook is not ready and says what it waits for.
    pub async fn start(config: Config, deps: Deps) -> Result<Self> {
        let Deps {
            namespaces,
            client,
            clock,
            monitoring,
        } = deps;
        let listener = bind(config.address, "the webhook").await?;
        let monitoring_listener = bind(config.monitoring_address, "monitoring").await?;
        let address = listener
            .local_addr()
            .context("asking for our own address")?;
        let monitoring_address = monitoring_listener
            .local_addr()
            .context("asking for our own monitoring address")?;

        let metrics = Metrics::register(&monitoring);
        let accepting = monitoring.readiness.condition("accepting_reviews");
        let (drain, work) = drain::channel();
        let tasks = Tasks::default();
        let (leaving, is_leaving) = watch::channel(false);
        let (tls, tls_configs) = watch::channel(None);
        let (own, authorities) = watch::channel(Vec::new());
        let namespaces = Namespaces::new(namespaces);
        let parts = Parts {
            config: &config,
            client,
            clock,
            readiness: &monitoring.readiness,
            metrics: metrics.clone(),
            work: work.clone(),
            tasks: tasks.clone(),
        };
        parts.watch(namespaces.clone());
        let stops = parts.stops();
        let registered = parts.register(namespaces.standings(), authorities.clone(), stops.clone());
        if let Some(registered) = &registered {
            parts.test_oneself(registered.clone(), stops);
        }
        let grace = config.lifetimes.grace;
        parts.keep_certificate(Publisher::new(tls, own, registered, grace, metrics.clone()))?;
        let injector = Injector {
            namespaces,
            defaults: config.defaults.clone(),
            notices: parts.notices(),
            metrics: metrics.clone(),
        };
        let serving = Serving {
            tls: tls_configs,
            injector: Arc::new(injector),
            leaving: is_leaving,
            metrics,
        };
        tasks.spawn(
            "the server of reviews",
            server::serve(listener, serving, work.clone()),
        );
        accepting.set(true);

        let shown = monitoring.clone();
        let answer = move |request: http_server::Request, _| {
            let shown = shown.clone();
            async move { shown.answer_or_not_found(&request) }
        };
        tasks.spawn(
            "the monitoring server",
            http_server::serve(monitoring_listener, answer, work),
        );
        tracing::info!(%address, %monitoring_address, "the webhook is listening");
        Ok(Self {
            address,
            monitoring_address,
            monitoring,
            authorities,
            accepting,
            leaving,
            tasks,
            drain,
            config,
        })
    }

    /// Where reviews are answered.
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

    /// The CAs, in PEM, by which clients verify this server; waits for the
    /// first certificate.
    pub async fn ca_bundle(&self) -> String {
        let mut authorities = self.authorities.clone();
        match authorities.wait_for(|known| !known.is_empty()).await {
            Ok(known) => ca_bundle::to_pem(&known),
            // The keeper of the certificate is gone, and so is this server.
            Err(_) => String::new(),
        }
    }

    /// Waits until something has ended without which the webhook is of no use; it
    /// is to be shut down then, and started again.
    pub async fn task_ended(&self) -> Ended {
        self.tasks.ended().await
    }

    /// Ends the webhook without losing a review: it is taken out of its Service
    /// first, serves on until everybody has heard, and then finishes what it
    /// has in hand. The registration stays, because other replicas answer for
    /// it; `bulkhead-webhook unregister` takes it away.
    pub async fn shutdown(self) -> Outcome {
        self.accepting.set(false);
        self.leaving.send_replace(true);
        sleep(self.config.lame_duck).await;
        self.drain.drain(self.config.drain).await
    }
}

async fn bind(address: SocketAddr, what: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("binding {address} for {what}; is another process there?"))
}

/// What the parts of a webhook share.
struct Parts<'a> {
    config: &'a Config,
    client: Option<Client>,
    clock: Clock,
    readiness: &'a Readiness,
    metrics: Metrics,
    work: drain::Watch,
    tasks: Tasks,
}

impl Parts<'_> {
    fn watch(&self, namespaces: Namespaces) {
        let synced = self.readiness.condition("namespaces_synced");
        let metrics = self.metrics.clone();
        self.tasks.spawn(
            "the watch of namespaces",
            watch_namespaces(namespaces, synced, metrics, self.work.clone()),
        );
    }

    fn notices(&self) -> Notices {
        let client = self.client.clone();
        let (notices, speaker) = Notices::new(client, &self.config.instance, &self.metrics);
        if let Some(speaker) = speaker {
            self.tasks
                .spawn("the writer of Events", speaker.run(self.work.clone()));
        }
        notices
    }

    fn owner(&self, client: &Client) -> Owner {
        Owner::named(client.clone(), self.config.owner.as_deref())
    }

    /// The switches; without an API server there are none.
    fn stops(&self) -> watch::Receiver<Option<Stops>> {
        let (known, stops) = watch::channel(None);
        if let Some(client) = self.client.clone() {
            let metrics = self.metrics.clone();
            let (clock, work) = (self.clock.clone(), self.work.clone());
            self.tasks.spawn(
                "the watch of switches",
                watch_stops(client, known, clock, metrics, work),
            );
        }
        stops
    }

    /// Tests the way from the API server to here, where that is wanted.
    fn test_oneself(
        &self,
        registered: watch::Receiver<keeper::Registered>,
        stops: watch::Receiver<Option<Stops>>,
    ) {
        let Some(client) = self.client.clone().filter(|_| self.config.self_test) else {
            return;
        };
        let test = SelfTest::new(
            client,
            &self.config.defaults.system_namespace,
            stops,
            self.readiness.condition("self_test"),
            self.clock.clone(),
            self.metrics.clone(),
        );
        self.tasks
            .spawn("the self-test", test.run(registered, self.work.clone()));
    }

    /// Registers with the API server, where there is one and that is wanted.
    fn register(
        &self,
        standings: watch::Receiver<Option<BTreeMap<String, Standing>>>,
        authorities: watch::Receiver<Vec<Certificate>>,
        stops: watch::Receiver<Option<Stops>>,
    ) -> Option<watch::Receiver<keeper::Registered>> {
        let client = self.client.clone().filter(|_| self.config.register)?;
        let (registered, seen) = watch::channel(keeper::Registered::new());
        let defaults = &self.config.defaults;
        let keeper = keeper::Keeper {
            settings: keeper::Settings {
                name: self.config.configuration.clone(),
                target: self.config.target.clone(),
                system_namespace: defaults.system_namespace.clone(),
                inject_by_default: defaults.inject_by_default,
                self_test: self.config.self_test,
            },
            standings,
            authorities,
            stops,
            owner: self.owner(&client),
            registered,
            condition: self.readiness.condition("registered"),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        };
        self.tasks.spawn(
            "the keeper of the registration",
            keeper.run(client, self.work.clone()),
        );
        Some(seen)
    }

    fn keep_certificate(&self, publisher: Publisher) -> Result<()> {
        let config = self.config;
        let names = config
            .server_names()
            .context("finding the name that the API server will verify us by")?;
        let loaded = self.readiness.condition("certificate_loaded");
        let (clock, metrics) = (self.clock.clone(), self.metrics.clone());
        match &config.certificate {
            CertificateSource::Files(files) => {
                let keeper = files::Keeper {
                    files: files.clone(),
                    names,
                    publisher,
                    loaded,
                    clock,
                    metrics,
                };
                self.tasks.spawn(
                    "the keeper of the certificate",
                    keeper.run(self.work.clone()),
                );
            }
            CertificateSource::SelfMade { secret } => {
                let namespace = &config.defaults.system_namespace;
                let keeper = secret::Keeper {
                    store: self.client.clone().map_or(Store::Memory, |client| {
                        let owner = self.owner(&client);
                        Store::secret(client, namespace, secret, owner)
                    }),
                    names,
                    lifetimes: config.lifetimes,
                    publisher,
                    loaded,
                    clock,
                    metrics,
                };
                self.tasks.spawn(
                    "the keeper of the certificate",
                    keeper.run(self.work.clone()),
                );
            }
        }
        Ok(())
    }
}
