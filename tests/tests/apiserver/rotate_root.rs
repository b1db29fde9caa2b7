//! `bulkhead ca rotate-root` and `bulkhead ca status` on a real API server. The
//! tests play the CA: they write what it would write to its object.

use bulkhead::Cli;
use bulkhead::authority::report;
use bulkhead::error::Ended;
use bulkhead::manifest::Stream;
use bulkhead_crds::certificate_authority::{CertificateAuthority, CertificateAuthoritySpec, NAME};
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::namespace::Namespace;
use clap::Parser as _;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::await_condition;
use kube::{Api, CustomResourceExt as _};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cluster::{SOON, until};

/// What `bulkhead install` prints, which is the chart as Helm renders it.
const MANIFESTS: &str = include_str!("../../../cli/manifests/install.yaml");
const ROLE: &str = "bulkhead-ca-rotate";

/// A namespace with a certificate authority, and somebody who has the chart's
/// role for rotating its root there.
struct Mesh {
    server: &'static ApiServer,
    namespace: Namespace,
    kubeconfig: NamedTempFile,
    api: Api<CertificateAuthority>,
}

/// The role's rules, as the chart has them.
fn role() -> ClusterRole {
    let stream = Stream::parse(MANIFESTS).unwrap();
    let found = stream
        .values()
        .find(|object| object["kind"] == "ClusterRole" && object["metadata"]["name"] == ROLE);
    serde_json::from_value(found.expect("the chart has the role").clone()).unwrap()
}

impl Mesh {
    async fn start() -> Self {
        let server = ApiServer::shared().await;
        let client = server.client().await;
        define(Api::all(client.clone())).await;
        let namespace = Namespace::create(&client, &[], &[]).await;
        namespace.create_service_account("on-call").await;
        let rules = role().rules.unwrap();
        namespace.grant_here("on-call", rules).await;
        let token = namespace.token("on-call", None, None).await;
        let api = namespace.api();
        let object = CertificateAuthority::new(NAME, CertificateAuthoritySpec::default());
        api.create(&PostParams::default(), &object).await.unwrap();
        Self {
            server,
            kubeconfig: kubeconfig(server, &token),
            namespace,
            api,
        }
    }

    /// With root 1, which signs.
    async fn settled() -> Self {
        let mesh = Self::start().await;
        mesh.says("Settled", 1, 1, &[(1, "active")]).await;
        mesh
    }

    /// Writes what the CA would: phase, the root that signs, the one that is to,
    /// and all of them. Of three proxies one lacks the bundle, but in the end.
    async fn says(&self, phase: &str, root: u32, target: u32, roots: &[(u32, &str)]) {
        let generation = self.stored().await.metadata.generation;
        let authorities: Vec<_> = roots
            .iter()
            .map(|(generation, state)| {
                json!({"kind": "root", "generation": generation, "state": state,
                       "fingerprint": "f".repeat(64)})
            })
            .collect();
        let holding = if phase == "Settled" { 3 } else { 2 };
        let missing = json!([{"pod": "shop/cart-1", "reason": "it holds the bundle of before"}]);
        let status = json!({"status": {
            "observedGeneration": generation,
            "phase": phase,
            "message": "as the CA says",
            "rootGeneration": root,
            "targetGeneration": target,
            "authorities": authorities,
            "trustBundle": {"id": "a".repeat(32), "sequence": 7, "roots": roots.len()},
            "proxies": {"total": 3, "holding": holding, "renewed": 0, "at": now(),
                        "summary": format!("{holding}/3"), "bundle": "a".repeat(32),
                        "signingRoot": "f".repeat(64), "missing": missing},
        }});
        let parameters = PatchParams::default();
        self.api
            .patch_status(NAME, &parameters, &Patch::Merge(status))
            .await
            .unwrap();
    }

    async fn stored(&self) -> CertificateAuthority {
        self.api.get(NAME).await.unwrap()
    }

    async fn spec(&self) -> Value {
        serde_json::to_value(self.stored().await.spec).unwrap()
    }

