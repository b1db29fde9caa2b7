//! What the steps share: a webhook, a CA, control, and two workloads with their
//! proxies.
//! Each is started by the first step that needs it.
//!
//! ```text
//!  visitor ─▶ front's proxy ─┬─▶ wiretap ─▶ cart-0's proxy ─┬─▶ cart         STRICT
//!                            │                              ├─▶ metrics      PERMISSIVE
//!                            │                              └─▶ own TLS      PERMISSIVE
//!                            ├─▶ cart-0's proxy, expected to be shop/orders
//!                            └─▶ the Service cart, of which control says what it is:
//!                                cart-0's or cart-1's proxy ─▶ cart          STRICT
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bulkhead_control::app::App as Control;
use bulkhead_core::policy::MtlsMode;
use bulkhead_core::sidecar::RedirectedListener;
use bulkhead_pki::serving::{ServerName, ServingAuthority, ServingCertificate};
use bulkhead_proxy::app::Proxy;
use bulkhead_runtime::clock::Clock;
use tokio::sync::watch;

use super::application::Application;
use super::manifests;
use super::reviewer::Reviewer;
use super::wiretap::Wiretap;
use crate::mesh::{self, Mesh};

/// How long the replica that is stopped may take.
const DRAIN: Duration = Duration::from_secs(5);
/// Of the certificate of the application that brings its own.
const OWN_TLS_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) struct Stage {
    directory: PathBuf,
    pub(super) progress: Progress,
    reviewer: Option<Reviewer>,
    mesh: Option<Mesh>,
    workloads: Option<Workloads>,
}

/// What a step that takes a moment is doing.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(watch::Sender<String>);

impl Progress {
    /// For whoever shows it, from nothing on.
    pub(super) fn start(&self) -> watch::Receiver<String> {
        self.0.send_replace(String::new());
        self.0.subscribe()
    }

    pub(super) fn show(&self, text: String) {
        self.0.send_replace(text);
    }
}

impl Stage {
    /// Whatever is written goes into the directory.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            progress: Progress::default(),
            reviewer: None,
            mesh: None,
            workloads: None,
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) async fn reviewer(&mut self) -> anyhow::Result<&mut Reviewer> {
        if self.reviewer.is_none() {
            self.reviewer = Some(Reviewer::start().await?);
        }
        self.reviewer.as_mut().context("the webhook does not run")
    }

    pub(super) async fn mesh(&mut self) -> anyhow::Result<&mut Mesh> {
        if self.mesh.is_none() {
            self.mesh = Some(Mesh::start_in(&self.directory).await?);
        }
        self.mesh.as_mut().context("the CA does not run")
    }

    /// The two workloads, and the CA that they have their certificates from.
    pub(super) async fn workloads(&mut self) -> anyhow::Result<(&mut Mesh, &mut Workloads)> {
        if self.workloads.is_none() {
            let directory = self.directory.clone();
            let workloads = Workloads::start(self.mesh().await?, &directory).await?;
            self.workloads = Some(workloads);
        }
        let mesh = self.mesh.as_mut().context("the CA does not run")?;
        let workloads = self.workloads.as_mut().context("no workload runs")?;
        Ok((mesh, workloads))
    }
}

/// `web/front`, which calls; and `shop/cart`, which is called and has two
/// replicas.
pub(super) struct Workloads {
    pub(super) front: Proxy,
    pub(super) cart: Proxy,
    /// Until it is stopped.
    pub(super) replica: Option<Proxy>,
    pub(super) cart_application: Application,
    pub(super) replica_application: Application,
    pub(super) own_tls: OwnTls,
    pub(super) wiretap: Wiretap,
    _control: Control,
    /// Behind the port that is PERMISSIVE.
    _metrics_application: Application,
    _own_tls_application: Application,
}

/// What an application has that brings its own TLS.
pub(super) struct OwnTls {
    pub(super) authority: ServingAuthority,
    pub(super) certificate: ServingCertificate,
}

impl Workloads {
    async fn start(mesh: &Mesh, directory: &Path) -> anyhow::Result<Self> {
        let own_tls = OwnTls::new()?;
        let cart_application = Application::start("cart-0", None).await?;
        let metrics_application = Application::start("cart-0's metrics", None).await?;
        let own_tls_application =
            Application::start("cart-0's own TLS", Some(&own_tls.certificate)).await?;
        let replica_application = Application::start("cart-1", None).await?;

        let mut config = mesh.workload("shop", "cart")?;
        config.mode = MtlsMode::Strict;
        config.drain_duration = DRAIN;
        let mut replica = config.clone();
        config.pod_name = "cart-0".to_owned();
        config.inbound.push(mesh::inbound(cart_application.address));
        for permissive in [&metrics_application, &own_tls_application] {
            let address = permissive.address;
            config
                .port_modes
                .insert(address.port(), MtlsMode::Permissive);
            config.inbound.push(mesh::inbound(address));
        }
        replica.pod_name = "cart-1".to_owned();
        replica
            .inbound
            .push(mesh::inbound(replica_application.address));
        let cart = mesh.proxy(config).await?;
        let replica = mesh.proxy(replica).await?;

        let first = cart.addresses.inbound[0];
        let wiretap = Wiretap::start(first).await?;
        let both = [("cart-0", first), ("cart-1", replica.addresses.inbound[0])];
        let manifests = manifests::write(directory, &both)?;
        let any_port = SocketAddr::new(first.ip(), 0);
        let control = mesh.start_control(&manifests, any_port).await?;
        let mut config = mesh.workload("web", "front")?;
        config.pod_name = "front-0".to_owned();
        config.control_address = control.address().to_string();
        config.redirected_outbound = vec![RedirectedListener {
            listen: any_port,
            destination: Some(manifests::CART),
        }];
        config.outbound = vec![
            mesh::upstream(mesh, "shop", "cart", &[wiretap.address])?,
            mesh::upstream(mesh, "shop", "orders", &[first])?,
        ];
        let front = mesh.proxy(config).await?;
        Ok(Self {
            front,
            cart,
            replica: Some(replica),
            cart_application,
            replica_application,
            own_tls,
            wiretap,
            _control: control,
            _metrics_application: metrics_application,
            _own_tls_application: own_tls_application,
        })
    }

    /// Where front's application dials cart, past the wiretap.
    pub(super) fn dial_past_wiretap(&self) -> SocketAddr {
        self.front.addresses.outbound[0]
    }

    /// Where it dials orders, and cart answers.
    pub(super) fn dial_impostor(&self) -> SocketAddr {
        self.front.addresses.outbound[1]
    }

    /// Where it dials the Service cart, whichever replica answers.
    pub(super) fn dial_replicas(&self) -> SocketAddr {
        self.front.addresses.redirected[0]
    }

    /// Cart's port that accepts mesh mTLS only.
    pub(super) fn strict_port(&self) -> SocketAddr {
        self.cart.addresses.inbound[0]
    }

    pub(super) fn permissive_port(&self) -> SocketAddr {
        self.cart.addresses.inbound[1]
    }

    /// Also PERMISSIVE; the application behind it speaks TLS.
    pub(super) fn own_tls_port(&self) -> SocketAddr {
        self.cart.addresses.inbound[2]
    }
}

impl OwnTls {
    fn new() -> anyhow::Result<Self> {
        let now = Clock::system().now();
        let authority = ServingAuthority::new("somebody else's CA", OWN_TLS_LIFETIME, now)?;
        let name = ServerName::parse("127.0.0.1")?;
        let certificate = authority.issue(&[name], OWN_TLS_LIFETIME, now)?;
        Ok(Self {
            authority,
            certificate,
        })
    }
}
