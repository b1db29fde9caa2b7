//! A mesh whose certificates live for two minutes, so that they are renewed, and
//! roots follow each other, while somebody watches. `tests/cluster/run-tests`
//! sets the installation to that for these tests, after all others.
//!
//! - [`root_rotation`]: another root, there and back, under traffic.
//! - [`random_kills`]: whatever is there is killed meanwhile.

use std::time::Duration;

use bulkhead_crds::certificate_authority::{
    AuthorityKind, AuthorityState, CertificateAuthority, CertificateAuthorityStatus, NAME, Phase,
};
use bulkhead_tests::cluster::apps::{App, Load, TCP_ECHO_PORT, server};
use bulkhead_tests::cluster::processes::{self, Process};
use bulkhead_tests::cluster::{Cluster, within};
use bulkhead_tests::namespace::Namespace;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::json;

mod random_kills;
mod root_rotation;

/// STRICT, so that nothing is answered without certificates that fit together.
const STRICT: &[(&str, &str)] = &[("bulkhead.io/mtls-mode", "STRICT")];
/// Requests a second, of each kind.
const RATE: &str = "20";
const SIDECAR: &str = "bulkhead-proxy";
/// How long a rotation may take: a minute and a half where nothing else goes on.
const ROTATED: Duration = Duration::from_secs(600);

/// What the CA and control say of the roots.
struct Authority(Api<CertificateAuthority>);

impl Authority {
    fn of(cluster: &Cluster) -> Self {
        Self(cluster.system().api())
    }

    /// Waits until they say this.
    async fn says(
        &self,
        what: &str,
        is_so: impl Fn(&CertificateAuthorityStatus) -> bool,
    ) -> CertificateAuthorityStatus {
        within(ROTATED, what, async || {
            let found = self.0.get_opt(NAME).await.ok()??;
            found.status.filter(&is_so)
        })
        .await
    }

    /// Waits until no rotation is under way, and every proxy has all of it.
    async fn settles(&self) -> CertificateAuthorityStatus {
        self.says("every proxy is below the one root", |status| {
            let roots = status.authorities.iter().filter(|authority| {
                authority.kind == AuthorityKind::Root && authority.state != AuthorityState::Retired
            });
            let proxies = status.proxies.as_ref();
            status.phase == Some(Phase::Settled)
                && status.root_generation == status.target_generation
                && roots.count() == 1
                && proxies.is_some_and(|proxies| {
                    proxies.holding == proxies.total && proxies.renewed == proxies.total
                })
        })
        .await
    }
}

/// The fingerprint of the root that signs.
fn signing_root(status: &CertificateAuthorityStatus) -> &str {
    let mut roots = status.authorities.iter();
    let active = roots.find(|authority| {
        authority.kind == AuthorityKind::Root && authority.state == AuthorityState::Active
    });
    &active.expect("a root signs").fingerprint
}

/// A server that is not taken for dead where the machine is busy with what is killed
/// and comes back: nobody could reach it then, and that would not be the mesh's doing.
async fn start_web(namespace: &Namespace) -> App<'_> {
    let patient = json!({
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 30,
    });
    let web = server("web").container(json!({"readinessProbe": patient}));
    web.start(namespace).await
}

/// Requests, each on a connection of its own, and lines on one that is kept.
async fn under_load<'a>(namespace: &'a Namespace, web: &App<'_>) -> [Load<'a>; 2] {
    let url = web.url("/");
    let lines = format!("tcp://{}:{TCP_ECHO_PORT}", web.host());
    let lines = ["--rate", RATE, lines.as_str()];
    let requests = ["--rate", RATE, "--new-connections", url.as_str()];
    let (requests, lines) = tokio::join!(
        Load::start_with(namespace, "requests", &requests),
        Load::start_with(namespace, "lines", &lines),
    );
    [requests, lines]
}

async fn none_failed(loads: &[Load<'_>]) {
    for load in loads {
        load.goes_on(50).await;
        load.has_not_failed().await;
    }
}

/// The sidecar's process of a pod; none where it starts just now.
fn sidecar(pod: &Pod) -> Option<Process> {
    processes::of_pod(pod, SIDECAR).first().copied()
}
