//! Clients of control that stand for proxies: each has a pod that nobody runs, a
//! connection with mutual TLS, and asks whether it is to stand aside. All pods
//! have one ServiceAccount, so that one certificate serves for all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bulkhead_core::discovery::{BypassPhase, Resource, ResourceKind};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::ports::CONTROL_PLANE;
use bulkhead_core::sidecar::{TOKEN_AUDIENCE, default_trust_domain};
use bulkhead_inject::TRUST_BUNDLE_CONFIG_MAP;
use bulkhead_pki::bundle::{Roots, TrustBundle};
use bulkhead_pki::identity::WorkloadIdentity;
use bulkhead_pki::key::PrivateKey;
use bulkhead_pki::svid::SvidChain;
use bulkhead_pki::{csr, serving};
use bulkhead_proto::ca::{CertificateAnswer, CertificateRequest, IstioCertificateServiceClient};
use bulkhead_runtime::clock::Clock;
use bulkhead_tests::cluster::{Cluster, SYSTEM_NAMESPACE};
use bulkhead_tests::namespace::Namespace;
use bulkhead_tests::subscriber::Subscriber;
use bulkhead_workload::credentials::Credentials;
use futures::future::try_join_all;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::objects;

const SERVICE_ACCOUNT: &str = "default";
/// The name in the CA's certificate.
const CA_NAME: &str = "bulkhead-ca.bulkhead-system.svc";
const LIFETIME: Duration = Duration::from_secs(3600);
/// What the object is called.
const BYPASS: &str = "benchmark";

/// Connected clients, each with the name of its pod.
pub(super) struct Proxies {
    namespace: Namespace,
    subscribers: Vec<(String, Subscriber)>,
}

impl Proxies {
    /// Makes so many pods and connects a client for each.
    pub(super) async fn connect(cluster: &Cluster, count: usize) -> Result<Self> {
        let namespace = cluster.plain_namespace().await;
        let pods: Vec<_> = (0..count)
            .map(|number| objects::pod(&format!("proxy-{number}"), "proxy"))
            .collect();
        let pods = try_join_all(pods.iter().map(|pod| namespace.create_pod(pod))).await?;
        let first = pods.first().context("there is to be a proxy at least")?;
        let credentials = Credentials::new(identity(cluster, &namespace, first).await?)?;
        let control = SpiffeId::workload(
            &default_trust_domain(),
            SYSTEM_NAMESPACE,
            "bulkhead-control",
        )?;
        let address = address(cluster, "bulkhead-control").await?;
        let mut subscribers = Vec::with_capacity(count);
        for pod in &pods {
            let node = format!("{}/{}", namespace.name(), pod.name_any());
            let mut subscriber =
                Subscriber::connect(address, &control, &credentials, &node).await?;
            subscriber.ask(ResourceKind::Bypass, &node).await?;
            subscribers.push((node, subscriber));
        }
        let mut proxies = Self {
            namespace,
            subscribers,
        };
        proxies.all_are_told(BypassPhase::Off).await?;
        Ok(proxies)
    }

    /// From the creation of a `Bypass` for all of them until the last was told to
    /// forward, in milliseconds.
    pub(super) async fn bypass(&mut self, cluster: &Cluster) -> Result<f64> {
        let bypass = json!({
            "apiVersion": "emergency.bulkhead.io/v1alpha1",
            "kind": "Bypass",
            "metadata": {"name": BYPASS, "namespace": self.namespace.name()},
            "spec": {"reason": "a benchmark"},
        });
        let began = Instant::now();
        cluster.apply(bypass).await;
        self.all_are_told(BypassPhase::Forward).await?;
        let took = began.elapsed();
        let kind = GroupVersionKind::gvk("emergency.bulkhead.io", "v1alpha1", "Bypass");
        let kind = ApiResource::from_gvk_with_plural(&kind, "bypasses");
        let bypasses: Api<DynamicObject> =
            Api::namespaced_with(cluster.client().clone(), self.namespace.name(), &kind);
        bypasses.delete(BYPASS, &DeleteParams::default()).await?;
        self.all_are_told(BypassPhase::Off).await?;
        Ok(took.as_secs_f64() * 1e3)
    }

    /// Acknowledges everything until then.
    async fn all_are_told(&mut self, phase: BypassPhase) -> Result<()> {
        let is_told = |resource: &Resource| matches!(resource, Resource::Bypass(bypass) if bypass.phase == phase);
        let each = self.subscribers.iter_mut();
        let each = each.map(|(node, proxy)| proxy.until(ResourceKind::Bypass, node, is_told));
        let all = try_join_all(each).await;
        all.with_context(|| format!("telling every proxy: {}", phase.as_str()))?;
        Ok(())
    }
}

/// A certificate of the CA, for a token that is bound to the pod.
async fn identity(cluster: &Cluster, namespace: &Namespace, pod: &Pod) -> Result<WorkloadIdentity> {
    let trust_domain = default_trust_domain();
    let id = SpiffeId::workload(&trust_domain, namespace.name(), SERVICE_ACCOUNT)?;
    let bundle = namespace
        .api::<ConfigMap>()
        .get(TRUST_BUNDLE_CONFIG_MAP)
        .await;
    let bundle = bundle.context("the namespace has no trust bundle")?;
    let roots = bundle.data.and_then(|mut data| data.remove("ca.crt"));
    let roots = Roots::from_pem(&roots.context("the trust bundle has no ca.crt")?)?;
    let config = serving::client_config(&roots, ["h2"])?;
    let address = address(cluster, "bulkhead-ca").await?;
    let channel = channel(address, ServerName::try_from(CA_NAME)?, config).await?;
    let key = PrivateKey::generate()?;
    let wish = CertificateRequest {
        csr: csr::create(&key, Some(&id))?,
        lifetime: Some(LIFETIME),
        on_behalf_of: None,
    };
    let token = namespace
        .token(SERVICE_ACCOUNT, Some(TOKEN_AUDIENCE), Some(pod))
        .await;
    let mut request = tonic::Request::new(wish.into());
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse()?);
    let response = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await?;
    let answer: CertificateAnswer = response.into_inner().try_into()?;
    let chain = SvidChain::from_pem(&answer.chain.concat())?;
    let bundle = TrustBundle::from_pem(trust_domain, &answer.roots)?;
    Ok(WorkloadIdentity::new(
        &id,
        &key,
        chain,
        bundle,
        Clock::system().now(),
    )?)
}

/// Where a Service of Bulkhead's own answers.
async fn address(cluster: &Cluster, service: &str) -> Result<SocketAddr> {
    let services = Namespace::existing(cluster.client(), SYSTEM_NAMESPACE).api::<Service>();
    let service = services.get(service).await?;
    let address = service
        .spec
        .and_then(|spec| spec.cluster_ip)
        .context("the Service has no address")?;
    let address: IpAddr = address
        .parse()
        .with_context(|| format!("{address} is no address"))?;
    Ok(SocketAddr::new(address, CONTROL_PLANE))
}

async fn channel(
    address: SocketAddr,
    name: ServerName<'static>,
    config: Arc<rustls::ClientConfig>,
) -> Result<Channel> {
    let connector = tower::service_fn(move |_| {
        let (connector, name) = (TlsConnector::from(Arc::clone(&config)), name.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            io::Result::Ok(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    // tonic wants a scheme; the connection is TLS whatever it says here.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let connected = endpoint.connect_with_connector(connector).await;
    connected.with_context(|| format!("connecting to {address}"))
}
