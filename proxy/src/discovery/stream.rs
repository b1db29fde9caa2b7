//! The conversation with control: one stream, kept up for ever.
//!
//! ```text
//!  certificate ─▶ mutual TLS ─▶ what is wanted ─▶ answers ─▶ cache, policy, bypass
//!       ▲                                          │ lost
//!       └──────────── wait, longer each time ◀─────┘
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::discovery::{
    Bypass, Destination, Endpoints, PodName, Resource, ResourceKind, ResourceName,
};
use bulkhead_core::identity::SpiffeId;
use bulkhead_core::policy::InboundPolicy;
use bulkhead_core::sidecar::SidecarConfig;
use bulkhead_pki::serving::TlsError;
use bulkhead_proto::discovery::ResourceError;
use bulkhead_proto::xds::{
    AggregatedDiscoveryServiceClient, DeltaDiscoveryRequest, DeltaDiscoveryResponse, MAX_RESPONSE,
    MessageError, Reply, Request, Response, Versioned,
};
use bulkhead_runtime::backoff::{Backoff, jitter};
use bulkhead_runtime::readiness::Condition;
use futures::future::join;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::cache::{Cache, Change};
use super::{Directory, Link};
use crate::bypass::{Source, Switch};
use crate::credentials::Latest;
use crate::metrics::ProcessMetrics;
use crate::socket;

/// The wait after a first failure, and the longest one. The longest is short: a
/// control that comes back has news.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the proxy is not ready for want of control's word on what it
/// accepts; then its own settings serve.
const FIRST_POLICY: Duration = Duration::from_secs(5);
/// How often a silent control is asked whether it is there, and how long it may
/// take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often destinations that nobody uses are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// The most names in one request, which keeps it far below control's limits.
const MAX_NAMES: usize = 1000;

/// The proxy's end of the stream.
pub(crate) struct Client {
    address: String,
    /// Who control must prove to be.
    control: SpiffeId,
    pod: PodName,
    latest: Latest,
    cache: Arc<Cache>,
    link: watch::Sender<Link>,
    policy: watch::Sender<Arc<InboundPolicy>>,
    switch: Switch,
    metrics: ProcessMetrics,
    has_policy: FirstWord,
    /// The version of the inbound policy that is known.
    own_policy: Option<String>,
}

/// What the stream is for, besides destinations.
pub(crate) struct Subscribers {
    pub(crate) policy: watch::Sender<Arc<InboundPolicy>>,
    pub(crate) switch: Switch,
    pub(crate) has_policy: FirstWord,
}

/// Whether control has said what the pod accepts, or might as well have: nobody
/// is taken in before, and the pod is not ready.
#[derive(Clone, Debug)]
pub(crate) struct FirstWord {
    condition: Condition,
    said: watch::Sender<bool>,
}

impl FirstWord {
    pub(crate) fn new(condition: Condition) -> Self {
        let (said, _) = watch::channel(false);
        Self { condition, said }
    }

    /// Becomes true, once and for all.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.said.subscribe()
    }

    fn is_said(&self) {
        self.condition.set(true);
        self.said.send_replace(true);
    }
}

impl Client {
    /// The directory, and what fills it; nobody does where there is no control.
    pub(crate) fn new(
        config: &SidecarConfig,
        latest: Latest,
        metrics: ProcessMetrics,
        subscribers: Subscribers,
    ) -> (Directory, Option<Self>) {
        let cache = Arc::new(Cache::new(metrics.clone()));
        let Some(address) = config.control() else {
            subscribers.has_policy.is_said();
            let (_, link) = watch::channel(Link::Away);
            return (Directory { cache, link }, None);
        };
        let (link, link_state) = watch::channel(Link::Connecting);
        let client = Self {
            address: address.to_owned(),
            control: config.control_identity.clone(),
            pod: PodName {
                namespace: config.namespace.clone(),
                name: config.pod_name.clone(),
            },
            latest,
            cache: Arc::clone(&cache),
            link,
            policy: subscribers.policy,
            switch: subscribers.switch,
            metrics,
            has_policy: subscribers.has_policy,
            own_policy: None,
        };
        let directory = Directory {
            cache,
            link: link_state,
        };
        (directory, Some(client))
    }

    /// Runs for ever.
    pub(crate) async fn run(self) {
        let has_policy = self.has_policy.clone();
        let link = self.link.clone();
        let impatience = async move {
            sleep(FIRST_POLICY).await;
            has_policy.is_said();
            // Nobody waits any longer for a control that never came.
            link.send_if_modified(|link| {
                let waited = *link == Link::Connecting;
                if waited {
                    *link = Link::Away;
                }
                waited
            });
        };
        join(impatience, self.keep_up()).await;
    }

