//! Upstream issuers that are the real thing: Vault's PKI engine, and
//! cert-manager's controllers, both with Kubernetes' own tokens and objects.

mod pairs;

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use bulkhead_ca::authenticate::Authenticate as _;
use bulkhead_ca::authenticate::jwks::JwksVerifier;
use bulkhead_ca::authenticate::local_issuer::{LocalIssuer, TokenRequest};
use bulkhead_ca::config::{Authentication, Config, StoreLocation};
use bulkhead_ca::node_proxy::Subject;
use bulkhead_ca::upstream::cert_manager::CertManager;
use bulkhead_ca::upstream::vault::{Vault, VaultAuthentication, VaultSettings};
use bulkhead_ca::upstream::{Reason, SignedChain, Upstream};
use bulkhead_ca::vet::{VettedCsr, vet};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::sidecar::default_trust_domain;
use bulkhead_pki::authority::Authority;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::certificate::Certificate;
use bulkhead_pki::csr::{self, ParsedCsr};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving::ServerName;
use bulkhead_pki::svid::SvidChain;
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::cert_manager;
use bulkhead_tests::namespace::{Namespace, may};
use bulkhead_tests::vault::{self, ROOT_TOKEN};
use kube::api::{
    ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::until;

const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

fn cart() -> SpiffeId {
    SpiffeId::workload(&default_trust_domain(), "shop", "cart").unwrap()
}

/// The request of `shop/cart`, and its key.
async fn vetted(names_itself: bool) -> (PrivateKey, VettedCsr) {
    let directory = tempfile::tempdir().unwrap();
    let issuer = LocalIssuer::open(directory.path(), "https://issuer.test").unwrap();
    let authentication = Authentication::kubernetes();
    let config = Config::new(StoreLocation::Directory("unused".into()), authentication);
    let (now, audience) = (Clock::system().now(), config.tokens.audience.clone());
    let verifier = JwksVerifier::open(
        issuer.jwks_path().to_owned(),
        "https://issuer.test".to_owned(),
        default_trust_domain(),
        bulkhead_ca::config::TokenRules {
            allow_without_pod: true,
            ..config.tokens
        },
        Clock::system(),
    );
    let token = TokenRequest {
        namespace: "shop".into(),
        service_account: "cart".into(),
        pod: None,
        audience,
        lifetime: HOUR,
    };
    let token = issuer.mint(&token, now).unwrap();
    let caller = verifier.await.unwrap().authenticate(&token).await.unwrap();
    let key = PrivateKey::generate().unwrap();
    let wish = cart();
    let csr = csr::create(&key, names_itself.then_some(&wish)).unwrap();
    let csr = ParsedCsr::from_pem(&csr).unwrap();
    (key, vet(&Subject::own(&caller), &csr).unwrap())
}

/// An intermediate of the upstream issues what peers accept.
async fn signs_intermediates(upstream: &dyn Upstream) -> SignedChain {
    let (key, trust_domain) = (PrivateKey::generate().unwrap(), default_trust_domain());
    let signed = upstream.sign_intermediate(&key, &trust_domain, DAY).await;
    let signed = signed.unwrap();
    let SignedChain { chain, roots } = signed.clone();
    let authority = Authority::from_parts(&trust_domain, chain, key, &roots).unwrap();
    assert_eq!(Some(authority.root()), roots.certificates().first());
    let now = Clock::system().now();
    let key = PrivateKey::generate().unwrap();
    let svid = authority
        .issue_svid(&cart(), key.public_key(), HOUR, now)
        .unwrap();
    let bundle = TrustBundle::new(trust_domain, roots);
    WorkloadIdentity::new(&cart(), &key, svid, bundle, now).unwrap();
    signed
}

/// Leaves are what was asked for, as peers and OpenSSL see it.
async fn signs_leaves(upstream: &dyn Upstream, names_itself: bool) {
    let (key, csr) = vetted(names_itself).await;
    let signed = upstream.sign_leaf(&csr, HOUR).await.unwrap();
    let now = Clock::system().now();
    assert!(signed.certificate.not_after() <= now + HOUR);
    openssl_verifies(&signed.certificate, &signed.root);
    let bundle = TrustBundle::new(default_trust_domain(), Roots::new([signed.root]).unwrap());
    WorkloadIdentity::new(&cart(), &key, signed.certificate, bundle, now).unwrap();
}

fn openssl_verifies(svid: &SvidChain, root: &Certificate) {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text);
    let above = svid.intermediates().iter().chain([root]);
    write("above.pem", above.map(Certificate::to_pem).collect()).unwrap();
    write("root.pem", root.to_pem()).unwrap();
    write("leaf.pem", svid.leaf().to_pem()).unwrap();
    for purpose in ["sslserver", "sslclient"] {
        let output = std::process::Command::new("openssl")
            .args([
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                "root.pem",
            ])
            .args(["-untrusted", "above.pem", "leaf.pem"])
            .current_dir(directory.path())
            .output()
            .expect("openssl is installed: Debian's package of that name has it");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{purpose}: {said}");
    }
}

