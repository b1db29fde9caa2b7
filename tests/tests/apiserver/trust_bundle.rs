//! The CA's roots, in a ConfigMap of every namespace.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead::manifest::Stream;
use bulkhead_ca::app::{App, Dependencies};
use bulkhead_ca::config::Config;
use bulkhead_crds::certificate_authority::CertificateAuthority;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::bundle::document::TrustBundleDocument;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::namespace::{Namespace, may};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as NamespaceObject, Secret};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, CustomResourceExt as _, ResourceExt as _};
use serde_json::{Value, json};

use crate::cluster::until;
use crate::control::define;

pub(crate) const SYSTEM_NAMESPACE: &str = "bulkhead-system";
const ACCOUNT: &str = "bulkhead-ca";
pub(crate) const CONFIG_MAP: &str = "bulkhead-trust-bundle";
pub(crate) const CLUSTER_TRUST_BUNDLE: &str = "ca.bulkhead.io:x509-svid:bulkhead";
pub(crate) const SIGNER: &str = "ca.bulkhead.io/x509-svid";
const CERTIFICATES: &str = "certificates.k8s.io";
/// The ClusterRole of the installation, which owns what the CA makes.
const OWNER: &str = "bulkhead-ca";

/// A CA in a cluster of its own, which may do what its documentation asks for
/// and nothing else.
pub(crate) struct Mesh {
    pub(crate) server: ApiServer,
    pub(crate) client: Client,
    pub(crate) ca: App,
    monitoring: Monitoring,
    owner: ClusterRole,
}

impl Mesh {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let server = ApiServer::start().await.expect("the API server starts");
        let client = server.client().await;
        define(&client, vec![CertificateAuthority::crd()]).await;
        let namespace = Namespace::create_named(&client, SYSTEM_NAMESPACE, &[], &[]).await;
        namespace.create_service_account(ACCOUNT).await;
        let owner = ClusterRole {
            metadata: ObjectMeta {
                name: Some(OWNER.to_owned()),
                ..ObjectMeta::default()
            },
            ..ClusterRole::default()
        };
        let roles: Api<ClusterRole> = Api::all(client.clone());
        let owner = roles
            .create(&PostParams::default(), &owner)
            .await
            .expect("the administrator may do this");
        // The table of the CA's lib.rs.
        let roles = "rbac.authorization.k8s.io";
        let of_the_cluster = vec![
            may(&["create"], "authentication.k8s.io", "tokenreviews", &[]),
            may(&["list", "watch"], "", "pods", &[]),
            may(&["list", "watch"], "", "namespaces", &[]),
            may(
                &["list", "watch", "create", "patch"],
                "",
                "configmaps",
                &[CONFIG_MAP],
            ),
            may(&["get"], roles, "clusterroles", &[OWNER]),
            may(
                &["get", "create", "patch"],
                CERTIFICATES,
                "clustertrustbundles",
                &[CLUSTER_TRUST_BUNDLE],
            ),
            may(&["attest", "sign"], CERTIFICATES, "signers", &[SIGNER]),
            may(
                &["list", "watch"],
                CERTIFICATES,
                "podcertificaterequests",
                &[],
            ),
            may(
                &["patch"],
                CERTIFICATES,
                "podcertificaterequests/status",
                &[],
            ),
            may(&["get"], "", "pods", &[]),
            may(&["get"], "", "serviceaccounts", &[]),
        ];
        let own = vec![
            may(
                &["get", "list", "watch", "update"],
                "",
                "secrets",
                &["bulkhead-ca"],
            ),
            may(&["create"], "", "secrets", &[]),
            may(
                &["get", "list", "watch", "create", "patch"],
                "ca.bulkhead.io",
                "certificateauthorities",
                &["bulkhead"],
            ),
            may(
                &["patch"],
                "ca.bulkhead.io",
                "certificateauthorities/status",
                &["bulkhead"],
            ),
            may(&["create", "patch"], "events.k8s.io", "events", &[]),
            may(
                &["get", "update"],
                "coordination.k8s.io",
                "leases",
                &[ACCOUNT],
            ),
            may(&["create"], "coordination.k8s.io", "leases", &[]),
        ];
        namespace.grant_everywhere(ACCOUNT, of_the_cluster).await;
        namespace.grant_here(ACCOUNT, own).await;
        let monitoring = Monitoring::default();
        let ca = start_ca(&server, &client, &monitoring, settings).await;
        Self {
            server,
            client,
            ca,
            monitoring,
            owner,
        }
    }

    fn config_maps(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Waits until a namespace has the CA's roots.
    pub(crate) async fn has_roots(&self, namespace: &str) -> ConfigMap {
        let roots = self.ca.trust_bundle().to_pem();
        let api = self.config_maps(namespace);
        let found = until(async || {
            let found = api
                .get_opt(CONFIG_MAP)
                .await
                .expect("the administrator may do this")?;
            let data = found.data.as_ref()?;
            let document = TrustBundleDocument::from_json(data.get("bundle.json")?)
                .expect("it is a SPIFFE bundle document");
            let document = Roots::new(document.x509_authorities).expect("there is a root");
            (data.get("ca.crt") == Some(&roots) && document.to_pem() == roots).then_some(found)
        });
        found.await.expect("the roots come by themselves")
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        let metrics = self.monitoring.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().expect("a number"))
    }
}