    async fn keep_up(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            // Without a certificate control would not listen.
            if self.latest.first().await.is_none() {
                return;
            }
            let ended = match timeout(CONNECT_TIMEOUT, self.connect()).await {
                Ok(Ok(channel)) => self.converse(channel, &mut backoff).await,
                Ok(Err(error)) => Err(error),
                Err(_) => Err(StreamError::Timeout),
            };
            self.metrics.connected(false);
            let was_connected = *self.link.borrow() == Link::Connected;
            // A stream that was there a moment ago is soon there again.
            self.link.send_replace(if was_connected {
                Link::Connecting
            } else {
                Link::Away
            });
            let wait = backoff.after_failure(jitter());
            let seconds = wait.as_secs_f64();
            match ended {
                // Control does so from time to time, to spread its proxies.
                Ok(()) => tracing::debug!(
                    control = self.address,
                    retry_in_seconds = seconds,
                    "control ended the stream"
                ),
                Err(error) => tracing::warn!(
                    %error,
                    control = self.address,
                    retry_in_seconds = seconds,
                    "not connected to control; what it said before holds"
                ),
            }
            sleep(wait).await;
        }
    }

    async fn connect(&self) -> Result<Channel, StreamError> {
        let credentials = self.latest.get().ok_or(StreamError::NoCertificate)?;
        let config = credentials
            .identity()
            .client_config(&self.control, ["h2"])?;
        // tonic wants a scheme; the connection is TLS whatever it says here.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .map_err(|_| StreamError::Address)?
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let connector = tower::service_fn(move |uri: Uri| {
            let connector = TlsConnector::from(config.clone());
            async move {
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                let port = uri
                    .port_u16()
                    .unwrap_or(bulkhead_core::ports::CONTROL_PLANE);
                let stream = TcpStream::connect((host, port)).await?;
                socket::prepare(&stream);
                // Control proves its SPIFFE ID; by which address does not matter.
                let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
                let stream = connector.connect(name, stream).await?;
                io::Result::Ok(TokioIo::new(stream))
            }
        });
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(StreamError::Connect)
    }

    async fn converse(
        &mut self,
        channel: Channel,
        backoff: &mut Backoff,
    ) -> Result<(), StreamError> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let requests = Requests(requests);
        self.begin(&requests);
        let mut responses = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_RESPONSE)
            .delta_aggregated_resources(UnboundedReceiverStream::new(outgoing))
            .await?
            .into_inner();
        self.link.send_replace(Link::Connected);
        self.metrics.connected(true);
        tracing::info!(control = self.address, "connected to control");
        let mut forget = interval(FORGET_EVERY);
        loop {
            tokio::select! {
                // Control follows who has a new trust bundle.
                Some(credentials) = self.latest.changed() => requests.send(Request {
                    held: Some(credentials.held()),
                    ..Request::new(ResourceKind::Inbound)
                }),
                response = responses.message() => {
                    let Some(response) = response? else {
                        return Ok(());
                    };
                    requests.send(self.answer(response)?);
                    backoff.reset();
                }
                () = self.cache.wanted.notified() => {
                    requests.tell(self.cache.changes());
                }
                _ = forget.tick() => self.cache.forget_unused(),
            }
        }
    }

    /// Says who asks and what trust it holds, and everything that is wanted, with
    /// what is known of it.
    fn begin(&mut self, requests: &Requests) {
        let policy = self.own_policy.clone().unwrap_or_default();
        // A bypass that control told may have been taken back without it, so what
        // is in force is always asked for.
        let own = [
            (ResourceKind::Bypass, self.pod.to_string(), String::new()),
            (ResourceKind::Inbound, self.pod.to_string(), policy),
        ];
        let all = self.cache.all().into_iter();
        let all = all.map(|(name, version)| (name.kind(), name.to_string(), version));
        let mut by_kind: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (kind, name, version) in own.into_iter().chain(all) {
            by_kind.entry(kind).or_default().push((name, version));
        }
        let mut held = self.latest.get_and_mark().map(|latest| latest.held());
        for (kind, names) in &by_kind {
            for names in names.chunks(MAX_NAMES) {
                let known = names.iter().filter(|(_, version)| !version.is_empty());
                requests.send(Request {
                    node: Some(self.pod.to_string()),
                    held: held.take(),
                    subscribe: names.iter().map(|(name, _)| name.clone()).collect(),
                    known: known.cloned().collect(),
                    ..Request::new(*kind)
                });
            }
        }
    }

    /// Takes over what control says, as far as it can be read, and says whether
    /// it could.
    fn answer(&mut self, response: DeltaDiscoveryResponse) -> Result<Request, StreamError> {
        let response = Response::try_from(response)?;
        let kind = response.kind;
        let mut refused = None;
        for resource in &response.resources {
            if let Err(error) = self.take(kind, resource) {
                tracing::warn!(%error, %kind, name = resource.name, "control said what cannot be read; what it said before holds");
                refused = Some(error.to_string());
            }
        }
        for name in &response.removed {
            self.remove(kind, name);
        }
        self.metrics.push(kind, refused.is_none());
        let reply = Reply {
            nonce: response.nonce,
            refused,
        };
        Ok(Request {
            reply: Some(reply),
            ..Request::new(kind)
        })
    }

    fn take(&mut self, kind: ResourceKind, resource: &Versioned) -> Result<(), TakeError> {
        let name = ResourceName::parse(kind, &resource.name)?;
        let version = resource.version.clone();
        match (name, resource.decode(kind)?) {
            (ResourceName::Inbound(pod), Resource::Inbound(inbound)) if pod == self.pod => {
                self.policy.send_if_modified(|policy| {
                    let is_new = **policy != inbound.policy;
                    if is_new {
                        tracing::info!(
                            policy = inbound.policy.name,
                            mode = %inbound.policy.mode,
                            "control says what is accepted here"
                        );
                        *policy = Arc::new(inbound.policy);
                    }
                    is_new
                });
                self.has_policy.is_said();
                self.own_policy = Some(version);
            }
            (ResourceName::Bypass(pod), Resource::Bypass(bypass)) if pod == self.pod => {
                self.switch.ask(Source::Control, bypass);
            }
            (ResourceName::Destination(address), Resource::Destination(destination)) => {
                self.cache.set_destination(address, version, destination);
            }
            (ResourceName::Endpoints(name), Resource::Endpoints(endpoints)) => {
                self.cache.set_endpoints(&name, version, endpoints);
            }
            _ => return Err(TakeError::Unasked),
        }
        Ok(())
    }

    /// There is nothing (more) to say of a name. An inbound policy stays as it
    /// is: a pod that control does not know yet, or no more, goes on.
    fn remove(&mut self, kind: ResourceKind, name: &str) {
        match ResourceName::parse(kind, name) {
            Ok(ResourceName::Destination(address)) => {
                let unknown = Destination::default();
                self.cache.set_destination(address, String::new(), unknown);
            }
            Ok(ResourceName::Endpoints(name)) => {
                let none = Endpoints::default();
                self.cache.set_endpoints(&name, String::new(), none);
            }
            Ok(ResourceName::Bypass(_)) => self.switch.ask(Source::Control, Bypass::default()),
            Ok(ResourceName::Inbound(_)) => self.own_policy = None,
            Err(error) => {
                tracing::debug!(%error, %kind, name, "control has nothing to say of a name");
            }
        }
    }
}