    /// Types `bulkhead ca rotate-root` as somebody with the role alone.
    fn types(&self, arguments: &[&str]) -> JoinHandle<anyhow::Result<()>> {
        let kubeconfig = self.kubeconfig.path().display().to_string();
        let words = ["bulkhead", "ca", "rotate-root", "--kubeconfig", &kubeconfig];
        let place = ["--system-namespace", self.namespace.name()];
        let words = words.iter().chain(&place).chain(arguments);
        let words: Vec<_> = words.map(|word| (*word).to_owned()).collect();
        // It runs to its end on a thread of its own, as a process would.
        tokio::task::spawn_blocking(move || Cli::try_parse_from(words)?.run())
    }

    /// Waits until somebody asked for this.
    async fn is_asked(&self, spec: Value) {
        let asked = until(async || (self.spec().await == spec).then_some(())).await;
        assert!(asked.is_some(), "{:?}", self.spec().await);
    }
}

fn now() -> String {
    let now = k8s_openapi::jiff::Timestamp::try_from(Clock::system().now()).unwrap();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn define(definitions: Api<CustomResourceDefinition>) {
    let created = definitions
        .create(&PostParams::default(), &CertificateAuthority::crd())
        .await;
    match created {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        created => drop(created.unwrap()),
    }
    let name = CertificateAuthority::crd_name();
    let served = await_condition(definitions, name, is_crd_established());
    served.await.unwrap();
}

fn kubeconfig(server: &ApiServer, token: &str) -> NamedTempFile {
    let cluster = server.admin().clusters[0].cluster.clone().unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "it", "user": {"token": token}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    let file = NamedTempFile::with_prefix("bulkhead-kubeconfig-").unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    file
}

async fn ended(command: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    let ended = timeout(SOON, command).await;
    ended.expect("the command ends").expect("it does not panic")
}

#[tokio::test]
async fn however_often_a_rotation_is_asked_for_one_begins() {
    let mesh = Mesh::settled().await;
    let before = mesh.stored().await.metadata.generation.unwrap();
    let both = tokio::join!(
        ended(mesh.types(&["--no-wait"])),
        ended(mesh.types(&["--no-wait"]))
    );
    both.0.unwrap();
    both.1.unwrap();
    ended(mesh.types(&["--no-wait"])).await.unwrap();
    let stored = mesh.stored().await;
    assert_eq!(stored.spec.root_generation, Some(2));
    assert_eq!(stored.spec.force_generation, None);
    assert_eq!(stored.metadata.generation, Some(before + 1));
}

#[tokio::test]
async fn a_rotation_is_followed_from_the_wish_to_the_end() {
    let mesh = Mesh::settled().await;
    let command = mesh.types(&[]);
    mesh.is_asked(json!({"rootGeneration": 2})).await;
    // The CA has seen the object, and not acted on it yet.
    mesh.says("Settled", 1, 1, &[(1, "active")]).await;
    let both = [(1, "active"), (2, "published")];
    mesh.says("Publishing", 1, 2, &both).await;
    mesh.says("Switching", 1, 2, &both).await;
    let both = [(1, "published"), (2, "active")];
    mesh.says("Renewing", 2, 2, &both).await;
    // Whoever comes later joins it, and begins no other.
    ended(mesh.types(&["--no-wait"])).await.unwrap();
    mesh.is_asked(json!({"rootGeneration": 2})).await;
    mesh.says("Retiring", 2, 2, &both).await;
    assert!(!command.is_finished(), "the old root is there");
    mesh.says("Settled", 2, 2, &[(1, "retired"), (2, "active")])
        .await;
    ended(command).await.unwrap();
}

#[tokio::test]
async fn what_a_proxy_lacks_stops_the_command_with_its_own_exit_code_and_not_the_rotation() {
    let mesh = Mesh::settled().await;
    let command = mesh.types(&[]);
    mesh.is_asked(json!({"rootGeneration": 2})).await;
    let roots = [(1, "active"), (2, "published")];
    mesh.says("Blocked", 1, 2, &roots).await;
    let error = ended(command).await.unwrap_err();
    let stopped = error.downcast_ref::<Ended>().unwrap();
    assert_eq!(stopped.code, 3);
    assert!(stopped.message.contains("--force"), "{stopped}");
    assert_eq!(mesh.spec().await, json!({"rootGeneration": 2}));
}

#[tokio::test]
async fn patience_ends_the_wait_for_proxies_before_the_ca_gives_up() {
    let mesh = Mesh::settled().await;
    let command = mesh.types(&["--patience", "0s"]);
    mesh.is_asked(json!({"rootGeneration": 2})).await;
    mesh.says("Publishing", 1, 2, &[(1, "active"), (2, "published")])
        .await;
    let error = ended(command).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Ended>().unwrap().code, 3);
}

