//! The wiring, and nothing else.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_crds::owner::Owner;
use bulkhead_pki::bundle::TrustBundle;
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_runtime::readiness::Condition;
use bulkhead_runtime::tasks::{Ended, Tasks};
use bulkhead_runtime::{drain, http_server};
use tokio::sync::watch;

use crate::admin::Admin;
use crate::admission::{self, Admission, Places};
use crate::authenticate::Authenticate;
use crate::authenticate::certificate::CertificateRenewal;
use crate::authenticate::jwks::JwksVerifier;
use crate::authenticate::jwks::file::KeyFile;
use crate::authenticate::jwks::remote::RemoteKeys;
use crate::authenticate::pods::Pods;
use crate::authenticate::review_cache::ReviewCache;
use crate::authenticate::sources::Sources;
use crate::authenticate::token_review::TokenReviewer;
use crate::config::{Config, KeySource, StoreLocation, UpstreamSource};
use crate::issuer::Issuer;
use crate::issuer::rotating::upstream::Above;
use crate::issuer::rotating::{Given, RotatingIssuer, Steering};
use crate::issuer::status::UpstreamSigns;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::node_proxy::NodeProxies;
use crate::openid::Discovery;
use crate::presence::{self, Presence};
use crate::rotation::orders::{FileOrders, NoOrders, Orders};
use crate::rotation::reports::Reports;
use crate::server::{self, Server};
use crate::service::CaService;
use crate::serving::ServingTls;
use crate::store::Store;
use crate::store::directory::Directory;
use crate::store::directory::election::Election;
use crate::store::secret::SecretStore;
use crate::upstream::Upstream;
use crate::upstream::cert_manager::CertManager;
use crate::upstream::files::Files;
use crate::upstream::measured::Measured;
use crate::upstream::vault::Vault;
use crate::workload_tokens::{KnownKeys, TokenService};

/// What a CA is given from outside.
#[derive(Clone, Default)]
pub struct Dependencies {
    pub clock: Clock,
    pub monitoring: Monitoring,
    /// The API server, where the settings ask for it.
    pub kube: Option<kube::Client>,
    pub limits: Limits,
}

/// A running CA.
pub struct App {
    address: SocketAddr,
    monitoring_address: SocketAddr,
    admin_address: Option<SocketAddr>,
    issuer: Arc<dyn Issuer>,
    ready: Condition,
    tasks: Tasks,
    trigger: drain::Trigger,
    /// Of a directory: given up when the last call has been finished.
    election: Option<Election>,
}

