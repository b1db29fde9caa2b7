//! The CA with real tokens: who gets a certificate, and who does not.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bulkhead_ca::app::{App, Dependencies};
use bulkhead_ca::config::Config;
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::sidecar::TOKEN_AUDIENCE;
use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::pem;
use bulkhead_pki::serving::client_config;
use bulkhead_pki::svid::SvidChain;
use bulkhead_pki::verifier::{PeerVerifier, Role};
use bulkhead_proto::ca::{CertificateAnswer, CertificateRequest, IstioCertificateServiceClient};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::monitoring::Monitoring;
use bulkhead_tests::api_server::ApiServer;
use bulkhead_tests::config::python_with_grpc;
use bulkhead_tests::namespace::{Namespace, a_pod, may};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Endpoint, Uri};

use crate::cluster::until;

const SERVER_NAME: &str = "bulkhead-ca.bulkhead-system.svc";
const CA_ACCOUNT: &str = "bulkhead-ca";

/// A CA with its root and intermediate in a Secret, and a workload beside it.
pub(crate) struct Mesh {
    server: &'static ApiServer,
    pub(crate) namespace: Namespace,
    pub(crate) ca: App,
    monitoring: Monitoring,
    /// Of the ServiceAccount `cart`.
    pod: Pod,
}

impl Mesh {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same, with these ServiceAccounts as those of node proxies.
    pub(crate) async fn start_with(node_proxies: &[&str]) -> Self {
        let server = ApiServer::shared().await;
        let namespace = Namespace::create(&server.client().await, &[], &[]).await;
        let reviews = may(&["create"], "authentication.k8s.io", "tokenreviews", &[]);
        let secrets = may(&["get", "create", "update"], "", "secrets", &[]);
        namespace.create_service_account(CA_ACCOUNT).await;
        let pods = may(&["list", "watch"], "", "pods", &[]);
        let everywhere = vec![reviews, pods];
        namespace.grant_everywhere(CA_ACCOUNT, everywhere).await;
        namespace.grant_here(CA_ACCOUNT, vec![secrets]).await;

        namespace.create_service_account("cart").await;
        let pod = a_pod("cart-0").spec(json!({"serviceAccountName": "cart"}));
        let pod = namespace.create_pod(&pod.build()).await;
        let monitoring = Monitoring::default();
        Self {
            ca: start_ca(server, &namespace, &monitoring, node_proxies).await,
            server,
            namespace,
            monitoring,
            pod: pod.expect("the pod is a good one"),
        }
    }

    /// The token that kubelet would give the pod.
    async fn token(&self) -> String {
        let audience = Some(TOKEN_AUDIENCE);
        self.namespace
            .token("cart", audience, Some(&self.pod))
            .await
    }

    pub(crate) fn id_of(&self, account: &str) -> SpiffeId {
        let bundle = self.ca.trust_bundle();
        SpiffeId::workload(bundle.trust_domain(), self.namespace.name(), account)
            .expect("the names are those of Kubernetes")
    }

    async fn sign(&self, token: &str, csr: &str) -> Result<CertificateAnswer, tonic::Status> {
        self.sign_for(None, token, csr).await
    }

