//! A mesh in one process, on loopback: a real CA with its keys in a temporary
//! directory, a token issuer that it believes, and as many real proxies as are
//! asked for. The demo shows it; the tests try to break it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_ca::app as ca;
use bulkhead_ca::authenticate::Pod;
use bulkhead_ca::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use bulkhead_ca::config::{Authentication, Config as CaConfig, StoreLocation};
use bulkhead_control::app as control;
use bulkhead_control::config::{Config as ControlConfig, Source};
use bulkhead_core::identity::TrustDomain;
use bulkhead_core::sidecar::{
    InboundListener, OutboundListener, SidecarConfig, TOKEN_AUDIENCE, default_trust_domain,
};
use bulkhead_pki::serving::ServerName;
use bulkhead_proxy::app::{Dependencies, Proxy};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::readiness::Readiness;
use tempfile::TempDir;

/// What the tokens of an embedded mesh say their issuer is.
pub const TOKEN_ISSUER: &str = "https://issuer.bulkhead.local";

/// How long the CA's calls in hand may take when it is stopped.
const CA_DRAIN: Duration = Duration::from_secs(5);
/// How long a proxy, or control, may take to get its first certificate.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(20);
/// How a proxy is told that there is no control.
const NO_CONTROL: &str = "none";
/// How often a program is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(5);

/// A CA and whatever proxies are started with it. Dropping it stops the CA and
/// removes its directory, where the mesh made that itself.
pub struct Mesh {
    directory: PathBuf,
    _temporary: Option<TempDir>,
    issuer: LocalIssuer,
    ca_config: CaConfig,
    ca: Option<ca::App>,
    clock: Clock,
    kube: Option<kube::Client>,
}

impl Mesh {
    /// Starts the CA, in a temporary directory.
    pub async fn start() -> anyhow::Result<Self> {
        let temporary = TempDir::with_prefix("bulkhead-")
            .context("making a temporary directory failed; is the disk full?")?;
        let mut mesh = Self::start_in(temporary.path()).await?;
        mesh._temporary = Some(temporary);
        Ok(mesh)
    }

    /// Starts the CA, in a directory that the caller looks after.
    pub async fn start_in(directory: &Path) -> anyhow::Result<Self> {
        Self::start_with(directory, |_| ()).await
    }

    /// The same, with other settings of the CA.
    pub async fn start_with(
        directory: &Path,
        change: impl FnOnce(&mut CaConfig),
    ) -> anyhow::Result<Self> {
        Self::start_beside(directory, None, change).await
    }

    /// The same, for settings that ask for an API server.
    pub async fn start_beside(
        directory: &Path,
        kube: Option<kube::Client>,
        change: impl FnOnce(&mut CaConfig),
    ) -> anyhow::Result<Self> {
        let issuer = LocalIssuer::open(&directory.join("issuer"), TOKEN_ISSUER)?;
        let mut ca_config = CaConfig::new(
            StoreLocation::Directory(directory.join("ca")),
            Authentication::jwks_file(issuer.jwks_path(), TOKEN_ISSUER),
        );
        ca_config.listen = on_loopback(0);
        ca_config.monitoring_listen = on_loopback(0);
        ca_config.server_names = vec![ServerName::Ip(on_loopback(0).ip())];
        change(&mut ca_config);
        let mut mesh = Self {
            directory: directory.to_owned(),
            _temporary: None,
            issuer,
            ca_config,
            ca: None,
            clock: Clock::system(),
            kube,
        };
        mesh.start_ca().await?;
        Ok(mesh)
    }

    /// Starts the CA again, where it was and with the keys that it had.
    pub async fn start_ca(&mut self) -> anyhow::Result<()> {
        let given = ca::Dependencies {
            clock: self.clock.clone(),
            kube: self.kube.clone(),
            ..ca::Dependencies::default()
        };
        let ca = ca::App::start(self.ca_config.clone(), given)
            .await
            .context("starting the CA failed")?;
        self.ca_config.listen = ca.address();
        self.ca_config.monitoring_listen = ca.monitoring_address();
        self.ca = Some(ca);
        Ok(())
    }

    /// Stops the CA, as SIGTERM would.
    pub async fn stop_ca(&mut self) {
        if let Some(ca) = self.ca.take() {
            ca.drain(CA_DRAIN).await;
        }
    }

    /// Starts a control that knows of the manifests in a directory, and waits
    /// until it is ready. It listens at `listen`; port 0 is any that is free.
    pub async fn start_control(
        &self,
        manifests: &Path,
        listen: SocketAddr,
    ) -> anyhow::Result<control::App> {
        let mut config = ControlConfig::new(Source::Directory(manifests.to_owned()));
        let token_path = self.token_path(&config.namespace, &config.service_account);
        let token = self.token(&config.namespace, &config.service_account)?;
        std::fs::write(&token_path, token).context("writing control's token failed")?;
        config.token_path = token_path.display().to_string();
        config.listen = listen;
        config.monitoring_listen = on_loopback(0);
        config.ca_address = self.ca_address().to_string();
        config.ca_roots_path = self.roots_path().display().to_string();
        let given = control::Dependencies {
            clock: self.clock.clone(),
            ..control::Dependencies::default()
        };
        let control = control::App::start(config, given)
            .await
            .context("starting control failed")?;
        until_ready("control", &control.monitoring().readiness).await?;
        Ok(control)
    }