impl App {
    /// Starts everything; once this returns, calls are answered, or `/ready` says
    /// what they wait for.
    pub async fn start(config: Config, given: Dependencies) -> anyhow::Result<Self> {
        let Dependencies {
            clock,
            monitoring,
            kube,
            limits,
        } = given;
        let (trigger, drain) = drain::channel();
        let tasks = Tasks::default();
        let ready = monitoring.readiness.condition("serving");
        let sees_store = monitoring.readiness.condition("store_seen");
        let has_certificate = monitoring.readiness.condition("valid_certificate");
        let metrics = Metrics::new(&monitoring);

        let listener = server::bind(config.listen)
            .with_context(|| format!("binding the CSR service to {} failed", config.listen))?;
        let address = listener.local_addr()?;
        let monitoring_listener = TcpListener::bind(config.monitoring_listen)
            .with_context(|| format!("binding {} failed", config.monitoring_listen))?;
        let monitoring_address = monitoring_listener.local_addr()?;
        // Known a little later than there is something to tell about readiness.
        let discovery = Arc::<OnceLock<Discovery>>::default();
        let openid = Arc::clone(&discovery);
        let guard = tasks.guard("the monitoring server");
        // Kubelet must hear that all is well while this process signs for a
        // whole cluster.
        http_server::serve_on_own_thread(
            "monitoring",
            monitoring_listener,
            move |request, _| {
                let _ = &guard;
                let document = openid.get().and_then(|openid| openid.answer(&request));
                let answer = document.unwrap_or_else(|| monitoring.answer_or_not_found(&request));
                std::future::ready(answer)
            },
            drain.clone(),
        )
        .context("starting the monitoring server failed")?;

        let running = Running {
            drain: &drain,
            tasks: &tasks,
        };
        let pods = pods(&config, kube.as_ref(), running);
        let (client, known) = (kube.clone(), pods.clone());
        let authenticator = authenticator(
            &config,
            &clock,
            &metrics,
            client,
            known,
            limits.review,
            running,
        );
        let authenticator = authenticator.await?;
        let presence = Presence::begin(&config, kube.clone(), &clock, running);
        let store = store(&config, kube.clone()).await?;
        let election = election(&config, running)?;
        let issuer = Arc::new(
            RotatingIssuer::open(Given {
                store,
                trust_domain: config.trust_domain.clone(),
                lifetimes: config.lifetimes,
                clock: clock.clone(),
                metrics: metrics.clone(),
                upstream: open_upstream(&config, kube.clone(), &clock, &metrics).await?,
                settle: config.rotation_pause,
                steering: steering(&config, presence.as_ref(), election.as_ref(), &clock),
                ready: sees_store,
            })
            .await?,
        );
        tasks.spawn(
            "the rotation of the authorities",
            Arc::clone(&issuer).run(drain.clone()),
        );
        let issuer: Arc<dyn Issuer> = issuer;
        if let Some(token_issuer) = &config.jwt_issuer {
            let domain = config.trust_domain.clone();
            let bundle = issuer.bundle_document();
            discovery.get_or_init(|| Discovery::new(token_issuer.clone(), domain, bundle));
        }
        if let Some(presence) = &presence {
            presence.show(&config, &issuer, &metrics);
        }
        if let Some(name) = &config.trust_bundle_config_map {
            let client = kube.context(NO_API_SERVER)?;
            presence::publish(name, &config, &client, &issuer, &metrics, running);
        }

        let tls = Arc::new(
            ServingTls::open(
                Arc::clone(&issuer),
                config.server_names.clone(),
                config.renewal_by_certificate,
                clock.clone(),
                metrics.clone(),
                has_certificate,
            )
            .await,
        );
        tasks.spawn(
            "the renewal of the CA's own certificate",
            Arc::clone(&tls).run(drain.clone()),
        );
        let mut admission = Admission::start(
            authenticator,
            places(&config),
            &limits,
            clock.clone(),
            metrics.clone(),
            &tasks,
        );
        if config.renewal_by_certificate {
            let renewal = CertificateRenewal::new(Arc::clone(&issuer), clock.clone());
            admission = admission.with_renewal(renewal);
        }
        let mut admin_address = None;
        if let Some(listen) = config.admin_listen {
            let admin = Admin::new(clock.now(), metrics.clone(), admission.clone());
            let admin = Arc::new(admin);
            tasks.spawn(
                "the measurement of the pace",
                Arc::clone(&admin).sample(drain.clone()),
            );
            let guard = tasks.guard("the admin server");
            let listener = TcpListener::bind(listen)
                .with_context(|| format!("binding the admin port to {listen} failed"))?;
            admin_address = Some(listener.local_addr()?);
            http_server::serve_on_own_thread(
                "admin",
                listener,
                move |request, _| {
                    let _ = &guard;
                    std::future::ready(admin.answer(&request))
                },
                drain.clone(),
            )
            .context("starting the admin server failed")?;
        }
        let tokens = TokenService {
            admission: admission.clone(),
            issuer: Arc::clone(&issuer),
            token_issuer: config.jwt_issuer,
            trust_domain: config.trust_domain.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            keys: KnownKeys::default(),
        };
        let certificates = CaService {
            admission,
            node_proxies: node_proxies(&config.trust_domain, &config.node_proxies, pods)?,
            issuer: Arc::clone(&issuer),
            lifetimes: config.lifetimes,
            clock,
            metrics: metrics.clone(),
        };
        let server = Server {
            tls,
            certificates,
            tokens,
            strangers: server::strangers(&limits, &tasks),
            limits,
            metrics,
        };
        tasks.spawn("the CSR service", server.serve(listener, drain));
        ready.set(true);
        tracing::info!(
            %address,
            monitoring = %monitoring_address,
            trust_domain = %config.trust_domain,
            store = %config.store,
            "the CA serves"
        );
        Ok(Self {
            address,
            monitoring_address,
            admin_address,
            issuer,
            ready,
            tasks,
            trigger,
            election,
        })
    }

    /// Where the CSR service listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics`, `/ready` and `/live` are.
    pub fn monitoring_address(&self) -> SocketAddr {
        self.monitoring_address
    }

