//! Two workloads that talk, with certificates from a CA below each upstream.

use bulkhead::mesh::{self, Mesh};
use bulkhead_ca::config::{UpstreamConfig, UpstreamSource};
use bulkhead_ca::issuer::status::UpstreamSigns;
use bulkhead_core::policy::MtlsMode;
use bulkhead_pki::certificate::Certificate;
use bulkhead_tests::{apps, metrics};

use super::*;

const BOTH: [UpstreamSigns; 2] = [UpstreamSigns::Intermediate, UpstreamSigns::Leaf];

/// One request between two sidecars, which take nothing in plain text, and what
/// each side says of the other.
async fn a_pair_talks(
    source: UpstreamSource,
    signs: UpstreamSigns,
    kube: Option<kube::Client>,
) -> Certificate {
    let directory = tempfile::tempdir().unwrap();
    let mesh = Mesh::start_beside(directory.path(), kube, |config| {
        config.upstream = Some(UpstreamConfig {
            source,
            signs,
            roots_file: None,
        });
    });
    let mesh = mesh.await.unwrap();
    let app = apps::echo_http().await.unwrap();
    let mut config = mesh.workload("shop", "cart").unwrap();
    config.mode = MtlsMode::Strict;
    config.inbound = vec![mesh::inbound(app.address)];
    let server = mesh.proxy(config).await.unwrap();
    let mut config = mesh.workload("web", "front").unwrap();
    let port = server.addresses.inbound[0];
    config.outbound = vec![mesh::upstream(&mesh, "shop", "cart", &[port]).unwrap()];
    let client = mesh.proxy(config).await.unwrap();

    let refused = apps::get(port, "/").await.unwrap();
    assert_eq!(refused.reason(), Some("plaintext_refused"));
    let answer = apps::get(client.addresses.outbound[0], "/cart").await;
    assert_eq!(answer.unwrap().body, "HTTP/1.1 GET /cart\n");
    assert_eq!(app.seen(), 1);
    let verified = [
        "source_principal=\"spiffe://cluster.local/ns/web/sa/front\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
        "response_code=\"200\"",
    ];
    let given = Certificate::all_from_pem(&mesh.roots().unwrap(), 64 * 1024).unwrap();
    let [root] = given.try_into().expect("one root is given out");
    for proxy in [&server, &client] {
        let name = "istio_requests_total";
        metrics::become_sum(&proxy.monitoring, name, &verified, 1.0).await;
        let held = proxy.latest.get().unwrap();
        assert_eq!(*held.identity().signing_root(), root);
    }
    root
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_talks_with_certificates_from_below_the_files_of_a_company() {
    let (domain, now) = (default_trust_domain(), Clock::system().now());
    let root = Authority::new_root(&domain, 30 * DAY, now).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("tls.crt", root.certificate().to_pem()),
        ("tls.key", root.key().to_pem().unwrap().to_string()),
    ] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    for signs in BOTH {
        let source = UpstreamSource::Files(directory.path().to_owned());
        assert_eq!(a_pair_talks(source, signs, None).await, *root.certificate());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_talks_with_certificates_from_below_vault() {
    let vault = a_vault().await;
    let file = vault.file("token", &token(&vault, &["bulkhead-ca"]).await);
    let signed = signs_intermediates(&upstream(settings(&vault, file.clone()))).await;
    for signs in BOTH {
        let source = UpstreamSource::Vault(settings(&vault, file.clone()));
        let root = a_pair_talks(source, signs, None).await;
        assert_eq!([root], signed.roots.certificates());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_talks_with_certificates_from_below_cert_manager() {
    let server = ApiServer::start().await.unwrap();
    let _controllers = cert_manager::CertManager::start(&server, true)
        .await
        .unwrap();
    let (namespace, requests) = an_issuer(&server).await;
    let upstream = as_the_ca(&server, &namespace, "Issuer/mesh").await;
    let signed = signs_intermediates(&upstream).await;
    let token = namespace.token("bulkhead-ca", None, None).await;
    let client = server.client_with_token(token).await;
    for signs in BOTH {
        let source = UpstreamSource::CertManager {
            issuer: "Issuer/mesh".parse().unwrap(),
            namespace: namespace.name().to_owned(),
        };
        let root = a_pair_talks(source, signs, Some(client.clone())).await;
        assert_eq!([root], signed.roots.certificates());
    }
    nothing_is_left(&requests).await;
}