pub(crate) async fn start_ca(
    server: &ApiServer,
    client: &Client,
    monitoring: &Monitoring,
    settings: &[(&str, &str)],
) -> App {
    try_to_start_ca(server, client, monitoring, settings)
        .await
        .expect("the CA may do all that it needs")
}

pub(crate) async fn try_to_start_ca(
    server: &ApiServer,
    client: &Client,
    monitoring: &Monitoring,
    settings: &[(&str, &str)],
) -> anyhow::Result<App> {
    let namespace = Namespace::existing(client, SYSTEM_NAMESPACE);
    let token = namespace.token(ACCOUNT, None, None).await;
    let usual = [
        ("BULKHEAD_CA_LISTEN", "127.0.0.1:0"),
        ("BULKHEAD_CA_MONITORING_LISTEN", "127.0.0.1:0"),
        ("BULKHEAD_CA_OWNER", OWNER),
    ];
    let all: BTreeMap<_, _> = usual.iter().chain(settings).copied().collect();
    let config = Config::from_env(&|name| all.get(name).map(|value| (*value).to_owned()));
    let given = Dependencies {
        kube: Some(server.client_with_token(token).await),
        monitoring: monitoring.clone(),
        ..Dependencies::default()
    };
    let mut config = config.expect("the settings are good");
    // Steps of a rotation follow each other at once, but for what they wait for.
    config.rotation_pause = Duration::from_secs(1);
    App::start(config, given).await
}

#[tokio::test]
async fn every_namespace_but_kubernetes_own_gets_the_roots_and_a_new_one_too() {
    let mesh = Mesh::start(&[]).await;
    for namespace in ["default", SYSTEM_NAMESPACE] {
        let found = mesh.has_roots(namespace).await;
        let owners = found.metadata.owner_references.unwrap_or_default();
        assert_eq!(owners.len(), 1);
        assert_eq!(Some(&owners[0].uid), mesh.owner.metadata.uid.as_ref());
        assert_eq!(owners[0].kind, "ClusterRole");
    }
    let namespaces: Api<NamespaceObject> = Api::all(mesh.client.clone());
    let object = NamespaceObject {
        metadata: ObjectMeta {
            name: Some("shop".to_owned()),
            ..ObjectMeta::default()
        },
        ..NamespaceObject::default()
    };
    namespaces
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
    mesh.has_roots("shop").await;

    for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
        let found = mesh
            .config_maps(namespace)
            .get_opt(CONFIG_MAP)
            .await
            .unwrap();
        assert!(found.is_none(), "{namespace} is left untouched");
    }
    assert_eq!(mesh.metric("bulkhead_ca_trust_bundle_failures_total"), 0);
}

