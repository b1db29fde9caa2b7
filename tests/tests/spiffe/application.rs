//! Programs that the project has no part in, spoken with by lines.

use std::process::Stdio;
use std::time::Duration;

use bulkhead::mesh::Mesh;
use bulkhead_proxy::app::Proxy;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Far longer than any step takes, on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A program that runs until it is dropped.
pub(crate) struct Application {
    asks: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Application {
    pub(crate) fn start(mut program: Command) -> Self {
        let mut process = program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            asks: process.stdin.take().unwrap(),
            lines: BufReader::new(process.stdout.take().unwrap()).lines(),
            _process: process,
        }
    }

    /// What it says next.
    pub(crate) async fn says(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line());
        line.await.unwrap().unwrap().unwrap()
    }

    /// What it says to a line of its standard input.
    pub(crate) async fn answers(&mut self, line: &str) -> String {
        self.asks.write_all(line.as_bytes()).await.unwrap();
        self.asks.write_all(b"\n").await.unwrap();
        self.says().await
    }
}

/// A sidecar that serves the Workload API to the application beside it.
pub(crate) struct Sidecar {
    pub(crate) proxy: Proxy,
    directory: TempDir,
}

impl Sidecar {
    /// That of an account of the namespace `shop`, set up as `change` says.
    pub(crate) async fn start(
        mesh: &Mesh,
        account: &str,
        change: impl FnOnce(&mut bulkhead_core::sidecar::SidecarConfig),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = mesh.workload("shop", account).unwrap();
        config.workload_api_path = Some(socket(&directory));
        change(&mut config);
        let proxy = mesh.proxy(config).await.unwrap();
        Self { proxy, directory }
    }

    /// Where libraries look for the socket, as the standard has it.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", socket(&self.directory))
    }

    /// Starts a program beside it, which finds the socket by the standard's
    /// variable.
    pub(crate) fn run(&self, mut program: Command) -> Application {
        program.env("SPIFFE_ENDPOINT_SOCKET", self.endpoint());
        Application::start(program)
    }

    /// The serial number of the certificate that it has now.
    pub(crate) fn serial(&self) -> String {
        self.proxy.latest.get().unwrap().identity().serial()
    }

    /// Has it get another certificate, whose serial number is the answer.
    pub(crate) async fn renew(&self) -> String {
        let mut latest = self.proxy.latest.clone();
        let before = self.serial();
        self.proxy.renewals.renew();
        loop {
            let latest = tokio::time::timeout(PATIENCE, latest.changed()).await;
            let serial = latest.unwrap().unwrap().identity().serial();
            if serial != before {
                return serial;
            }
        }
    }
}

fn socket(directory: &TempDir) -> String {
    directory.path().join("api.sock").display().to_string()
}

/// The SPIFFE ID of an account of the namespace `shop`.
pub(crate) fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}