/// The proxy's half of the stream. It never blocks: what is said is bounded by
/// what is wanted.
struct Requests(mpsc::UnboundedSender<DeltaDiscoveryRequest>);

impl Requests {
    fn send(&self, request: Request) {
        // A stream that has ended says so where it is read.
        let _ = self.0.send(request.into());
    }

    /// Says what is wanted now, and what no more.
    fn tell(&self, changes: BTreeMap<ResourceName, Change>) {
        let mut by_kind: BTreeMap<ResourceKind, Request> = BTreeMap::new();
        for (name, change) in changes {
            let kind = name.kind();
            let request = by_kind.entry(kind).or_insert_with(|| Request::new(kind));
            match change {
                Change::Wanted => request.subscribe.push(name.to_string()),
                Change::Unwanted => request.unsubscribe.push(name.to_string()),
            }
            if request.subscribe.len() + request.unsubscribe.len() == MAX_NAMES {
                by_kind
                    .remove(&kind)
                    .into_iter()
                    .for_each(|full| self.send(full));
            }
        }
        by_kind.into_values().for_each(|request| self.send(request));
    }
}

/// Why a stream ended, or did not begin.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("the address is not host:port")]
    Address,
    #[error("setting up TLS failed: {0}")]
    Tls(#[from] TlsError),
    #[error("connecting failed: {}; is control up, and does it have a certificate?", chain(.0))]
    Connect(tonic::transport::Error),
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    Timeout,
    #[error("control broke the stream off: {} ({})", .0.message(), .0.code())]
    Call(#[from] tonic::Status),
    #[error("control said what is no answer: {0}")]
    Message(#[from] MessageError),
    #[error("there is no certificate to show to control")]
    NoCertificate,
}

/// Why a resource was not taken.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error(transparent)]
    Name(#[from] bulkhead_core::discovery::NameError),
    #[error(transparent)]
    Resource(#[from] ResourceError),
    #[error("it is another pod's, and nobody asked for it")]
    Unasked,
}

/// An error with all of its causes; tonic's own text stops at the first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