#[tokio::test]
async fn a_bundle_that_somebody_changed_or_deleted_is_put_right() {
    let mesh = Mesh::start(&[]).await;
    mesh.has_roots("default").await;
    let api = mesh.config_maps("default");
    let forged = Patch::Merge(json!({"data": {"ca.crt": "another", "theirs": "stays"}}));
    api.patch(CONFIG_MAP, &PatchParams::default(), &forged)
        .await
        .unwrap();
    let mended = mesh.has_roots("default").await;
    assert_eq!(mended.data.unwrap()["theirs"], "stays");

    api.delete(CONFIG_MAP, &DeleteParams::default())
        .await
        .unwrap();
    mesh.has_roots("default").await;
}

/// The policy of the installation, as `bulkhead install` prints it.
async fn install_policy(client: &Client) {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/manifests/install.yaml");
    let manifests = std::fs::read_to_string(manifests).unwrap();
    let stream = Stream::parse(&manifests).unwrap();
    let named = |kind: &'static str| {
        let is_it = move |object: &&Value| {
            object["kind"] == kind && object["metadata"]["name"] == CONFIG_MAP
        };
        stream.values().find(is_it).unwrap().clone()
    };
    let policy = serde_json::from_value(named("ValidatingAdmissionPolicy")).unwrap();
    let binding = serde_json::from_value(named("ValidatingAdmissionPolicyBinding")).unwrap();
    let parameters = PostParams::default();
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    policies.create(&parameters, &policy).await.unwrap();
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    bindings.create(&parameters, &binding).await.unwrap();
}

#[tokio::test]
async fn nobody_but_the_ca_says_whom_a_namespace_trusts() {
    let mesh = Mesh::start(&[]).await;
    mesh.has_roots("default").await;
    let namespace = Namespace::create_named(&mesh.client, "shop", &[], &[]).await;
    mesh.has_roots("shop").await;
    namespace.create_service_account("editor").await;
    let all = may(
        &["get", "create", "update", "patch", "delete"],
        "",
        "configmaps",
        &[],
    );
    namespace.grant_here("editor", vec![all]).await;
    install_policy(&mesh.client).await;
    let token = namespace.token("editor", None, None).await;
    let editor = mesh.server.client_with_token(token).await;
    let theirs: Api<ConfigMap> = Api::namespaced(editor, "shop");
    let parameters = PatchParams::default();
    let forged = Patch::Merge(json!({"data": {"ca.crt": "another", "bundle.json": "{}"}}));
    let refused = until(async || {
        let patched = theirs.patch(CONFIG_MAP, &parameters, &forged).await;
        patched.err().map(|error| error.to_string())
    });
    let refused = refused.await.expect("the policy is seen after a moment");
    assert!(refused.contains("only Bulkhead's CA"), "{refused}");
    mesh.has_roots("shop").await;

    // What is about nobody's trust goes on.
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "shop"}}}));
    theirs.patch(CONFIG_MAP, &parameters, &label).await.unwrap();
    let other =
        serde_json::from_value(json!({"metadata": {"name": "settings"}, "data": {"a": "b"}}));
    let create = PostParams::default();
    theirs.create(&create, &other.unwrap()).await.unwrap();
    let deleted = theirs.delete(CONFIG_MAP, &DeleteParams::default()).await;
    deleted.unwrap();
    mesh.has_roots("shop").await;
    let made = json!({"metadata": {"name": CONFIG_MAP}, "data": {"ca.crt": "another"}});
    let refused = until(async || {
        let _ = theirs.delete(CONFIG_MAP, &DeleteParams::default()).await;
        let made = serde_json::from_value(made.clone()).unwrap();
        let error = theirs.create(&create, &made).await.err()?.to_string();
        error.contains("only Bulkhead's CA").then_some(())
    });
    refused.await.expect("no more than it can be changed");

    let another = Namespace::create_named(&mesh.client, "orders", &[], &[]).await;
    mesh.has_roots(another.name()).await;
}

