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
use bulkhead_runtime::{drain, http_server};
use tokio::sync::watch;

use crate::admin::Admin;
use crate::admission::{self, Admission, Places};
use crate::authenticate::Authenticate;
use crate::authenticate::jwks::JwksVerifier;
use crate::authenticate::pods::Pods;
use crate::authenticate::review_cache::ReviewCache;
use crate::authenticate::token_review::TokenReviewer;
use crate::config::{AuthenticationSource, Config, StoreLocation, UpstreamSource};
use crate::issuer::Issuer;
use crate::issuer::rotating::{Given, RotatingIssuer, Steering};
use crate::issuer::status::UpstreamSigns;
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
use crate::store::secret::SecretStore;
use crate::upstream::Upstream;
use crate::upstream::cert_manager::CertManager;
use crate::upstream::files::Files;
use crate::upstream::vault::Vault;
use crate::workload_tokens::TokenService;

/// What a CA is given from outside.
#[derive(Clone, Default)]
pub struct Dependencies {
    pub clock: Clock,
    pub monitoring: Monitoring,
    /// The API server, where the settings ask for it.
    pub kube: Option<kube::Client>,
}

/// A running CA.
pub struct App {
    address: SocketAddr,
    monitoring_address: SocketAddr,
    admin_address: Option<SocketAddr>,
    issuer: Arc<dyn Issuer>,
    ready: Condition,
    trigger: drain::Trigger,
}

impl App {
    /// Starts everything; once this returns, calls are answered.
    pub async fn start(config: Config, given: Dependencies) -> anyhow::Result<Self> {
        let Dependencies {
            clock,
            monitoring,
            kube,
        } = given;
        let (trigger, drain) = drain::channel();
        let ready = monitoring.readiness.condition("serving");
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
        // Kubelet must hear that all is well while this process signs for a
        // whole cluster.
        http_server::serve_on_own_thread(
            "monitoring",
            monitoring_listener,
            move |request, _| {
                let document = openid.get().and_then(|openid| openid.answer(&request));
                let answer = document.unwrap_or_else(|| monitoring.answer_or_not_found(&request));
                std::future::ready(answer)
            },
            drain.clone(),
        )
        .context("starting the monitoring server failed")?;

        let pods = pods(&config, kube.as_ref(), &drain);
        let authenticator =
            authenticator(&config, &clock, kube.clone(), pods.clone(), &drain).await?;
        let presence = Presence::begin(&config, kube.clone(), &clock, &drain);
        let issuer = Arc::new(
            RotatingIssuer::open(Given {
                store: store(&config, kube.clone()).await?,
                trust_domain: config.trust_domain.clone(),
                lifetimes: config.lifetimes,
                clock: clock.clone(),
                metrics: metrics.clone(),
                upstream: open_upstream(&config, kube.clone(), &clock).await?,
                settle: config.rotation_pause,
                steering: steering(&config, presence.as_ref(), &clock),
            })
            .await?,
        );
        tokio::spawn(Arc::clone(&issuer).run(drain.clone()));
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
            presence::publish(name, &config, &client, &issuer, &metrics, &drain);
        }