#[tokio::test]
async fn force_lets_the_rotation_go_on_without_them() {
    let mesh = Mesh::settled().await;
    let command = mesh.types(&["--force", "--yes"]);
    mesh.is_asked(json!({"rootGeneration": 2})).await;
    mesh.says("Blocked", 1, 2, &[(1, "active"), (2, "published")])
        .await;
    mesh.is_asked(json!({"rootGeneration": 2, "forceGeneration": 2}))
        .await;
    mesh.says("Settled", 2, 2, &[(1, "retired"), (2, "active")])
        .await;
    ended(command).await.unwrap();
}

#[tokio::test]
async fn a_rotation_is_undone_until_the_old_root_is_retired() {
    let mesh = Mesh::settled().await;
    let nothing = ended(mesh.types(&["--undo"])).await.unwrap_err();
    assert!(nothing.to_string().contains("nothing to undo"), "{nothing}");
    ended(mesh.types(&["--no-wait"])).await.unwrap();
    mesh.says("Renewing", 2, 2, &[(1, "published"), (2, "active")])
        .await;
    let undone = mesh.types(&["--undo"]);
    mesh.is_asked(json!({"rootGeneration": 1})).await;
    mesh.says("Renewing", 1, 1, &[(1, "active"), (2, "published")])
        .await;
    mesh.says("Settled", 1, 1, &[(1, "active"), (2, "retired")])
        .await;
    ended(undone).await.unwrap();
}

#[tokio::test]
async fn what_the_ca_began_by_itself_is_undone_by_taking_the_wish_back() {
    let mesh = Mesh::settled().await;
    let wish = Patch::Merge(json!({"spec": {"rootGeneration": 1}}));
    mesh.api
        .patch(NAME, &PatchParams::default(), &wish)
        .await
        .unwrap();
    mesh.says("Publishing", 1, 2, &[(1, "active"), (2, "published")])
        .await;
    ended(mesh.types(&["--undo", "--no-wait"])).await.unwrap();
    assert_eq!(mesh.spec().await, json!({}));
}

#[tokio::test]
async fn whoever_follows_is_told_when_somebody_else_undoes_it() {
    let mesh = Mesh::settled().await;
    let command = mesh.types(&[]);
    mesh.is_asked(json!({"rootGeneration": 2})).await;
    mesh.says("Publishing", 1, 2, &[(1, "active"), (2, "published")])
        .await;
    ended(mesh.types(&["--undo", "--no-wait"])).await.unwrap();
    let error = ended(command).await.unwrap_err();
    assert!(
        error.to_string().contains("root 1 to sign instead"),
        "{error}"
    );
}

#[tokio::test]
async fn with_the_ca_down_its_status_is_what_it_said_last_and_the_rest_is_said_to_be_unknown() {
    let mesh = Mesh::settled().await;
    let client = mesh.server.client().await;
    let asked = |namespace: &str| bulkhead::cluster::Cluster {
        client: client.clone(),
        system_namespace: namespace.to_owned(),
    };
    let report = report::gather(&asked(mesh.namespace.name()), Clock::system().now()).await;
    assert!(!report.is_up());
    let status = report.authority.as_ref().unwrap();
    assert_eq!(status.root_generation, Some(1));
    assert!(report.unknown[0].contains("it has no pod"), "{report:?}");

    let elsewhere = report::gather(&asked("default"), Clock::system().now()).await;
    assert!(elsewhere.authority.is_none());
    assert!(
        elsewhere.unknown[0].contains("there is no certificateauthority"),
        "{elsewhere:?}"
    );
}
