//! What the tests are told by their environment. `./scripts/test` says it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Names the directory that `tests/kubernetes/build` printed.
const KUBERNETES: &str = "BULKHEAD_KUBERNETES";
/// Names a Python that has the package `grpcio`.
const PYTHON_WITH_GRPC: &str = "BULKHEAD_PYTHON_WITH_GRPC";
/// Names the directory of a cluster that `scripts/cluster` runs.
const CLUSTER: &str = "BULKHEAD_CLUSTER";
/// Names the program `bulkhead`.
const BULKHEAD: &str = "BULKHEAD_CLI";
/// Names the program `bulkhead-init`.
const INIT: &str = "BULKHEAD_INIT";
/// Names the program `bulkhead-proxy`.
const PROXY: &str = "BULKHEAD_PROXY";
/// How many roots follow each other in the soak of rotations.
const SOAK_ROOTS: &str = "BULKHEAD_SOAK_ROOTS";
/// For how many seconds programs are killed at random.
const CHAOS_SECONDS: &str = "BULKHEAD_CHAOS_SECONDS";
/// What that follows from.
const CHAOS_SEED: &str = "BULKHEAD_CHAOS_SEED";
/// Names the program that `scripts/tool vault` builds.
const VAULT: &str = "BULKHEAD_VAULT";
/// Names the program that `scripts/tool cert-manager` builds.
const CERT_MANAGER: &str = "BULKHEAD_CERT_MANAGER";
/// Names the program that `tests/cluster/go-spiffe` makes.
const GO_SPIFFE: &str = "BULKHEAD_GO_SPIFFE";
/// Names a Python that has the package `spiffe`.
const PY_SPIFFE: &str = "BULKHEAD_PY_SPIFFE";
/// Names the directory of links that `scripts/tool protocol-peers` makes.
const PROTOCOL_PEERS: &str = "BULKHEAD_PROTOCOL_PEERS";
/// Names the program `envoy`.
const ENVOY: &str = "BULKHEAD_ENVOY";

/// The directory with Kubernetes' programs, `kube-apiserver` among them.
///
/// A test that needs them fails where they are absent. Skipped, it would look
/// passed.
pub(crate) fn kubernetes_programs() -> Result<PathBuf> {
    let directory = told(KUBERNETES, "apiserver")?;
    ensure!(
        directory.join("kube-apiserver").exists(),
        "{KUBERNETES} is {}, and there is no kube-apiserver in it; \
         `./scripts/test apiserver` builds it, sets the variable and runs these tests",
        directory.display()
    );
    Ok(directory)
}

/// A Python interpreter with gRPC's own implementation.
pub fn python_with_grpc() -> Result<PathBuf> {
    told(PYTHON_WITH_GRPC, "apiserver")
}

/// The program `bulkhead`.
pub(crate) fn bulkhead() -> Result<PathBuf> {
    told(BULKHEAD, "cluster")
}

/// The program `bulkhead-init`.
pub fn bulkhead_init() -> Result<PathBuf> {
    told(INIT, "netns")
}

/// The program `bulkhead-proxy`, as it is in images but for its speed.
pub fn bulkhead_proxy() -> Result<PathBuf> {
    told(PROXY, "overload")
}

/// How many roots follow each other in the soak of rotations: a few seconds' worth,
/// where nobody asks for more.
pub fn soak_roots() -> usize {
    number(SOAK_ROOTS).unwrap_or(8)
}

/// For how long programs are killed at random: a short while, where nobody asks for
/// more.
pub fn chaos_time() -> Duration {
    Duration::from_secs(number(CHAOS_SECONDS).unwrap_or(40))
}

/// What is drawn follows from this: another each time, where nobody asks for one.
pub fn chaos_seed() -> u64 {
    number(CHAOS_SEED).unwrap_or_else(|| fastrand::u64(..1_000_000))
}

/// A variable that is a number, where it is set.
fn number<N: FromStr>(variable: &str) -> Option<N> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the config.rs of the tests"
    )]
    let asked = std::env::var(variable).ok()?;
    let number = asked.parse().ok();
    Some(number.unwrap_or_else(|| panic!("{variable} is to be a number, and is {asked}")))
}

/// An application that uses go-spiffe, and Istio's client of the CSR API.
pub fn go_spiffe() -> Result<PathBuf> {
    told(GO_SPIFFE, "spiffe")
}

/// A Python interpreter with py-spiffe, and with gRPC's own implementation.
pub fn py_spiffe() -> Result<PathBuf> {
    told(PY_SPIFFE, "spiffe")
}

/// A client or server of another protocol, where its package put it.
///
/// The link is followed once and no further: some programs are several, and look at
/// the name by which they were called.
pub fn protocol_peer(name: &str) -> Result<PathBuf> {
    let link = told(PROTOCOL_PEERS, "protocols")?.join(name);
    std::fs::read_link(&link)
        .with_context(|| format!("{} is not a link to a program", link.display()))
}

/// The program `envoy`.
pub(crate) fn envoy() -> Result<PathBuf> {
    let program = told(ENVOY, "envoy")?;
    ensure!(
        program.is_file(),
        "{ENVOY} is {}, and there is no such program; \
         `./scripts/test envoy` gets it, sets the variable and runs these tests",
        program.display()
    );
    Ok(program)
}

/// A Vault in dev mode.
pub(crate) fn vault() -> Result<PathBuf> {
    told(VAULT, "apiserver")
}

/// cert-manager's controllers, with its kinds in the same directory.
pub(crate) fn cert_manager() -> Result<PathBuf> {
    told(CERT_MANAGER, "apiserver")
}

/// Where the cluster that `scripts/cluster` runs has its files.
pub(crate) fn cluster_directory() -> Result<PathBuf> {
    told(CLUSTER, "cluster")
}

/// The administrator's kubeconfig of the cluster that `scripts/cluster` runs.
///
/// No other kubeconfig is looked for: the tests end pods and change what belongs
/// to the whole cluster, which must never be somebody's own.
pub(crate) fn cluster_kubeconfig() -> Result<PathBuf> {
    let kubeconfig = cluster_directory()?.join("kubeconfig");
    ensure!(
        kubeconfig.is_file(),
        "{} is not there; `./scripts/test cluster` starts a cluster and runs these tests",
        kubeconfig.display()
    );
    Ok(kubeconfig)
}

/// What a variable says, which this part of `./scripts/test` sets.
fn told(variable: &str, part: &str) -> Result<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the config.rs of the tests"
    )]
    let value = std::env::var_os(variable);
    value.map(PathBuf::from).with_context(|| {
        format!(
            "{variable} is not set; `./scripts/test {part}` gets what these tests need, \
             sets it and runs them"
        )
    })
}