/// This server's own certificate, with its names and no identity.
async fn signs_serving(upstream: &dyn Upstream) {
    let name = ServerName::parse("bulkhead-ca.bulkhead-system.svc").unwrap();
    let signed = upstream.sign_serving(&[name], HOUR).await.unwrap();
    let now = Clock::system().now();
    assert!(signed.certificate.not_after() <= now + HOUR);
}

/// What is said of an intermediate that was not signed.
async fn refusal(upstream: &dyn Upstream, reason: Reason) -> String {
    let (key, trust_domain) = (PrivateKey::generate().unwrap(), default_trust_domain());
    let asked = upstream.sign_intermediate(&key, &trust_domain, DAY).await;
    let error = asked.unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    error.to_string()
}

/// A Vault with a root in one PKI engine, and an issuing CA below it in another.
async fn a_vault() -> vault::Vault {
    let vault = vault::Vault::start().await.unwrap();
    for mount in ["root", "mesh"] {
        let tune = json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}});
        vault.write(&format!("sys/mounts/{mount}"), &tune).await;
    }
    let root = json!({"common_name": "Acme root", "key_type": "ec", "ttl": "8760h"});
    let root = vault.write("root/root/generate/internal", &root).await;
    let request = json!({"common_name": "Acme mesh", "key_type": "rsa", "key_bits": 3072});
    let request = vault
        .write("mesh/intermediate/generate/internal", &request)
        .await;
    let order = json!({"csr": request["csr"], "common_name": "Acme mesh", "ttl": "4380h"});
    let signed = vault.write("root/root/sign-intermediate", &order).await;
    let chain = format!(
        "{}\n{}",
        signed["certificate"].as_str().unwrap(),
        root["certificate"].as_str().unwrap()
    );
    let chain = json!({"certificate": chain});
    vault.write("mesh/intermediate/set-signed", &chain).await;
    let role = json!({
        "allowed_uri_sans": "spiffe://cluster.local/ns/*",
        "allowed_domains": "bulkhead-ca.bulkhead-system.svc",
        "allow_bare_domains": true,
        "require_cn": false,
        "use_csr_sans": false,
        "use_csr_common_name": false,
        "key_type": "any",
        "key_usage": "DigitalSignature",
        "max_ttl": "72h",
    });
    vault.write("mesh/roles/workloads", &role).await;
    let policy = "path \"mesh/root/sign-intermediate\" { capabilities = [\"update\"] }\n\
                  path \"mesh/sign/workloads\" { capabilities = [\"update\"] }";
    let policy = json!({"policy": policy});
    vault.write("sys/policies/acl/bulkhead-ca", &policy).await;
    vault
}

fn settings(vault: &vault::Vault, token_file: PathBuf) -> VaultSettings {
    VaultSettings {
        url: vault.url().parse().unwrap(),
        ca_file: Some(vault.ca_file()),
        namespace: None,
        mount: "mesh".to_owned(),
        role: Some("workloads".to_owned()),
        authentication: VaultAuthentication::TokenFile(token_file),
    }
}

fn upstream(settings: VaultSettings) -> Vault {
    Vault::new(settings, None, default_trust_domain(), Clock::system())
}

