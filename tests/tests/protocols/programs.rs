//! Clients that run to their end, and servers that run until they are dropped.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use bulkhead_tests::config::protocol_peer;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

/// Far longer than any of them takes, on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How often a server that is starting is asked whether it listens.
const POLL: Duration = Duration::from_millis(10);

/// One of the programs that `scripts/tool protocol-peers` knows, which ends with the
/// test, however that ends.
pub(crate) fn program(name: &str) -> Command {
    let path = protocol_peer(name).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(path);
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Runs a client to its end.
pub(crate) async fn run(command: &mut Command) -> Output {
    timeout(PATIENCE, command.output())
        .await
        .unwrap_or_else(|_| panic!("{command:?} did not end within {PATIENCE:?}"))
        .unwrap()
}

/// What a client printed, which must have been content.
pub(crate) async fn said(command: &mut Command) -> String {
    let output = run(command).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// A server that is killed when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _process: Child,
}

impl Server {
    /// Starts a server that listens at `address`, and waits until it does. What it
    /// prints goes to the file `log` of its directory.
    pub(crate) async fn start(mut command: Command, address: SocketAddr, directory: &Path) -> Self {
        let log = directory.join("log");
        let output = std::fs::File::create(&log).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let mut process = command.spawn().unwrap();
        let listens = async {
            let mut polls = interval(POLL);
            loop {
                polls.tick().await;
                if TcpStream::connect(address).await.is_ok() {
                    return;
                }
                let ended = process.try_wait().unwrap();
                let said = || std::fs::read_to_string(&log).unwrap_or_default();
                assert!(ended.is_none(), "{command:?}: {ended:?}\n{}", said());
            }
        };
        timeout(PATIENCE, listens).await.unwrap();
        Self {
            address,
            _process: process,
        }
    }
}
