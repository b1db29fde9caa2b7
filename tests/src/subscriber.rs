//! A proxy as control sees it: a certificate, a stream, and what was told on it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bulkhead_core::discovery::{Resource, ResourceKind};
use bulkhead_core::identity::SpiffeId;
use bulkhead_proto::xds::{
    AggregatedDiscoveryServiceClient, DeltaDiscoveryRequest, DeltaDiscoveryResponse, MAX_RESPONSE,
    Reply, Request, Response,
};
use bulkhead_runtime::clock::Clock;
use bulkhead_runtime::readiness::Readiness;
use bulkhead_workload::credentials::{self, Credentials};
use bulkhead_workload::{Renewal, Settings};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Endpoint, Uri};

/// How long anything may take that is to happen at once.
const SOON: Duration = Duration::from_secs(60);

/// Gets a certificate as a workload does.
pub async fn certificate(settings: Settings) -> Result<Arc<Credentials>> {
    let (publisher, mut latest) = credentials::channel();
    let condition = Readiness::default().condition("certificate");
    let metrics = bulkhead_workload::metrics::Metrics::default();
    let (renewal, _requests) =
        Renewal::new(settings, Clock::system(), publisher, metrics, condition);
    let renewal = tokio::spawn(renewal.run());
    let first = timeout(SOON, latest.first()).await;
    renewal.abort();
    first
        .context("no certificate came in time")?
        .context("the renewal ended")
}

/// One stream to control.
pub struct Subscriber {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<String>,
    /// The versions of what was told last, by kind and name.
    pub versions: BTreeMap<(ResourceKind, String), String>,
}

impl Subscriber {
    /// Connects with these credentials, as the proxy of this pod.
    pub async fn connect(
        control: SocketAddr,
        expected: &SpiffeId,
        credentials: &Credentials,
        node: &str,
    ) -> Result<Self> {
        let config = credentials.identity().client_config(expected, ["h2"])?;
        let connector = tower::service_fn(move |_: Uri| {
            let connector = TlsConnector::from(Arc::clone(&config));
            async move {
                let stream = TcpStream::connect(control).await?;
                let name = ServerName::from(control.ip());
                std::io::Result::Ok(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let channel = Endpoint::from_static("http://control")
            .connect_with_connector(connector)
            .await
            .context("connecting to control failed")?;
        let (requests, outgoing) = mpsc::channel(16);
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(outgoing))
            .await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
            node: Some(node.to_owned()),
            versions: BTreeMap::new(),
        })
    }

    /// Sends a request.
    pub async fn say(&mut self, mut request: Request) -> Result<()> {
        request.node = self.node.take();
        let sent = self.requests.send(request.into()).await;
        sent.ok().context("control has ended the stream")
    }

    /// Asks for a name.
    pub async fn ask(&mut self, kind: ResourceKind, name: &str) -> Result<()> {
        self.say(Request {
            subscribe: vec![name.to_owned()],
            ..Request::new(kind)
        })
        .await
    }

    /// The next answer, which is not acknowledged.
    pub async fn hear(&mut self) -> Result<Response> {
        let message = timeout(SOON, self.responses.message()).await;
        let message = message.context("control said nothing")??;
        let response = Response::try_from(message.context("control ended the stream")?)?;
        for resource in &response.resources {
            let key = (response.kind, resource.name.clone());
            self.versions.insert(key, resource.version.clone());
        }
        Ok(response)
    }

    /// The next answer, acknowledged.
    pub async fn take(&mut self) -> Result<Response> {
        let response = self.hear().await?;
        self.say(Request {
            reply: Some(Reply {
                nonce: response.nonce.clone(),
                refused: None,
            }),
            ..Request::new(response.kind)
        })
        .await?;
        Ok(response)
    }

    /// The next thing that is said of a name: the resource, or nothing where
    /// there is no such thing. Everything else is acknowledged and passed over.
    pub async fn told(&mut self, kind: ResourceKind, name: &str) -> Result<Option<Resource>> {
        loop {
            let response = self.take().await?;
            if response.kind != kind {
                continue;
            }
            if response.removed.iter().any(|removed| removed == name) {
                return Ok(None);
            }
            if let Some(found) = response.resources.iter().find(|found| found.name == name) {
                return Ok(Some(found.decode(kind)?));
            }
        }
    }

    /// Passes over what is said of a name until it is as wanted.
    pub async fn until(
        &mut self,
        kind: ResourceKind,
        name: &str,
        wanted: impl Fn(&Resource) -> bool,
    ) -> Result<Resource> {
        let mut last = None;
        let wait = async {
            loop {
                match self.told(kind, name).await? {
                    Some(resource) if wanted(&resource) => return Ok(resource),
                    other => last = other,
                }
            }
        };
        match timeout(SOON, wait).await {
            Ok(found) => found,
            Err(_) => bail!("{kind} {name} did not become what was wanted; it is {last:?}"),
        }
    }

    /// The error with which control ends the stream.
    pub async fn refusal(&mut self) -> tonic::Status {
        loop {
            match timeout(SOON, self.responses.message()).await {
                Ok(Err(status)) => return status,
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return tonic::Status::ok("the stream ended"),
                Err(_) => return tonic::Status::ok("the stream went on"),
            }
        }
    }
}