/// A token with some policies.
async fn token(vault: &vault::Vault, policies: &[&str]) -> String {
    let order = json!({"policies": policies, "ttl": "1h"});
    let answer = vault.write("auth/token/create", &order).await;
    answer["auth"]["client_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn vault_signs_intermediates_and_leaves_for_a_token_of_least_privilege() {
    let vault = a_vault().await;
    let token = token(&vault, &["bulkhead-ca"]).await;
    let upstream = upstream(settings(&vault, vault.file("token", &format!("{token}\n"))));
    let signed = signs_intermediates(&upstream).await;
    assert_eq!(signed.chain.len(), 2, "ours, and the issuing CA");
    for names_itself in [true, false] {
        signs_leaves(&upstream, names_itself).await;
    }
    signs_serving(&upstream).await;
}

#[tokio::test]
async fn what_vault_refuses_is_said_with_what_to_do() {
    let vault = a_vault().await;
    let file = vault.file("token", &token(&vault, &["default"]).await);
    let good = settings(&vault, file.clone());
    let said = refusal(&upstream(good.clone()), Reason::Refused).await;
    assert!(
        said.contains("path \"mesh/root/sign-intermediate\""),
        "{said}"
    );
    assert!(said.contains("permission denied"), "{said}");

    // The file is read each time, so a new token needs no restart.
    let ours = upstream(good.clone());
    std::fs::write(&file, "").unwrap();
    let said = refusal(&ours, Reason::Unusable).await;
    assert!(said.contains("the file is empty"), "{said}");
    std::fs::write(&file, ROOT_TOKEN).unwrap();
    signs_intermediates(&ours).await;

    let nowhere = VaultSettings {
        mount: "other".to_owned(),
        ..good.clone()
    };
    let said = refusal(&upstream(nowhere), Reason::Unusable).await;
    assert!(said.contains("BULKHEAD_CA_VAULT_MOUNT"), "{said}");

    let blind = VaultSettings {
        ca_file: None,
        ..good.clone()
    };
    let said = refusal(&upstream(blind), Reason::Unusable).await;
    assert!(said.contains("BULKHEAD_CA_VAULT_CA_FILE"), "{said}");

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", free.local_addr().unwrap());
    drop(free);
    let away = VaultSettings {
        url: url.parse().unwrap(),
        ..good
    };
    let said = refusal(&upstream(away), Reason::Unreachable).await;
    assert!(said.contains("refused"), "{said}");
}

#[tokio::test]
async fn a_workloads_identity_is_never_left_to_vaults_role() {
    let vault = a_vault().await;
    let file = vault.file("token", ROOT_TOKEN);
    let role = json!({"allowed_uri_sans": "spiffe://other.example/*", "require_cn": false,
                      "use_csr_sans": false, "key_type": "any"});
    vault.write("mesh/roles/other", &role).await;
    // Takes names from the request, which has none.
    let role = json!({"allowed_uri_sans": "*", "require_cn": false, "key_type": "any"});
    vault.write("mesh/roles/nameless", &role).await;
    for (role, reason) in [("other", Reason::Refused), ("nameless", Reason::Unusable)] {
        let settings = VaultSettings {
            role: Some(role.to_owned()),
            ..settings(&vault, file.clone())
        };
        let (_, csr) = vetted(false).await;
        let error = upstream(settings).sign_leaf(&csr, HOUR).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{role}: {error}");
    }
}

#[tokio::test]
async fn vault_is_logged_in_to_with_a_token_that_kubernetes_reviewed() {
    let vault = a_vault().await;
    let server = ApiServer::shared().await;
    let namespace = Namespace::create(&server.client().await, &[], &[]).await;
    namespace.create_service_account("bulkhead-ca").await;
    // Vault asks the API server as a ServiceAccount of its own.
    namespace.create_service_account("vault").await;
    let reviews = may(&["create"], "authentication.k8s.io", "tokenreviews", &[]);
    namespace.grant_everywhere("vault", vec![reviews]).await;
    let method = json!({"type": "kubernetes"});
    vault.write("sys/auth/kubernetes", &method).await;
    let kubeconfig = serde_json::to_value(server.admin()).unwrap();
    let ca = kubeconfig.pointer("/clusters/0/cluster/certificate-authority-data");
    let ca = base64_text(ca.and_then(Value::as_str).unwrap());
    let config = json!({
        "kubernetes_host": format!("https://{}", server.address()),
        "kubernetes_ca_cert": ca,
        "token_reviewer_jwt": namespace.token("vault", None, None).await,
    });
    vault.write("auth/kubernetes/config", &config).await;
    let role = json!({
        "bound_service_account_names": "bulkhead-ca",
        "bound_service_account_namespaces": namespace.name(),
        "audience": "vault",
        "token_policies": "bulkhead-ca",
        "token_ttl": "10m",
    });
    vault.write("auth/kubernetes/role/bulkhead-ca", &role).await;

    let login = |account: &'static str, audience: &'static str| {
        let namespace = &namespace;
        let vault = &vault;
        async move {
            let token = namespace.token(account, Some(audience), None).await;
            let token_file = vault.file(&format!("{account}-{audience}"), &token);
            upstream(VaultSettings {
                authentication: VaultAuthentication::Kubernetes {
                    path: "kubernetes".to_owned(),
                    role: "bulkhead-ca".to_owned(),
                    token_file: token_file.clone(),
                },
                ..settings(vault, token_file)
            })
        }
    };
    let ours = login("bulkhead-ca", "vault").await;
    signs_intermediates(&ours).await;
    signs_leaves(&ours, true).await;
    // Whatever becomes of the token that Vault gave, another is had.
    let revoked = json!({});
    vault
        .write("sys/leases/revoke-force/auth/kubernetes/login", &revoked)
        .await;
    signs_intermediates(&ours).await;

    for (account, audience) in [("vault", "vault"), ("bulkhead-ca", "elsewhere")] {
        let said = refusal(&login(account, audience).await, Reason::Refused).await;
        assert!(said.contains("auth/kubernetes/login"), "{said}");
    }
}

fn base64_text(text: &str) -> String {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

/// An object of one of cert-manager's kinds.
fn kind(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", kind))
}

/// A namespace with an issuer that has a root of its own.
async fn an_issuer(server: &ApiServer) -> (Namespace, Api<DynamicObject>) {
    let client = server.client().await;
    let namespace = Namespace::create(&client, &[], &[]).await;
    let root =
        Authority::new_root(&default_trust_domain(), 30 * DAY, Clock::system().now()).unwrap();
    let secrets = namespace.api::<k8s_openapi::api::core::v1::Secret>();
    let secret = json!({
        "metadata": {"name": "root"},
        "type": "kubernetes.io/tls",
        "stringData": {
            "tls.crt": root.certificate().to_pem(),
            "tls.key": root.key().to_pem().unwrap().as_str(),
        },
    });
    let secret = serde_json::from_value(secret).unwrap();
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let issuers: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), namespace.name(), &kind("Issuer"));
    let issuer = DynamicObject::new("mesh", &kind("Issuer"))
        .data(json!({"spec": {"ca": {"secretName": "root"}}}));
    issuers
        .create(&PostParams::default(), &issuer)
        .await
        .unwrap();
    let requests = Api::namespaced_with(client, namespace.name(), &kind("CertificateRequest"));
    (namespace, requests)
}

