//! What a proxy tells control of the trust that it holds.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bulkhead_core::held::Held;
use bulkhead_core::protocol::Protocol;
use bulkhead_proto::xds::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer, DeltaDiscoveryRequest,
    DeltaDiscoveryResponse, Request as DiscoveryRequest,
};
use bulkhead_tests::subscriber::certificate;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status, Streaming};

use super::authority::RotatingAuthority;
use super::{proxy, renew, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_is_told_what_a_proxy_holds_at_once_and_whenever_it_changes() {
    let authority = RotatingAuthority::start().await;
    let control = Listener::start(&authority).await;
    let mut config = authority.workload("shop", "cart");
    config.pod_name = "cart-0".to_owned();
    config.control_address = control.address.to_string();
    let proxy = proxy(config).await;
    let holds = || proxy.latest.get().unwrap().held();
    let is_told = || control.heard().last() == Some(&holds());

    until("control is told with the first request", is_told).await;
    assert_eq!(control.streams(), 1);
    let first = holds();

    authority.publish();
    until("the new root is held", || holds().bundle != first.bundle).await;
    until("control is told of the new root", is_told).await;
    let second = holds();
    assert_eq!(second.signing_root, first.signing_root);

    authority.activate();
    renew(&proxy).await;
    until("control is told who signs", is_told).await;
    assert_ne!(holds().signing_root, first.signing_root);
    assert_eq!(holds().bundle, second.bundle, "the same roots");
    assert_eq!(control.streams(), 1, "on one and the same stream");
}

/// A control that hears, and says nothing.
struct Listener {
    address: SocketAddr,
    heard: Heard,
    task: AbortHandle,
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    streams: usize,
    held: Vec<Held>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    async fn start(authority: &RotatingAuthority) -> Self {
        let settings = authority.settings("bulkhead-system", "bulkhead-control");
        let credentials = certificate(settings).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Heard::default();
        let service = heard.clone();
        let serve = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(credentials.server_config(Protocol::Grpc));
                let service = service.clone();
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.unwrap();
                    let calls = service_fn(move |request: http::Request<Incoming>| {
                        let mut calls = AggregatedDiscoveryServiceServer::new(service.clone());
                        async move { Ok::<_, Infallible>(calls.call(request).await.unwrap()) }
                    });
                    let _ = http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), calls)
                        .await;
                });
            }
        };
        Self {
            address,
            heard,
            task: tokio::spawn(serve).abort_handle(),
        }
    }

    fn heard(&self) -> Vec<Held> {
        self.heard.0.lock().unwrap().held.clone()
    }

    fn streams(&self) -> usize {
        self.heard.0.lock().unwrap().streams
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Heard {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut requests = request.into_inner();
        let said = Arc::clone(&self.0);
        said.lock().unwrap().streams += 1;
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let request = DiscoveryRequest::try_from(request).unwrap();
                said.lock().unwrap().held.extend(request.held);
            }
            drop(answers);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
