//! A certificate of the cluster's own CA, for a program that is not a sidecar:
//! asked for as Istio's agent asks, with a token of a ServiceAccount.

use std::net::SocketAddr;

use bulkhead_core::identity::{SpiffeId, TrustDomain};
use bulkhead_core::ports::CONTROL_PLANE;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::csr;
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving;
use bulkhead_pki::svid::SvidChain;
use bulkhead_proto::ca::{CertificateAnswer, CertificateRequest, IstioCertificateServiceClient};
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::cluster::{Cluster, until};
use bulkhead_tests::namespace::Namespace;
use bulkhead_workload::credentials::Credentials;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

const TRUST_BUNDLE: &str = "bulkhead-trust-bundle";
/// The name that the CA's own certificate is for.
const CA: &str = "bulkhead-ca";

/// A key and what the CA answered, as PEM.
pub(crate) struct Issued {
    pub(crate) id: SpiffeId,
    pub(crate) key: String,
    /// The leaf and what is between it and a root.
    pub(crate) chain: String,
    pub(crate) roots: String,
}

impl Issued {
    pub(crate) fn credentials(&self) -> Credentials {
        let identity = WorkloadIdentity::new(
            &self.id,
            &PrivateKey::from_pem(&self.key).unwrap(),
            SvidChain::from_pem(&self.chain).unwrap(),
            TrustBundle::from_pem(trust_domain(), &self.roots).unwrap(),
            Clock::system().now(),
        );
        Credentials::new(identity.unwrap()).unwrap()
    }
}

/// The chart's default.
pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// Has the CA issue one to a ServiceAccount, as the sidecar of this pod would.
pub(crate) async fn issue(
    cluster: &Cluster,
    namespace: &Namespace,
    account: &str,
    pod: &Pod,
) -> Issued {
    let id = SpiffeId::workload(&trust_domain(), namespace.name(), account).unwrap();
    let key = PrivateKey::generate().unwrap();
    let wish = CertificateRequest {
        csr: csr::create(&key, Some(&id)).unwrap(),
        lifetime: None,
        on_behalf_of: None,
    };
    let token = namespace.token(account, Some(CA), Some(pod)).await;
    let mut request = tonic::Request::new(wish.into());
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let channel = connect_to_ca(cluster, namespace).await;
    let answer: CertificateAnswer = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await
        .unwrap()
        .into_inner()
        .try_into()
        .unwrap();
    Issued {
        id,
        key: key.to_pem().unwrap().to_string(),
        chain: answer.chain.concat(),
        roots: answer.roots,
    }
}

async fn connect_to_ca(cluster: &Cluster, namespace: &Namespace) -> Channel {
    let bundle = until("the CA writes the trust bundle", async || {
        let map = namespace.api::<ConfigMap>().get_opt(TRUST_BUNDLE).await;
        map.unwrap()?.data?.remove("ca.crt")
    })
    .await;
    let config = serving::client_config(&Roots::from_pem(&bundle).unwrap(), ["h2"]).unwrap();
    let address = service_address(cluster, CA).await;
    let name = format!("{CA}.{}.svc", cluster.system().name());
    let name = ServerName::try_from(name).unwrap();
    let connector = tower::service_fn(move |_: Uri| {
        let (connector, name) = (TlsConnector::from(config.clone()), name.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            std::io::Result::Ok(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    // The scheme is for tonic's eyes only; the connector makes it TLS.
    Endpoint::from_static("http://ca")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

/// Where a Service of Bulkhead's is: the test's process has no cluster DNS.
pub(crate) async fn service_address(cluster: &Cluster, name: &str) -> SocketAddr {
    let service: Service = cluster.system().api().get(name).await.unwrap();
    let ip = service.spec.unwrap().cluster_ip.unwrap();
    SocketAddr::new(ip.parse().unwrap(), CONTROL_PLANE)
}