/// The upstream as the CA's own ServiceAccount, which may do what the chart
/// grants and nothing else.
async fn as_the_ca(server: &ApiServer, namespace: &Namespace, issuer: &str) -> CertManager {
    namespace.create_service_account("bulkhead-ca").await;
    let requests = may(
        &["create", "list", "watch", "delete"],
        "cert-manager.io",
        "certificaterequests",
        &[],
    );
    namespace.grant_here("bulkhead-ca", vec![requests]).await;
    as_the_ca_at(server, namespace, issuer, Clock::system()).await
}

async fn as_the_ca_at(
    server: &ApiServer,
    namespace: &Namespace,
    issuer: &str,
    clock: Clock,
) -> CertManager {
    let token = namespace.token("bulkhead-ca", None, None).await;
    CertManager::new(
        server.client_with_token(token).await,
        namespace.name(),
        issuer.parse().unwrap(),
        None,
        default_trust_domain(),
        clock,
    )
}

#[tokio::test]
async fn cert_manager_signs_intermediates_and_leaves_and_nothing_is_left_behind() {
    let server = ApiServer::start().await.unwrap();
    let _controllers = cert_manager::CertManager::start(&server, true)
        .await
        .unwrap();
    let (namespace, requests) = an_issuer(&server).await;
    let upstream = as_the_ca(&server, &namespace, "Issuer/mesh").await;
    let signed = signs_intermediates(&upstream).await;
    assert_eq!(signed.chain.len(), 1, "ours, below the root");
    signs_leaves(&upstream, true).await;
    let (_, nameless) = vetted(false).await;
    let error = upstream.sign_leaf(&nameless, HOUR).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Unusable, "{error}");
    signs_serving(&upstream).await;
    nothing_is_left(&requests).await;

    swept_up_when_old(&server, &namespace, &requests).await;
}