        let tls = Arc::new(
            ServingTls::open(
                Arc::clone(&issuer),
                config.server_names,
                clock.clone(),
                metrics.clone(),
            )
            .await?,
        );
        tokio::spawn(Arc::clone(&tls).run(drain.clone()));
        let admission = admission(&config.authentication, authenticator, &clock, &metrics);
        let mut admin_address = None;
        if let Some(listen) = config.admin_listen {
            let admin = Admin::new(clock.now(), metrics.clone(), admission.clone());
            let admin = Arc::new(admin);
            tokio::spawn(Arc::clone(&admin).sample(drain.clone()));
            let listener = TcpListener::bind(listen)
                .with_context(|| format!("binding the admin port to {listen} failed"))?;
            admin_address = Some(listener.local_addr()?);
            http_server::serve_on_own_thread(
                "admin",
                listener,
                move |request, _| std::future::ready(admin.answer(&request)),
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
            strangers: server::strangers(),
            metrics,
        };
        tokio::spawn(server.serve(listener, drain));
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
            trigger,
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

    /// Takes no more work and finishes what is in hand, within `deadline`.
    pub async fn drain(self, deadline: Duration) -> drain::Outcome {
        self.ready.set(false);
        self.trigger.drain(deadline).await
    }
}

/// Signing takes a core for as long as it lasts, so that two a core at once are
/// enough; so is verifying a token by a key that is here.
fn admission(
    authentication: &AuthenticationSource,
    authenticator: Arc<dyn Authenticate>,
    clock: &Clock,
    metrics: &Metrics,
) -> Admission {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let authenticating = match authentication {
        AuthenticationSource::Kubernetes => admission::REMOTE,
        AuthenticationSource::Jwks { .. } => 2 * cores,
    };
    let places = Places {
        authenticating,
        issuing: 2 * cores,
    };
    Admission::start(authenticator, places, clock.clone(), metrics.clone())
}

/// The cluster's pods, where somebody asks about them.
fn pods(config: &Config, kube: Option<&kube::Client>, drain: &drain::Watch) -> Option<Arc<Pods>> {
    let client = kube?.clone();
    let (places, names) = (
        !config.node_proxies.is_empty(),
        !config.review_cache.is_zero(),
    );
    if config.authentication != AuthenticationSource::Kubernetes || !(places || names) {
        return None;
    }
    let pods = Arc::new(Pods::default());
    let (followed, drain) = (Arc::clone(&pods), drain.clone());
    if places {
        tokio::spawn(async move { followed.follow_places(client, drain).await });
    } else {
        tokio::spawn(async move { followed.follow_names(client, drain).await });
    }
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

async fn authenticator(
    config: &Config,
    clock: &Clock,
    kube: Option<kube::Client>,
    pods: Option<Arc<Pods>>,
    drain: &drain::Watch,
) -> anyhow::Result<Arc<dyn Authenticate>> {
    let (trust_domain, rules) = (config.trust_domain.clone(), config.tokens.clone());
    match &config.authentication {
        AuthenticationSource::Kubernetes => {
            let client = kube.context(NO_API_SERVER)?;
            let lifetime = config.review_cache;
            let cache = pods.filter(|_| !lifetime.is_zero());
            let cache = cache.map(|pods| ReviewCache::new(pods, lifetime));
            let clock = clock.clone();
            let reviewer = TokenReviewer::new(client, trust_domain, rules, cache, clock);
            Ok(Arc::new(reviewer))
        }
        AuthenticationSource::Jwks { path, issuer } => {
            let verifier = JwksVerifier::open(
                path.clone(),
                issuer.clone(),
                trust_domain,
                rules,
                clock.clone(),
            );
            let verifier = Arc::new(verifier.await?);
            tokio::spawn(Arc::clone(&verifier).follow_file(drain.clone()));
            Ok(verifier)
        }
    }
}

/// Who says how a rotation goes: the API server where the authorities are kept
/// there; else a file beside them, and what workloads say to this CA.
fn steering(config: &Config, presence: Option<&Presence>, clock: &Clock) -> Steering {
    if let Some(presence) = presence {
        return Steering {
            holders: presence.holders(config),
            orders: presence.orders(),
            leads: presence.leads(),
        };
    }
    let orders: Arc<dyn Orders> = match &config.store {
        StoreLocation::Directory(path) => Arc::new(FileOrders::new(path)),
        StoreLocation::Secret { .. } => Arc::new(NoOrders),
    };
    Steering {
        holders: Arc::new(Reports::new(config.lifetimes.max, clock.clone())),
        orders,
        leads: watch::Sender::new(true).subscribe(),
    }
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
) -> anyhow::Result<Option<Arc<dyn Upstream>>> {
    let Some(upstream) = &config.upstream else {
        return Ok(None);
    };
    let (domain, clock) = (config.trust_domain.clone(), clock.clone());
    let roots = upstream.roots_file.clone();
    Ok(Some(match upstream.source.clone() {
        UpstreamSource::Files(directory) => {
            Arc::new(Files::open(directory, domain, UpstreamSigns::Intermediate, clock).await)
        }
        UpstreamSource::Vault(settings) => Arc::new(Vault::new(settings, roots, domain, clock)),
        UpstreamSource::CertManager { issuer, namespace } => {
            let client = kube.context(NO_API_SERVER)?;
            let ours = CertManager::new(client, &namespace, issuer, roots, domain, clock);
            Arc::new(ours)
        }
    }))
}

const NO_API_SERVER: &str = "the settings name the API server, and there is no connection to one";