    /// The same for somebody else, as node proxies ask.
    pub(crate) async fn sign_for(
        &self,
        on_behalf_of: Option<&SpiffeId>,
        token: &str,
        csr: &str,
    ) -> Result<CertificateAnswer, tonic::Status> {
        let roots = self.ca.trust_bundle();
        let config = client_config(roots.roots(), ["h2"]).expect("the roots are good");
        let address = self.ca.address();
        let connector = tower::service_fn(move |_: Uri| {
            let connector = TlsConnector::from(Arc::clone(&config));
            async move {
                let name = ServerName::try_from(SERVER_NAME).expect("a DNS name");
                let stream = TcpStream::connect(address).await?;
                std::io::Result::Ok(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let channel = Endpoint::from_static("http://ca")
            .connect_with_connector(connector)
            .await
            .expect("the CA serves, with a certificate of its own roots");
        let wish = CertificateRequest {
            csr: csr.to_owned(),
            lifetime: Some(Duration::from_secs(3600)),
            on_behalf_of: on_behalf_of.map(ToString::to_string),
        };
        let mut request = tonic::Request::new(wish.into());
        let token = format!("Bearer {token}").parse().expect("tokens are ASCII");
        request.metadata_mut().insert("authorization", token);
        let answer = IstioCertificateServiceClient::new(channel)
            .create_certificate(request)
            .await?;
        Ok(answer.into_inner().try_into().expect("the answer is whole"))
    }

    /// Expects a refusal that tells the caller nothing and the log everything.
    async fn refuses(&self, what: &str, token: &str, csr: &str, code: Code, reason: &str) {
        let count = |metrics: String| {
            let line = format!("bulkhead_ca_requests_refused_total{{reason=\"{reason}\"}} ");
            let found = metrics.lines().find_map(|text| text.strip_prefix(&line));
            found.map_or(0, |count| count.parse::<u64>().expect("a number"))
        };
        let before = count(self.monitoring.metrics());
        let status = self.sign(token, csr).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {}", status.message());
        assert!(
            !status.message().contains(reason),
            "{what}: {}",
            status.message()
        );
        let after = count(self.monitoring.metrics());
        assert_eq!(after, before + 1, "{what}: {}", self.monitoring.metrics());
    }

    /// Verifies an answer as a peer would, and returns whose it is.
    pub(crate) fn verify(&self, chain: &SvidChain) -> SpiffeId {
        let chain = chain.to_der();
        let (leaf, intermediates) = chain.split_first().expect("a chain has a leaf");
        let verifier = PeerVerifier::any_member(Arc::new(self.ca.trust_bundle()));
        verifier
            .verify(leaf, intermediates, Role::Client, Clock::system().now())
            .expect("peers accept what the CA issues")
            .id()
            .clone()
    }
}

async fn start_ca(
    server: &ApiServer,
    namespace: &Namespace,
    monitoring: &Monitoring,
    node_proxies: &[&str],
) -> App {
    let token = namespace.token(CA_ACCOUNT, None, None).await;
    let store = format!("secret:{}/bulkhead-ca", namespace.name());
    let node_proxies = node_proxies.iter();
    let node_proxies: Vec<_> = node_proxies
        .map(|account| format!("{}/{account}", namespace.name()))
        .collect();
    let node_proxies = node_proxies.join(",");
    let mut settings: BTreeMap<_, _> = [
        ("BULKHEAD_CA_STORE", store.as_str()),
        ("BULKHEAD_CA_AUTHENTICATION", "kubernetes"),
        ("BULKHEAD_CA_LISTEN", "127.0.0.1:0"),
        ("BULKHEAD_CA_MONITORING_LISTEN", "127.0.0.1:0"),
        ("BULKHEAD_CA_SERVER_NAMES", SERVER_NAME),
        // Longer than a test waits: what ends an answer is not its age.
        ("BULKHEAD_CA_REVIEW_CACHE", "5m"),
        // All tests of this page share a cluster; see `trust_bundle`.
        ("BULKHEAD_CA_TRUST_BUNDLE_CONFIG_MAP", "none"),
    ]
    .into();
    if !node_proxies.is_empty() {
        settings.insert("BULKHEAD_CA_NODE_PROXIES", &node_proxies);
    }
    let config = Config::from_env(&|name| settings.get(name).map(|value| (*value).to_owned()));
    let given = Dependencies {
        kube: Some(server.client_with_token(token).await),
        monitoring: monitoring.clone(),
        ..Dependencies::default()
    };
    App::start(config.expect("the settings are good"), given)
        .await
        .expect("the CA may do all that it needs")
}

/// A request for `id`, or for whatever the CA thinks right.
pub(crate) fn request(id: Option<&SpiffeId>) -> String {
    let key = PrivateKey::generate().expect("there is randomness");
    csr::create(&key, id).expect("a SPIFFE ID fits into a request")
}

pub(crate) fn chain_of(answer: &CertificateAnswer) -> SvidChain {
    SvidChain::from_pem(&answer.chain.concat()).expect("the answer is a chain")
}

#[tokio::test]
async fn a_real_token_gets_the_certificate_of_its_service_account() {
    let mesh = Mesh::start().await;
    let token = mesh.token().await;
    let id = mesh.id_of("cart");
    for asked in [Some(&id), None] {
        let key = PrivateKey::generate().unwrap();
        let csr = csr::create(&key, asked).unwrap();
        let answer = mesh.sign(&token, &csr).await.unwrap();
        let chain = chain_of(&answer);
        assert_eq!(mesh.verify(&chain), id);
        assert!(chain.is_for(key.public_key()));
        assert_eq!(answer.roots, mesh.ca.trust_bundle().to_pem());
    }
}

#[tokio::test]
async fn a_token_that_is_not_for_the_ca_or_not_of_a_pod_gets_nothing() {
    let mesh = Mesh::start().await;
    let csr = request(None);
    let good = mesh.token().await;
    let namespace = &mesh.namespace;
    let other_audience = namespace
        .token("cart", Some("vault"), Some(&mesh.pod))
        .await;
    let of_the_api_server = namespace.token("cart", None, Some(&mesh.pod)).await;
    let without_pod = namespace.token("cart", Some(TOKEN_AUDIENCE), None).await;
    let mut forged = good.clone();
    forged.replace_range(forged.len() - 4.., "AAAA");
    let predecessor = mesh.server.resign(&good, |claims| {
        claims["kubernetes.io"]["serviceaccount"]["uid"] = json!("of-before");
    });
    for (what, token, reason) in [
        ("another audience", &other_audience, "token_rejected"),
        (
            "the API server's own audience",
            &of_the_api_server,
            "token_rejected",
        ),
        ("no pod", &without_pod, "token_without_pod"),
        ("a forged signature", &forged, "token_rejected"),
        (
            "a ServiceAccount that was deleted and made anew",
            &predecessor,
            "token_rejected",
        ),
        ("no token at all", &"x".to_owned(), "token_rejected"),
    ] {
        mesh.refuses(what, token, &csr, Code::Unauthenticated, reason)
            .await;
    }
}

#[tokio::test]
async fn an_expired_token_gets_nothing() {
    let mesh = Mesh::start().await;
    // The API server makes none that lives for less than ten minutes, so this
    // is a token that it could have made an hour ago.
    let now = Clock::system()
        .now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let good = mesh.token().await;
    let expired = mesh.server.resign(&good, |claims| {
        claims["iat"] = json!(now - 3600);
        claims["nbf"] = json!(now - 3600);
        claims["exp"] = json!(now - 3000);
    });
    let fresh = mesh
        .server
        .resign(&good, |claims| claims["iat"] = json!(now - 1));
    assert!(
        mesh.sign(&fresh, &request(None)).await.is_ok(),
        "signing again does no harm"
    );
    let (csr, code) = (request(None), Code::Unauthenticated);
    mesh.refuses("expired", &expired, &csr, code, "token_rejected")
        .await;
}

#[tokio::test]
async fn the_token_of_a_deleted_pod_gets_nothing() {
    let mesh = Mesh::start().await;
    let before = mesh.token().await;
    assert!(
        mesh.sign(&before, &request(None)).await.is_ok(),
        "the pod is there"
    );
    // Not used before: the API server remembers for ten seconds that a token
    // was good.
    let after = mesh.server.resign(&mesh.token().await, |claims| {
        claims["jti"] = json!("never-used");
    });
    mesh.namespace.delete_pod(&mesh.pod).await;
    // The API server hears of the deletion by its own watch.
    let refused = until(async || mesh.sign(&after, &request(None)).await.err());
    let status = refused.await.expect("the token ends with its pod");
    assert_eq!(status.code(), Code::Unauthenticated);
    // So does the one whose review the CA has kept.
    let refused = until(async || mesh.sign(&before, &request(None)).await.err());
    let status = refused.await.expect("a kept review ends with the pod");
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_request_for_more_than_the_callers_own_identity_gets_nothing() {
    let mesh = Mesh::start().await;
    let token = mesh.token().await;
    let own = mesh.id_of("cart");
    let own_and = |other: SanType| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let own = SanType::URI(own.as_str().try_into().unwrap());
        params.subject_alt_names = vec![own, other];
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    };
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let other_namespace = "spiffe://cluster.local/ns/kube-system/sa/cart"
        .parse()
        .unwrap();
    let other_domain = "spiffe://example.org/ns/shop/sa/cart".parse().unwrap();
    for (what, csr, reason) in [
        (
            "another ServiceAccount",
            request(Some(&mesh.id_of("bank"))),
            "csr_foreign_identity",
        ),
        (
            "another namespace",
            request(Some(&other_namespace)),
            "csr_foreign_identity",
        ),
        (
            "another trust domain",
            request(Some(&other_domain)),
            "csr_foreign_identity",
        ),
        (
            "a second identity",
            own_and(uri("spiffe://cluster.local/ns/shop/sa/bank")),
            "csr_foreign_identity",
        ),
        (
            "a DNS name",
            own_and(SanType::DnsName("bank.shop.svc".try_into().unwrap())),
            "csr_other_name",
        ),
        (
            "an IP address",
            own_and(SanType::IpAddress([192, 0, 2, 1].into())),
            "csr_other_name",
        ),
    ] {
        mesh.refuses(what, &token, &csr, Code::PermissionDenied, reason)
            .await;
    }
}

#[tokio::test]
async fn a_request_with_a_weak_key_or_without_possession_gets_nothing() {
    let mesh = Mesh::start().await;
    let token = mesh.token().await;
    let mut der = pem::decode(&request(None), 10_000).unwrap().remove(0).der;
    *der.last_mut().unwrap() ^= 1;
    let tampered = pem::encode("CERTIFICATE REQUEST", &der);
    // By OpenSSL; what Bulkhead is built with makes no keys this weak.
    let weak = include_str!("testdata/rsa-1024.csr.pem");
    for (what, csr, reason) in [
        ("a weak key", weak, "csr_key"),
        ("a wrong signature", tampered.as_str(), "csr_signature"),
        ("no request", "certificate, please", "csr_malformed"),
    ] {
        mesh.refuses(what, &token, csr, Code::InvalidArgument, reason)
            .await;
    }
}

#[tokio::test]
async fn a_restarted_ca_and_a_second_replica_sign_under_the_same_root() {
    let mesh = Mesh::start().await;
    let bundle = mesh.ca.trust_bundle().to_pem();
    let second = start_ca(mesh.server, &mesh.namespace, &Monitoring::default(), &[]).await;
    assert_eq!(second.trust_bundle().to_pem(), bundle);

    let token = mesh.token().await;
    mesh.ca.drain(Duration::from_secs(10)).await;
    let mesh = Mesh {
        ca: start_ca(mesh.server, &mesh.namespace, &Monitoring::default(), &[]).await,
        ..mesh
    };
    assert_eq!(mesh.ca.trust_bundle().to_pem(), bundle);
    let answer = mesh.sign(&token, &request(None)).await.unwrap();
    assert_eq!(mesh.verify(&chain_of(&answer)), mesh.id_of("cart"));
}

#[tokio::test]
async fn a_client_that_shares_no_code_with_us_is_served() {
    let mesh = Mesh::start().await;
    let (token, csr) = (mesh.token().await, request(None));
    let address = mesh.ca.address().to_string();
    let mut roots = tempfile::NamedTempFile::new().unwrap();
    roots
        .write_all(mesh.ca.trust_bundle().to_pem().as_bytes())
        .unwrap();
    let roots_path = roots.path().to_owned();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/apiserver/foreign_client.py"
    );
    let run = move |token: String| {
        let mut client = Command::new(python_with_grpc().unwrap())
            .args([script, &address, SERVER_NAME])
            .arg(&roots_path)
            .arg(token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(csr.as_bytes()).unwrap();
        drop(stdin);
        client.wait_with_output().unwrap()
    };
    let (served, refused) = tokio::task::spawn_blocking(move || (run(token), run("x".to_owned())))
        .await
        .unwrap();

    let text = String::from_utf8(served.stdout).unwrap();
    assert!(
        served.status.success(),
        "{}",
        String::from_utf8_lossy(&served.stderr)
    );
    let mut blocks = pem::decode(&text, 100_000).unwrap();
    let root = blocks.pop().unwrap();
    let bundle = mesh.ca.trust_bundle();
    assert_eq!(
        *root.der,
        **bundle.roots().certificates()[0].der(),
        "the root comes last"
    );
    let chain = blocks.into_iter().map(|block| block.der.to_vec().into());
    let chain = SvidChain::from_der(chain.collect()).unwrap();
    assert_eq!(mesh.verify(&chain), mesh.id_of("cart"));

    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.starts_with("UNAUTHENTICATED"), "{said}");
}