    /// Where the CSR service listens, or did when it ran last.
    pub fn ca_address(&self) -> SocketAddr {
        self.ca_config.listen
    }

    /// Where the CA's metrics are.
    pub fn ca_monitoring_address(&self) -> SocketAddr {
        self.ca_config.monitoring_listen
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.ca_config.trust_domain
    }

    /// The trust roots as PEM.
    pub fn roots(&self) -> anyhow::Result<String> {
        let ca = self.ca.as_ref().context("the CA is not running")?;
        Ok(ca.trust_bundle().to_pem())
    }

    /// The file with the trust roots that the CA keeps up to date, with the SPIFFE
    /// bundle beside it.
    pub fn roots_path(&self) -> PathBuf {
        self.directory.join("ca/roots.pem")
    }

    /// A token for a workload, as Kubernetes would have mounted it.
    pub fn token(&self, namespace: &str, service_account: &str) -> anyhow::Result<String> {
        let request = TokenRequest {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: Some(Pod {
                name: format!("{service_account}-0"),
                uid: format!("{namespace}-{service_account}"),
            }),
            audience: TOKEN_AUDIENCE.to_owned(),
            lifetime: Duration::from_secs(3600),
        };
        Ok(self.issuer.mint(&request, self.clock.now())?)
    }

    /// Where a workload's token lies once its settings have been made.
    pub fn token_path(&self, namespace: &str, service_account: &str) -> PathBuf {
        let name = format!("{namespace}-{service_account}.token");
        self.directory.join(name)
    }

    /// The settings of a workload's proxy: every port is one that is free, and
    /// the token lies in a file.
    pub fn workload(
        &self,
        namespace: &str,
        service_account: &str,
    ) -> anyhow::Result<SidecarConfig> {
        let token_path = self.token_path(namespace, service_account);
        std::fs::write(&token_path, self.token(namespace, service_account)?)
            .context("writing a token failed")?;
        let mut config = SidecarConfig::new(
            default_trust_domain(),
            namespace.to_owned(),
            service_account.to_owned(),
        );
        config.workload = service_account.to_owned();
        config.ca_address = self.ca_address().to_string();
        config.ca_roots_path = self.roots_path().display().to_string();
        config.token_path = token_path.display().to_string();
        config.status_address = on_loopback(0);
        config.admin_address = on_loopback(0);
        config.inbound = Vec::new();
        // Whoever starts a control says so.
        config.control_address = NO_CONTROL.to_owned();
        Ok(config)
    }

    /// Starts a proxy and waits for its first certificate, and for control where
    /// it is told of one.
    pub async fn proxy(&self, config: SidecarConfig) -> anyhow::Result<Proxy> {
        let dependencies = Dependencies {
            clock: self.clock.clone(),
            ..Dependencies::default()
        };
        self.proxy_with(config, dependencies).await
    }

    /// The same, with something of the caller's.
    pub async fn proxy_with(
        &self,
        config: SidecarConfig,
        dependencies: Dependencies,
    ) -> anyhow::Result<Proxy> {
        let name = format!("{}/{}", config.namespace, config.service_account);
        let proxy = Proxy::start(config, dependencies)
            .with_context(|| format!("starting the proxy of {name} failed"))?;
        tokio::time::timeout(FIRST_CERTIFICATE, proxy.latest.clone().first())
            .await
            .ok()
            .flatten()
            .with_context(|| format!("{name} got no certificate within {FIRST_CERTIFICATE:?}"))?;
        until_ready(&name, &proxy.monitoring.readiness).await?;
        Ok(proxy)
    }
}

async fn until_ready(who: &str, readiness: &Readiness) -> anyhow::Result<()> {
    let ready = async {
        while !readiness.missing().is_empty() {
            tokio::time::sleep(READY_POLL).await;
        }
    };
    let waited = tokio::time::timeout(FIRST_CERTIFICATE, ready).await;
    waited
        .ok()
        .with_context(|| format!("{who} waits for {}", readiness.missing().join(", ")))
}

/// A listener on a free port, for an application at `forward`.
pub fn inbound(forward: SocketAddr) -> InboundListener {
    InboundListener {
        listen: on_loopback(0),
        forward: Some(forward),
    }
}

/// An upstream whose endpoints are the first inbound listeners of these proxies.
pub fn upstream(
    mesh: &Mesh,
    namespace: &str,
    service_account: &str,
    endpoints: &[SocketAddr],
) -> anyhow::Result<OutboundListener> {
    let identity = bulkhead_core::identity::SpiffeId::workload(
        mesh.trust_domain(),
        namespace,
        service_account,
    )?;
    Ok(OutboundListener {
        name: format!("{service_account}.{namespace}"),
        listen: on_loopback(0),
        addresses: endpoints.to_vec(),
        identity,
        protocol: bulkhead_core::protocol::Protocol::Auto,
    })
}

fn on_loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