    /// Where `/status` is, if the settings ask for it.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// What workloads are to trust, now.
    pub fn trust_bundle(&self) -> TrustBundle {
        self.issuer.trust_bundle()
    }

    /// Waits until something has ended without which a CA is of no use; it is to
    /// be drained then, and started again.
    pub async fn task_ended(&self) -> Ended {
        self.tasks.ended().await
    }

    /// Takes no more work and finishes what is in hand, within `deadline`.
    pub async fn drain(self, deadline: Duration) -> drain::Outcome {
        self.ready.set(false);
        let outcome = self.trigger.drain(deadline).await;
        drop(self.election);
        outcome
    }
}

/// What long work is given.
#[derive(Clone, Copy)]
pub(crate) struct Running<'a> {
    pub(crate) drain: &'a drain::Watch,
    pub(crate) tasks: &'a Tasks,
}

/// How many leaves an upstream that is elsewhere is asked for at once: more would
/// only wait there, where nobody knows whose turn it is.
const ASKED_UPSTREAM: usize = 16;

/// How many calls a core has in hand. Signing takes it for as long as it lasts, so
/// that one would be enough to keep it busy; but answers that are ready together leave
/// together, and what the kernel takes for each packet is a good part of a call.
/// Whoever comes next waits for all of them: some two milliseconds.
const IN_HAND: usize = 16;

/// The same holds for tokens that are verified by a key that is here.
fn places(config: &Config) -> Places {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let authenticating = match config.authentication.is_remote() {
        true => admission::REMOTE,
        false => IN_HAND * cores,
    };
    let signs_elsewhere = config.upstream.as_ref().is_some_and(|upstream| {
        upstream.signs == UpstreamSigns::Leaf
            && !matches!(upstream.source, UpstreamSource::Files(_))
    });
    Places {
        authenticating,
        issuing: match signs_elsewhere {
            true => ASKED_UPSTREAM,
            false => IN_HAND * cores,
        },
    }
}

/// The cluster's pods, where somebody asks about them.
fn pods(config: &Config, kube: Option<&kube::Client>, running: Running<'_>) -> Option<Arc<Pods>> {
    let client = kube?.clone();
    let (places, names) = (
        !config.node_proxies.is_empty(),
        !config.review_cache.is_zero(),
    );
    if !config.authentication.kubernetes || !(places || names) {
        return None;
    }
    let pods = Arc::new(Pods::default());
    let (followed, drain) = (Arc::clone(&pods), running.drain.clone());
    running.tasks.spawn("the watch of pods", async move {
        if places {
            followed.follow_places(client, drain).await;
        } else {
            followed.follow_names(client, drain).await;
        }
    });
    Some(pods)
}

fn node_proxies(
    trust_domain: &TrustDomain,
    accounts: &[(String, String)],
    pods: Option<Arc<Pods>>,
) -> anyhow::Result<NodeProxies> {
    let trusted = accounts.iter().map(|(namespace, name)| {
        SpiffeId::workload(trust_domain, namespace, name)
            .with_context(|| format!("a node proxy cannot be {namespace}/{name}"))
    });
    let trusted: Vec<_> = trusted.collect::<Result<_, _>>()?;
    Ok(NodeProxies::new(trust_domain.clone(), trusted, pods))
}

/// Everybody who says whether a token is good.
async fn authenticator(
    config: &Config,
    clock: &Clock,
    metrics: &Metrics,
    kube: Option<kube::Client>,
    pods: Option<Arc<Pods>>,
    review: Duration,
    Running { drain, tasks }: Running<'_>,
) -> anyhow::Result<Arc<dyn Authenticate>> {
    let (trust_domain, rules) = (&config.trust_domain, &config.tokens);
    let mut sources = Sources::default();
    if config.authentication.kubernetes {
        let client = kube.context(NO_API_SERVER)?;
        let lifetime = config.review_cache;
        let cache = pods.filter(|_| !lifetime.is_zero());
        let cache = cache.map(|pods| ReviewCache::new(pods, lifetime));
        let (domain, rules) = (trust_domain.clone(), rules.clone());
        let reviewer = TokenReviewer::new(client, domain, rules, cache, review, clock.clone());
        sources.kubernetes = Some(Arc::new(reviewer));
    }
    for issuer in config.authentication.issuers.iter().cloned() {
        let keys = match issuer.keys.clone() {
            KeySource::File(path) => {
                let file = KeyFile::open(path).await?;
                let keys = file.keys();
                tasks.spawn(
                    "the look at a token issuer's keys",
                    file.follow(drain.clone()),
                );
                keys
            }
            KeySource::Fetched(source) => {
                let name = issuer.name.clone();
                let remote = RemoteKeys::new(name, source, clock.clone(), metrics.clone());
                let keys = remote.keys();
                tasks.spawn(
                    "the fetching of a token issuer's keys",
                    remote.follow(drain.clone()),
                );
                keys
            }
        };
        let (name, domain) = (issuer.name.clone(), trust_domain.clone());
        let verifier = JwksVerifier::new(issuer, rules, keys, domain, clock.clone());
        sources.issuers.insert(name, Arc::new(verifier));
    }
    Ok(sources.into_one())
}

