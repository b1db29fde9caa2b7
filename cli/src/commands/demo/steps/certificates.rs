//! What the CA gives, and to whom.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;
use bulkhead_core::identity::SpiffeId;
use bulkhead_pki::bundle::Roots;
use bulkhead_pki::csr;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::serving;
use bulkhead_pki::svid::SvidChain;
use bulkhead_proto::ca::{CertificateAnswer, CertificateRequest, IstioCertificateServiceClient};
use bulkhead_proxy::app::Proxy;
use bulkhead_proxy::credentials::Credentials;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::commands::demo::http;
use crate::commands::demo::stage::Stage;
use crate::commands::demo::story::{Proof, expect};
use crate::mesh::Mesh;

const ISSUED: &str = "bulkhead_ca_certificates_issued_total";
const REFUSED: &str = "bulkhead_ca_requests_refused_total";

pub(super) async fn issue(stage: &mut Stage) -> anyhow::Result<Proof> {
    let ca = stage.mesh().await?.ca_monitoring_address();
    let before = http::metric(ca, ISSUED, &[]).await?;
    let (mesh, workloads) = stage.workloads().await?;
    let replica = workloads.replica.as_ref().context("cart-1 is gone")?;
    let pods = [
        ("front-0", &workloads.front, ("web", "front")),
        ("cart-0", &workloads.cart, ("shop", "cart")),
        ("cart-1", replica, ("shop", "cart")),
    ];
    let mut proof = Proof::new(format!(
        "{} pods have certificates, each with a key of its own",
        pods.len()
    ))
    .with(format!(
        "each pod sent a CSR over gRPC and TLS to {}, with its ServiceAccount's token",
        mesh.ca_address()
    ));
    let mut keys = BTreeSet::new();
    for (pod, proxy, (namespace, account)) in pods {
        let expected = SpiffeId::workload(mesh.trust_domain(), namespace, account)?;
        let credentials = credentials(pod, proxy)?;
        let identity = credentials.identity();
        expect(*identity.id() == expected, expected.as_str(), identity.id())?;
        keys.insert(identity.chain().public_key()?.to_spki());
        let lifetime = identity.not_after().duration_since(identity.not_before())?;
        proof = proof.with(format!(
            "{pod}: {expected}, serial {}…, good for {} h",
            &identity.serial()[..8],
            lifetime.as_secs() / 3600
        ));
    }
    let distinct = format!("{} different keys", keys.len());
    expect(
        keys.len() == pods.len(),
        "a different key for each pod",
        distinct,
    )?;
    let issued = http::metric(ca, ISSUED, &[]).await? - before;
    // Control proves to proxies who it is, as any workload does.
    let wanted = pods.len() + 1;
    let expected = format!("the CA to have issued {wanted}, one of them to control");
    expect(issued == wanted as f64, &expected, issued)?;
    Ok(proof)
}

pub(super) async fn foreign_identity_refused(stage: &mut Stage) -> anyhow::Result<Proof> {
    let mesh = stage.mesh().await?;
    let ca = mesh.ca_monitoring_address();
    let label = "reason=\"csr_foreign_identity\"";
    let before = http::metric(ca, REFUSED, &[label]).await?;
    let own = SpiffeId::workload(mesh.trust_domain(), "web", "front")?;
    let foreign = SpiffeId::workload(mesh.trust_domain(), "shop", "cart")?;
    let token = mesh.token("web", "front")?;

    let refusal = match request(mesh, &token, &foreign).await? {
        Ok(_) => anyhow::bail!("expected no certificate; saw one for {foreign}"),
        Err(status) => status,
    };
    let is_denied = refusal.code() == Code::PermissionDenied;
    expect(is_denied, "PermissionDenied", &refusal)?;
    http::metric_exceeds(ca, REFUSED, &[label], before).await?;
    let answer = request(mesh, &token, &own)
        .await?
        .context("expected a certificate in the caller's own name")?;
    let chain = SvidChain::from_pem(&answer.chain.concat())?;
    expect(*chain.id() == own, own.as_str(), chain.id())?;

    Ok(
        Proof::new("PermissionDenied; in one's own name it is granted")
            .with(format!(
                "front's valid token, and a CSR for {foreign}: {:?}",
                refusal.code()
            ))
            .with(format!(
                "the caller learns no more than this: {:?}",
                refusal.message()
            ))
            .with(format!("the CA knows why: {REFUSED}{{{label}}} went up"))
            .with(format!("the same token, and a CSR for {own}: granted")),
    )
}

/// The certificate in use.
pub(super) fn credentials(pod: &str, proxy: &Proxy) -> anyhow::Result<Arc<Credentials>> {
    proxy
        .latest
        .get()
        .with_context(|| format!("expected {pod} to have a certificate; it has none"))
}

/// Asks the CA as any client of the CSR API does. The inner result is the CA's
/// own word.
async fn request(
    mesh: &Mesh,
    token: &str,
    id: &SpiffeId,
) -> anyhow::Result<Result<CertificateAnswer, Status>> {
    let roots = Roots::from_pem(&mesh.roots()?)?;
    let connector = TlsConnector::from(serving::client_config(&roots, ["h2"])?);
    let address = mesh.ca_address();
    let connect = move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::from(address.ip());
            std::io::Result::Ok(TokioIo::new(connector.connect(name, stream).await?))
        }
    };
    // The library wants a scheme; the connection is TLS whatever it says here.
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect_with_connector(tower::service_fn(connect))
        .await
        .context("connecting to the CA failed")?;
    let wish = CertificateRequest {
        csr: csr::create(&PrivateKey::generate()?, Some(id))?,
        lifetime: None,
        on_behalf_of: None,
    };
    let mut call = Request::new(wish.into());
    let token = format!("Bearer {token}").parse()?;
    call.metadata_mut().insert("authorization", token);
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(call)
        .await;
    match answer {
        Ok(response) => Ok(Ok(response.into_inner().try_into()?)),
        Err(status) => Ok(Err(status)),
    }
}
