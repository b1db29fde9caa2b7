//! The commands that people type at a cluster, each run to its end.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::SOON;
use super::exec::Output;
use crate::config;

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

/// `bulkhead check`, which fails where it finds a problem.
pub async fn check() -> Output {
    let program = config::bulkhead().expect("run by ./scripts/test cluster");
    run(&program, &["check"], "").await
}

/// Cuts the node's power and gives it back; returns when the node is ready.
///
/// # Panics
/// Where it does not come back.
pub async fn restart_node() {
    succeeds(Path::new(SCRIPT), &["restart-node"], "").await;
}

async fn succeeds(program: &Path, arguments: &[&str], input: &str) -> Output {
    let output = run(program, arguments, input).await;
    assert!(
        output.succeeded,
        "{program:?} {arguments:?} failed: {}{}",
        output.stdout, output.stderr
    );
    output
}

async fn run(program: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{program:?} cannot be run: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    let whole = async {
        // Who reads nothing may have ended already.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await.expect("it was ours")
    };
    let ended = timeout(SOON, whole).await;
    let ended = ended.unwrap_or_else(|_| panic!("{program:?} {arguments:?} did not end"));
    Output {
        stdout: String::from_utf8_lossy(&ended.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&ended.stderr).into_owned(),
        succeeded: ended.status.success(),
    }
}