/// Who says how a rotation goes: the API server where the authorities are kept
/// there; else a file beside them, and what workloads say to this CA.
fn steering(
    config: &Config,
    presence: Option<&Presence>,
    election: Option<&Election>,
    clock: &Clock,
) -> Steering {
    if let Some(presence) = presence {
        return Steering {
            holders: presence.holders(config),
            orders: presence.orders(),
            leads: presence.leads(),
        };
    }
    let reports = Reports::new(config.lifetimes.max, clock.clone());
    let orders: Arc<dyn Orders> = match &config.store {
        StoreLocation::Directory(path) => Arc::new(FileOrders::new(path)),
        StoreLocation::Secret { .. } => Arc::new(NoOrders),
    };
    match election {
        Some(election) => Steering {
            holders: Arc::new(reports.beside(election.clone())),
            orders,
            leads: election.leads(),
        },
        None => Steering {
            holders: Arc::new(reports),
            orders,
            leads: watch::Sender::new(true).subscribe(),
        },
    }
}

/// This process among those that serve from the same directory, if it is one.
fn election(config: &Config, running: Running<'_>) -> anyhow::Result<Option<Election>> {
    let StoreLocation::Directory(path) = &config.store else {
        return Ok(None);
    };
    let election = Election::join(path)?;
    running.tasks.spawn(
        "the election on the directory",
        election.clone().run(running.drain.clone()),
    );
    Ok(Some(election))
}

async fn store(config: &Config, kube: Option<kube::Client>) -> anyhow::Result<Box<dyn Store>> {
    Ok(match &config.store {
        StoreLocation::Directory(path) => Box::new(Directory::open(path.clone())?),
        StoreLocation::Secret { namespace, name } => {
            let client = kube.context(NO_API_SERVER)?;
            let owner = match config.keep_keys {
                true => Owner::nobody(),
                false => Owner::named(client.clone(), config.owner.as_deref()),
            };
            let store = SecretStore::new(client, namespace, name.clone(), owner);
            store.settle_owner().await?;
            Box::new(store)
        }
    })
}

/// Whoever has the root, where it is not this CA: a line for each kind.
async fn open_upstream(
    config: &Config,
    kube: Option<kube::Client>,
    clock: &Clock,
    metrics: &Metrics,
) -> anyhow::Result<Option<Above>> {
    let Some(settings) = &config.upstream else {
        return Ok(None);
    };
    let (domain, clock) = (config.trust_domain.clone(), clock.clone());
    let (roots, signs) = (settings.roots_file.clone(), settings.signs);
    let upstream: Arc<dyn Upstream> = match settings.source.clone() {
        UpstreamSource::Files(directory) => {
            Arc::new(Files::open(directory, domain, signs, clock).await)
        }
        UpstreamSource::Vault(settings) => Arc::new(Vault::new(settings, roots, domain, clock)),
        UpstreamSource::CertManager { issuer, namespace } => {
            let client = kube.context(NO_API_SERVER)?;
            let ours = CertManager::new(client, &namespace, issuer, roots, domain, clock);
            Arc::new(ours)
        }
    };
    Ok(Some(Above {
        upstream: Arc::new(Measured::new(upstream, metrics.clone())),
        signs,
        server_names: config.server_names.clone(),
    }))
}

const NO_API_SERVER: &str = "the settings name the API server, and there is no connection to one";