#[tokio::test]
async fn a_bundle_that_is_right_is_not_written_again_by_a_restart_or_a_second_replica() {
    let mesh = Mesh::start(&[]).await;
    mesh.has_roots(SYSTEM_NAMESPACE).await;
    let before = mesh.has_roots("default").await;
    let monitoring = Monitoring::default();
    let second = start_ca(&mesh.server, &mesh.client, &monitoring, &[]).await;
    let looked = until(async || {
        let metrics = monitoring.metrics();
        let all = Api::<ConfigMap>::all(mesh.client.clone());
        let ours = ListParams::default().fields(&format!("metadata.name={CONFIG_MAP}"));
        let count = all.list(&ours).await.unwrap().items.len();
        let line = format!("bulkhead_ca_trust_bundle_namespaces {count}");
        metrics
            .lines()
            .any(|found| found == line)
            .then_some(metrics)
    });
    let metrics = looked
        .await
        .expect("the second replica looks at every namespace");
    assert!(
        metrics.contains("bulkhead_ca_trust_bundle_writes_total 0"),
        "{metrics}"
    );
    let after = mesh.has_roots("default").await;
    assert_eq!(before.resource_version(), after.resource_version());
    drop(second);
}

#[tokio::test]
async fn another_root_reaches_every_namespace() {
    let mesh = Mesh::start(&[]).await;
    mesh.has_roots("default").await;
    let before = mesh.ca.trust_bundle().to_pem();
    let authorities: Api<CertificateAuthority> =
        Api::namespaced(mesh.client.clone(), SYSTEM_NAMESPACE);
    let order = Patch::Merge(json!({"spec": {"rootGeneration": 2}}));
    let ordered = until(async || {
        let parameters = PatchParams::default();
        authorities
            .patch("bulkhead", &parameters, &order)
            .await
            .ok()
    });
    ordered.await.expect("the CA makes its object");
    let published = until(async || (mesh.ca.trust_bundle().to_pem() != before).then_some(()));
    published.await.expect("the CA makes another root");
    for namespace in ["default", SYSTEM_NAMESPACE] {
        mesh.has_roots(namespace).await;
    }
}

#[tokio::test]
async fn what_the_ca_made_goes_with_the_installation_and_no_new_root_is_made() {
    let mesh = Mesh::start(&[]).await;
    mesh.has_roots("default").await;
    let roles: Api<ClusterRole> = Api::all(mesh.client.clone());
    roles.delete(OWNER, &DeleteParams::default()).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(mesh.client.clone(), SYSTEM_NAMESPACE);
    let bundles: Api<ConfigMap> = Api::all(mesh.client.clone());
    let ours = ListParams::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    // The CA runs on, and must not put back what is collected.
    let gone = until(async || {
        let bundles = bundles.list(&ours).await.unwrap();
        let secret = secrets.get_opt("bulkhead-ca").await.unwrap();
        (bundles.items.is_empty() && secret.is_none()).then_some(())
    });
    gone.await
        .expect("Kubernetes collects what the ClusterRole owned");

    let restarted = try_to_start_ca(&mesh.server, &mesh.client, &Monitoring::default(), &[]).await;
    let refused = restarted.err().expect("there is no owner for a new root");
    assert!(
        format!("{refused:#}").contains("uninstalled"),
        "{refused:#}"
    );
    assert!(secrets.get_opt("bulkhead-ca").await.unwrap().is_none());
}

#[tokio::test]
async fn keys_that_are_to_be_kept_have_no_owner_that_takes_them_along() {
    let mesh = Mesh::start(&[]).await;
    let secrets: Api<Secret> = Api::namespaced(mesh.client.clone(), SYSTEM_NAMESPACE);
    let owners = async || {
        let secret = secrets.get("bulkhead-ca").await.unwrap();
        secret.metadata.owner_references.unwrap_or_default().len()
    };
    assert_eq!(owners().await, 1);
    let keep = [("BULKHEAD_CA_KEEP_KEYS", "true")];
    let kept = start_ca(&mesh.server, &mesh.client, &Monitoring::default(), &keep).await;
    assert_eq!(owners().await, 0);
    assert_eq!(
        kept.trust_bundle().to_pem(),
        mesh.ca.trust_bundle().to_pem(),
        "and the keys are the same"
    );
}
