//! Programs run inside a container, as `kubectl exec` does.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::SOON;

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    /// Whether its exit code was 0.
    pub succeeded: bool,
}

/// Runs a program in a container of a pod, to its end.
///
/// # Panics
/// Where it cannot be started, or does not end.
pub async fn exec(pods: &Api<Pod>, pod: &str, container: &str, command: &[&str]) -> Output {
    let parameters = AttachParams::default()
        .container(container)
        .stdin(false)
        .stdout(true)
        .stderr(true);
    let run = async {
        let mut process = pods
            .exec(pod, command.iter().copied(), &parameters)
            .await
            .unwrap_or_else(|error| panic!("running {command:?} in {pod} failed: {error}"));
        let mut stdout = process.stdout().expect("stdout was asked for");
        let mut stderr = process.stderr().expect("stderr was asked for");
        let ended = process.take_status().expect("it is taken once");
        let (mut printed, mut complained) = (String::new(), String::new());
        let (out, err, status) = tokio::join!(
            stdout.read_to_string(&mut printed),
            stderr.read_to_string(&mut complained),
            ended,
        );
        out.and(err).expect("what the program prints is text");
        Output {
            stdout: printed,
            stderr: complained,
            succeeded: status.and_then(|status| status.status).as_deref() == Some("Success"),
        }
    };
    timeout(SOON, run)
        .await
        .unwrap_or_else(|_| panic!("{command:?} in {pod} did not end"))
}
