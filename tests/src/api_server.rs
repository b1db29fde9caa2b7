//! A real Kubernetes API server, for tests: etcd, kube-apiserver and the
//! controllers that shape what is stored, from Kubernetes' own Go modules.
//!
//! ```text
//!  test process ──pipe──▶ tests/kubernetes/control-plane ─┬─ etcd (a socket)
//!       │                                                 ├─ kube-apiserver
//!       └──────────── TLS, 127.0.0.1:PORT ──────────────▶ └─ kube-controller-manager
//! ```
//!
//! There is no scheduler and no node, so pods stay Pending: stored, with all
//! that admission did to them, which is what the tests look at.

mod credentials;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use self::credentials::Credentials;
use crate::config;

/// From nothing to ready takes 3 s on two idle cores. Builds may be running
/// beside the tests.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// How often a server that is starting is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(50);

/// The directory of what is Kubernetes' in the tests.
const KUBERNETES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes");

/// A running control plane. It stops when this is dropped, and also when this
/// process ends in any other way.
pub struct ApiServer {
    // Fields are dropped in this order: the programs end before their files go
    // and before the port is given back.
    supervisor: Supervisor,
    credentials: Credentials,
    directory: TempDir,
    port: ReservedPort,
}

impl ApiServer {
    /// The one server that all tests of this process share. They keep apart by
    /// namespaces, and change nothing that belongs to the whole cluster.
    ///
    /// # Panics
    /// Where it does not start, with the reason.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<ApiServer, String>> = OnceCell::const_new();
        let start = async || Self::start().await.map_err(|error| format!("{error:#}"));
        match SHARED.get_or_init(start).await {
            Ok(server) => server,
            Err(error) => panic!("the API server for the tests did not start: {error}"),
        }
    }

    /// Starts a server of one's own, for a test that changes what belongs to
    /// the whole cluster. Returns when it is ready for every request.
    pub async fn start() -> Result<Self> {
        let programs = config::kubernetes_programs()?;
        let directory = tempfile::Builder::new()
            .prefix("bulkhead-api-server-")
            .tempdir()
            .context("making a directory for the API server")?;
        let port = ReservedPort::choose().context("choosing a port for the API server")?;
        let credentials = Credentials::write(directory.path(), port.number)
            .context("making the API server's certificates")?;
        let supervisor = Supervisor::start(&programs, directory.path(), port.number)?;
        let mut server = Self {
            supervisor,
            credentials,
            directory,
            port,
        };
        server.ready().await?;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.number))
    }

    /// How to be the administrator, who may do everything.
    pub fn admin(&self) -> &Kubeconfig {
        &self.credentials.admin
    }

    /// The administrator's kubeconfig as a file, for programs.
    pub fn admin_kubeconfig(&self) -> std::path::PathBuf {
        self.directory.path().join("admin.kubeconfig")
    }

    /// A ServiceAccount token with other claims, signed with the API server's
    /// own key: for tokens that it would not make.
    pub fn resign(&self, token: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
        self.credentials
            .resign(token, change)
            .expect("the token came from this API server")
    }

    /// The settings of a client that acts as the administrator.
    pub async fn config(&self) -> kube::Config {
        let options = KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(self.admin().clone(), &options)
            .await
            .expect("the harness wrote this kubeconfig itself");
        // A test that passes by trying again hides what its users would see.
        config.default_retry = false;
        config
    }

    /// A client that acts as the administrator. Its connections belong to the
    /// runtime of the calling test, so that tests do not share one.
    pub async fn client(&self) -> kube::Client {
        kube::Client::try_from(self.config().await)
            .expect("the harness made these certificates itself")
    }

    /// A client that acts as whoever the token is of.
    pub async fn client_with_token(&self, token: String) -> kube::Client {
        let mut config = self.config().await;
        config.auth_info = AuthInfo {
            token: Some(token.into()),
            ..AuthInfo::default()
        };
        kube::Client::try_from(config).expect("the harness made these certificates itself")
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let client = self.client().await;
        let mut polls = interval(READY_POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            polls.tick().await;
            self.supervisor.check()?;
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let last = match timeout_at(deadline, client.request_text(request)).await {
                Ok(Ok(_)) => break,
                Ok(Err(error)) => format!("{error}"),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() >= deadline {
                bail!("the API server was not ready within {READY_WITHIN:?}; it said: {last}");
            }
        }
        // The server makes its own namespaces after it is ready, and tests put
        // pods there.
        for name in ["kube-system", "default"] {
            let namespaces: Api<Namespace> = Api::all(client.clone());
            let exists = |namespace: Option<&Namespace>| namespace.is_some();
            timeout_at(deadline, await_condition(namespaces, name, exists))
                .await
                .with_context(|| format!("waiting for the namespace {name}"))??;
        }
        Ok(())
    }
}

/// The script that runs the programs. It stops them and removes their files
/// when the pipe to its standard input closes.
struct Supervisor(Child);

impl Supervisor {
    fn start(programs: &Path, directory: &Path, port: u16) -> Result<Self> {
        let script = Path::new(KUBERNETES).join("control-plane");
        Command::new(&script)
            .args([programs, directory])
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .spawn()
            .map(Self)
            .with_context(|| format!("starting {}", script.display()))
    }

    fn check(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the control plane ended with {status}; its log is above"),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Nothing to do about a child that cannot be waited for.
        let _ = self.0.wait();
    }
}

/// A port that nobody else on this machine is given while this is held.
///
/// The socket is bound and never listens, so that connections go to the API
/// server, which binds the same port beside it.
struct ReservedPort {
    number: u16,
    _socket: Socket,
}

impl ReservedPort {
    fn choose() -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = socket.local_addr()?.as_socket();
        let number = address
            .context("an IPv4 socket has an IPv4 address")?
            .port();
        Ok(Self {
            number,
            _socket: socket,
        })
    }
}
