//! The commands that people type at a cluster, each run to its end.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::config;

/// More than any command takes by limits of its own: `bulkhead on` waits twice
/// for what kubelets mount, each time for up to two and a half minutes.
const COMMAND: Duration = Duration::from_secs(480);

/// Where the chart is.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/bulkhead");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/cluster");

/// `kubectl`, and what it printed.
///
/// # Panics
/// Where it fails, with what it said.
pub async fn kubectl(arguments: &[&str]) -> String {
    succeeds(Path::new("kubectl"), arguments, "").await.stdout
}

/// `kubectl apply -f -`.
///
/// # Panics
/// Where it fails, with what it said.
pub async fn kubectl_apply(manifest: &str) -> String {
    let arguments = ["apply", "-f", "-"];
    succeeds(Path::new("kubectl"), &arguments, manifest)
        .await
        .stdout
}

/// `helm`, and what it printed.
///
/// # Panics
/// Where it fails, with what it said.
pub async fn helm(arguments: &[&str]) -> String {
    succeeds(Path::new("helm"), arguments, "").await.stdout
}

/// `bulkhead`, and what it printed.
///
/// # Panics
/// Where it fails, with what it said.
pub async fn bulkhead(arguments: &[&str]) -> String {
    let program = config::bulkhead().expect("run by ./scripts/test cluster");
    succeeds(&program, arguments, "").await.stdout
}

/// `bulkhead … --output json`, and what it printed.
///
/// # Panics
/// Where it fails, with what it said.
pub async fn bulkhead_json(arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    let printed = bulkhead(&arguments).await;
    serde_json::from_str(&printed)
        .unwrap_or_else(|error| panic!("{arguments:?} printed {printed}: {error}"))
}

/// `bulkhead check`, which fails where it finds a problem.
pub async fn check() -> Ended {
    Running::start(&["check"]).ended(COMMAND).await
}

/// Cuts the node's power and gives it back; returns when the node is ready.
///
/// # Panics
/// Where it does not come back.
pub async fn restart_node() {
    succeeds(Path::new(SCRIPT), &["restart-node"], "").await;
}

/// `bulkhead` that runs while the test goes on.
pub struct Running {
    process: Child,
    line: String,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    /// The exit code; none where a signal ended it.
    pub code: Option<i32>,
}

impl Running {
    /// Types it.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(arguments: &[&str]) -> Self {
        let program = config::bulkhead().expect("run by ./scripts/test cluster");
        start(&program, arguments)
    }

    /// Types Ctrl-C.
    ///
    /// # Panics
    /// Where it has ended already.
    pub fn interrupt(&self) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok());
        let id = id.and_then(Pid::from_raw).expect("it runs");
        kill_process(id, Signal::INT).expect("it is ours, and was not waited for");
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// Where it does not within this time, with what it said until then.
    pub async fn ended(self, within: Duration) -> Ended {
        let Self { mut process, line } = self;
        drop(process.stdin.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let whole = async {
            let out = process.stdout.as_mut().expect("it is piped");
            let err = process.stderr.as_mut().expect("it is piped");
            tokio::try_join!(out.read_to_end(&mut stdout), err.read_to_end(&mut stderr))?;
            process.wait().await
        };
        let status = timeout(within, whole).await;
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let Ok(status) = status else {
            panic!("{line} did not end within {within:?}; so far it said: {stdout}{stderr}");
        };
        Ended {
            stdout,
            stderr,
            code: status.expect("it was ours").code(),
        }
    }
}

async fn succeeds(program: &Path, arguments: &[&str], input: &str) -> Ended {
    let mut running = start(program, arguments);
    let mut stdin = running.process.stdin.take().expect("it is piped");
    let line = running.line.clone();
    let whole = async {
        // Who reads nothing may have ended already.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(running.ended(COMMAND), whole);
    assert_eq!(
        output.code,
        Some(0),
        "{line} failed: {}{}",
        output.stdout,
        output.stderr
    );
    output
}

fn start(program: &Path, arguments: &[&str]) -> Running {
    let process = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{program:?} cannot be run: {error}"));
    Running {
        process,
        line: format!("{program:?} {arguments:?}"),
    }
}
