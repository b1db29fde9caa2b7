//! The SPIFFE Workload API with clients that the project has no part in, of a
//! real sidecar with a certificate of a real CA.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Stdio;
use std::time::Duration;

use bulkhead::mesh::Mesh;
use bulkhead_proxy::app::Proxy;
use bulkhead_tests::config::{go_spiffe, py_spiffe};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Far longer than any step takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// An application beside its sidecar.
struct Application {
    lines: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Application {
    /// Starts the program, which finds the socket by the standard's variable.
    fn start(mut program: Command, socket: &str) -> Self {
        let mut process = program
            .arg("reports")
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{socket}"))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = process.stdout.take().unwrap();
        Self {
            lines: BufReader::new(output).lines(),
            _process: process,
        }
    }

    /// What it says next.
    async fn says(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line());
        line.await.unwrap().unwrap().unwrap()
    }
}

/// A sidecar of `shop/cart` that serves the API.
async fn sidecar(mesh: &Mesh, directory: &TempDir) -> (Proxy, String) {
    let socket = directory.path().join("api.sock").display().to_string();
    let mut config = mesh.workload("shop", "cart").unwrap();
    config.workload_api_path = Some(socket.clone());
    (mesh.proxy(config).await.unwrap(), socket)
}

#[tokio::test]
async fn go_spiffe_verifies_what_it_gets_and_follows_renewals() {
    verifies_and_follows(Command::new(go_spiffe().unwrap())).await;
}

#[tokio::test]
async fn py_spiffe_verifies_what_it_gets_and_follows_renewals() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/spiffe/py_spiffe.py");
    let mut program = Command::new(py_spiffe().unwrap());
    program.arg(script);
    verifies_and_follows(program).await;
}

/// The application says what it verified, and then each certificate that it gets.
async fn verifies_and_follows(program: Command) {
    let mesh = Mesh::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (proxy, socket) = sidecar(&mesh, &directory).await;
    let mut application = Application::start(program, &socket);
    let id = "spiffe://cluster.local/ns/shop/sa/cart";
    assert_eq!(application.says().await, format!("x509 {id}"));
    assert_eq!(application.says().await, format!("jwt {id}"));

    let mut latest = proxy.latest.clone();
    let serial = latest.first().await.unwrap().identity().serial();
    assert_eq!(application.says().await, format!("update {serial}"));
    for _ in 0..3 {
        let before = proxy.latest.get().unwrap().identity().serial();
        proxy.renewals.renew();
        let serial = loop {
            let latest = latest.changed().await.unwrap();
            if latest.identity().serial() != before {
                break latest.identity().serial();
            }
        };
        assert_eq!(application.says().await, format!("update {serial}"));
    }
}
