//! One stream of discovery, from its first request to its end.

use std::net::SocketAddr;
use std::time::Duration;

use bulkhead_core::discovery::PodName;
use bulkhead_core::identity::SpiffeId;
use bulkhead_proto::xds::{
    AggregatedDiscoveryService, DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    Request as DiscoveryRequest,
};
use bulkhead_runtime::drain;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::hub::{Hub, Session, SubscribeError};
use crate::metrics::Metrics;

/// How long a stream may take to say which pod it is of.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection, which the server puts beside each
/// stream.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) id: SpiffeId,
    pub(crate) address: SocketAddr,
    /// When the stream ends, whatever happens: proxies that come back spread
    /// over the replicas, and show a certificate that is valid then.
    pub(crate) until: Instant,
}

/// The discovery service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Discovery {
    pub(crate) hub: Hub,
    pub(crate) metrics: Metrics,
    pub(crate) drain: drain::Watch,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::unauthenticated("who is there?"))?;
        // One answer waits for a proxy that reads slowly, and no more.
        let (answers, stream) = mpsc::channel(1);
        let conversation = Conversation {
            discovery: self.clone(),
            caller,
            requests: request.into_inner(),
            answers,
            nonce: 0,
        };
        tokio::spawn(conversation.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// What is said on one stream.
struct Conversation {
    discovery: Discovery,
    caller: Caller,
    requests: Streaming<DeltaDiscoveryRequest>,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonce: u64,
}

impl Conversation {
    async fn run(mut self) {
        let answers = self.answers.clone();
        if let Err(status) = self.converse().await {
            // Nobody may be there to hear it.
            let _ = answers.send(Err(status)).await;
        }
    }

    async fn converse(&mut self) -> Result<(), Status> {
        let first = timeout(FIRST_REQUEST, self.requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no request came"))??;
        let Some(first) = first else {
            return Ok(());
        };
        let (session, first) = self.open(first)?;
        self.hear(&session, first)?;
        let end = tokio::time::sleep_until(self.caller.until);
        let mut end = std::pin::pin!(end);
        let mut drain = self.discovery.drain.clone();
        let mut has_news = false;
        loop {
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => {
                        let request = self.read(request)?;
                        self.hear(&session, request)?;
                    }
                    None => return Ok(()),
                },
                () = session.news(), if !has_news => has_news = true,
                // The proxy has read what it was told before.
                room = self.answers.reserve(), if has_news => {
                    let Ok(room) = room else { return Ok(()) };
                    has_news = false;
                    self.nonce += 1;
                    if let Some(response) = session.take(self.nonce) {
                        self.discovery.metrics.responded(response.kind);
                        room.send(Ok(response.into()));
                    }
                }
                // The proxy comes back, to this replica or another.
                () = &mut end => return Ok(()),
                () = drain.started() => return Ok(()),
            }
        }
    }

    /// The first request says which pod the proxy stands beside.
    fn open(&self, request: DeltaDiscoveryRequest) -> Result<(Session, DiscoveryRequest), Status> {
        let request = self.read(request)?;
        let node = request.node.as_deref().unwrap_or_default();
        let refuse = |reason: &str, label, status: fn(String) -> Status| {
            let Caller { address, id, .. } = &self.caller;
            self.discovery
                .hub
                .audit()
                .refused_stream(*address, id, node, reason);
            self.discovery.metrics.refused(label);
            status(reason.to_owned())
        };
        let pod: PodName = node
            .parse()
            .map_err(|_| refuse(NODE_FORM, "no_node", Status::invalid_argument))?;
        let session = self.discovery.hub.open(pod, &self.caller.id);
        let session = session.map_err(|error| match error {
            SubscribeError::ForeignNode => refuse(
                &error.to_string(),
                "foreign_node",
                Status::permission_denied,
            ),
            SubscribeError::TooManyStreams | SubscribeError::TooManyNames => {
                refuse(&error.to_string(), "too_many", Status::resource_exhausted)
            }
        })?;
        Ok((session, request))
    }

    fn read(&self, request: DeltaDiscoveryRequest) -> Result<DiscoveryRequest, Status> {
        DiscoveryRequest::try_from(request).map_err(|error| {
            self.discovery.metrics.refused("malformed");
            Status::invalid_argument(error.to_string())
        })
    }

    fn hear(&self, session: &Session, request: DiscoveryRequest) -> Result<(), Status> {
        let kind = request.kind;
        if let Some(held) = request.held {
            session.holds(held);
        }
        if let Some(reply) = &request.reply {
            session.replied(&reply.nonce, reply.refused.is_none());
            self.discovery
                .metrics
                .replied(kind, reply.refused.is_none());
            if let Some(problem) = &reply.refused {
                tracing::warn!(
                    caller = %self.caller.id,
                    resource = kind.as_str(),
                    problem,
                    "a proxy refused what it was told, and goes on with what it knew; is it older \
                     or newer than control?"
                );
            }
        }
        session.unsubscribe(kind, &request.unsubscribe);
        let refused = session.subscribe(kind, &request.subscribe, &request.known);
        let refused = refused.map_err(|error| {
            self.discovery.metrics.refused("too_many");
            Status::resource_exhausted(error.to_string())
        })?;
        for refusal in refused {
            let Caller { address, id, .. } = &self.caller;
            let node = session.pod().to_string();
            self.discovery.hub.audit().refused_name(
                *address,
                id,
                &node,
                &refusal.name,
                refusal.reason,
            );
            self.discovery.metrics.refused(refusal.reason);
        }
        Ok(())
    }
}

const NODE_FORM: &str = "the first request must name the pod: node.id is <namespace>/<pod>";
