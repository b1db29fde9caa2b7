//! A certificate for a program that is not ours: a key and a request made
//! outside of our proxy, the CSR service called as Istio's agent calls it, and
//! the answer in files.

use anyhow::Context as _;
use bulkhead::mesh::Mesh;
use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving;
use bulkhead_proto::ca::{CertificateAnswer, CertificateRequest, IstioCertificateServiceClient};
use bulkhead_tests::envoy::sidecar::Files;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// A workload's key, its chain and the trust roots, as PEM files.
pub(crate) struct CertificateFiles {
    pub(crate) id: SpiffeId,
    directory: TempDir,
}

impl CertificateFiles {
    /// Has the CA issue one to a workload of its mesh.
    pub(crate) async fn issue(
        mesh: &Mesh,
        namespace: &str,
        service_account: &str,
    ) -> anyhow::Result<Self> {
        let id = SpiffeId::workload(mesh.trust_domain(), namespace, service_account)?;
        let key = PrivateKey::generate()?;
        let wish = CertificateRequest {
            csr: csr::create(&key, Some(&id))?,
            lifetime: None,
            on_behalf_of: None,
        };
        let mut request = tonic::Request::new(wish.into());
        let token = mesh.token(namespace, service_account)?;
        let bearer = format!("Bearer {token}").parse()?;
        request.metadata_mut().insert("authorization", bearer);
        let answer: CertificateAnswer =
            IstioCertificateServiceClient::new(connect_to_ca(mesh).await?)
                .create_certificate(request)
                .await
                .context("the CA refused")?
                .into_inner()
                .try_into()?;
        let issued = Self {
            id,
            directory: TempDir::with_prefix("bulkhead-certificate-")?,
        };
        let files = issued.files();
        std::fs::write(files.key, &*key.to_pem()?)?;
        std::fs::write(files.chain, answer.chain.concat())?;
        std::fs::write(files.roots, answer.roots)?;
        Ok(issued)
    }

    /// Where they are.
    pub(crate) fn files(&self) -> Files {
        let file = |name| self.directory.path().join(name);
        Files {
            key: file("key.pem"),
            chain: file("cert-chain.pem"),
            roots: file("root-cert.pem"),
        }
    }
}

async fn connect_to_ca(mesh: &Mesh) -> anyhow::Result<Channel> {
    let config = serving::client_config(&Roots::from_pem(&mesh.roots()?)?, ["h2"])?;
    let address = mesh.ca_address();
    let connector = tower::service_fn(move |_: Uri| {
        let connector = TlsConnector::from(config.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::IpAddress(address.ip().into());
            std::io::Result::Ok(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    // The scheme is for tonic's eyes only; the connector makes it TLS.
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_with_connector(connector)
        .await
        .context("connecting to the CA failed")
}
