//! A real Envoy, the proxy that Istio's sidecars are made of.
//!
//! ```text
//!  test ──config.json──▶ envoy ── listeners on free ports of loopback
//!    └──── admin.sock ─────┘       (which, the admin interface says)
//! ```
//!
//! - [`sidecar`]: the settings of Istio's sidecar.

pub mod sidecar;

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::config;

/// From nothing to ready takes 0.2 s on an idle core. Builds may be running
/// beside the tests.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often an Envoy that is starting is asked whether it is ready, and a
/// running one whether it has counted something.
const POLL: Duration = Duration::from_millis(10);
/// How long a number of the statistics may take to become what is expected.
const COUNTED_WITHIN: Duration = Duration::from_secs(60);

/// A running Envoy. It is killed when this is dropped, or when the thread of the
/// test ends in any other way; its log is shown where the test has failed.
pub struct Envoy {
    process: Child,
    directory: TempDir,
}

impl Envoy {
    /// Starts an Envoy with these listeners and clusters, and returns when all of
    /// them are ready. A listener on port 0 gets a free one.
    pub async fn start(listeners: Value, clusters: Value) -> Result<Self> {
        let program = config::envoy()?;
        let directory = tempfile::Builder::new()
            .prefix("bulkhead-envoy-")
            .tempdir()
            .context("making a directory for Envoy")?;
        let bootstrap = json!({
            "admin": {"address": {"pipe": {"path": admin_socket(directory.path())}}},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        });
        let config = directory.path().join("config.json");
        std::fs::write(&config, bootstrap.to_string()).context("writing Envoy's settings")?;
        let log = File::create(log_file(directory.path())).context("making Envoy's log")?;
        // Drop does not run in a test process that is killed; the kernel's
        // signal at the end of the parent does not depend on it.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(&program)
            .arg("--config-path")
            .arg(&config)
            .args(["--disable-hot-restart", "--concurrency", "1"])
            .args(["--log-level", "info"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing Envoy's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {} by util-linux's setpriv", program.display()))?;
        let mut envoy = Self { process, directory };
        match envoy.ready().await {
            Ok(()) => Ok(envoy),
            Err(error) => Err(error.context(format!("Envoy's log:\n{}", envoy.log()))),
        }
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut polls = interval(POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            polls.tick().await;
            if let Some(status) = self.process.try_wait()? {
                bail!("Envoy ended with {status} instead of getting ready");
            }
            let last = match self.admin("/ready").await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(last.context(format!("Envoy was not ready within {READY_WITHIN:?}")));
            }
        }
    }

    /// Where a listener listens.
    pub async fn listener(&self, name: &str) -> Result<SocketAddr> {
        let all: Value = serde_json::from_str(&self.admin("/listeners?format=json").await?)?;
        let find = || {
            let mut listeners = all["listener_statuses"].as_array()?.iter();
            let address = &listeners.find(|listener| listener["name"] == name)?["local_address"];
            let address = &address["socket_address"];
            let ip = address["address"].as_str()?.parse().ok()?;
            let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
            Some(SocketAddr::new(ip, port))
        };
        find().with_context(|| format!("Envoy has no listener {name}: {all}"))
    }

    /// Waits until a number of its statistics is `expected` or more: the peer has
    /// its answer a moment before Envoy has counted it.
    ///
    /// # Errors
    /// It does not come; the error shows what there is.
    pub async fn counts(&self, name: &str, expected: u64) -> Result<()> {
        let deadline = Instant::now() + COUNTED_WITHIN;
        let mut polls = interval(POLL);
        loop {
            polls.tick().await;
            let all = self.admin("/stats?usedonly").await?;
            let value = all.lines().find_map(|line| {
                let (found, value) = line.split_once(": ")?;
                (found == name).then(|| value.parse::<u64>().ok())?
            });
            if value.is_some_and(|value| value >= expected) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{name} is {value:?} and not {expected}; Envoy's statistics:\n{all}");
            }
        }
    }

    /// Asks the admin interface.
    async fn admin(&self, path: &str) -> Result<String> {
        let stream = UnixStream::connect(admin_socket(self.directory.path())).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "admin")
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        ensure!(status.is_success(), "{path} answered {status}: {body}");
        Ok(body)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(log_file(self.directory.path()))
            .unwrap_or_else(|error| format!("it cannot be read: {error}"))
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do about it.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "a failed test shows what it knows")]
            {
                eprintln!("Envoy's log:\n{}", self.log());
            }
        }
    }
}

/// A socket in the file system: no other program can be given its address.
fn admin_socket(directory: &Path) -> std::path::PathBuf {
    directory.join("admin.sock")
}

fn log_file(directory: &Path) -> std::path::PathBuf {
    directory.join("log")
}