#[tokio::test]
async fn a_request_that_was_denied_is_shown_with_the_reason() {
    let server = ApiServer::start().await.unwrap();
    let _controllers = cert_manager::CertManager::start(&server, false)
        .await
        .unwrap();
    let (namespace, requests) = an_issuer(&server).await;
    let upstream = as_the_ca(&server, &namespace, "Issuer/mesh").await;
    let deny = async {
        let name = until(async || {
            let found = requests.list(&ListParams::default()).await.unwrap();
            found.items.first().map(ResourceExt::name_any)
        })
        .await
        .expect("a request is there");
        let status = json!({"status": {"conditions": [{
            "type": "Denied", "status": "True", "reason": "policy.cert-manager.io",
            "message": "no CA for you", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}});
        let merge = Patch::Merge(&status);
        requests
            .patch_status(&name, &PatchParams::default(), &merge)
            .await
            .unwrap();
    };
    let (said, ()) = tokio::join!(refusal(&upstream, Reason::Refused), deny);
    assert!(said.contains("no CA for you"), "{said}");
    nothing_is_left(&requests).await;
}

/// What a CA left behind that ended meanwhile is deleted by the next, some
/// minutes later; what somebody else made stays.
async fn swept_up_when_old(
    server: &ApiServer,
    namespace: &Namespace,
    requests: &Api<DynamicObject>,
) {
    let csr = csr::create(&PrivateKey::generate().unwrap(), Some(&cart())).unwrap();
    for (name, owner) in [("ours", "bulkhead-ca"), ("theirs", "somebody")] {
        let mut request = DynamicObject::new(name, &kind("CertificateRequest")).data(json!({
            "spec": {
                "request": base64::engine::general_purpose::STANDARD.encode(&csr),
                "issuerRef": {"group": "cert-manager.io", "kind": "Issuer", "name": "none"},
            },
        }));
        let label = ("app.kubernetes.io/managed-by".to_owned(), owner.to_owned());
        request.metadata.labels = Some([label].into());
        requests
            .create(&PostParams::default(), &request)
            .await
            .unwrap();
    }
    let left = async || {
        let listed = requests.list(&ListParams::default()).await.unwrap();
        let mut names: Vec<_> = listed.items.iter().map(ResourceExt::name_any).collect();
        names.sort();
        names
    };
    let upstream = |clock| as_the_ca_at(server, namespace, "Issuer/mesh", clock);
    upstream(Clock::system()).await.tidy().await;
    assert_eq!(left().await, ["ours", "theirs"], "somebody may wait for it");
    let later = Clock::stopped_at(Clock::system().now() + HOUR);
    upstream(later).await.tidy().await;
    assert_eq!(left().await, ["theirs"]);
}

/// Requests are deleted beside whatever comes next.
async fn nothing_is_left(requests: &Api<DynamicObject>) {
    let gone = until(async || {
        let left = requests.list(&ListParams::default()).await.unwrap();
        left.items.is_empty().then_some(())
    });
    gone.await.expect("requests that are done with are deleted");
}
