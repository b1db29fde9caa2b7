//! What is behind the proxies, and its clients.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bulkhead_proto::health::{
    Health, HealthCheckRequest, HealthCheckResponse, HealthClient, HealthServer, ServingStatus,
};
use bulkhead_tests::apps::{self, App};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// Serves HTTP/1 and HTTP/2, and repeats what Envoy says of the caller.
pub(crate) async fn tells_its_caller() -> io::Result<App> {
    apps::serve(|stream, requests| async move {
        let service = service_fn(move |request: Request<Incoming>| {
            requests.fetch_add(1, Ordering::Relaxed);
            let caller = request.headers().get("x-forwarded-client-cert").cloned();
            let caller = caller.map_or(Bytes::new(), |caller| {
                Bytes::copy_from_slice(caller.as_bytes())
            });
            async { Ok::<_, Infallible>(Response::new(Full::new(caller))) }
        });
        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        // A client that goes away is no failure of the application's.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

/// A gRPC server. It knows the health of `orders` and of nothing else.
pub(crate) async fn grpc() -> io::Result<App> {
    apps::serve(|stream, requests| async move {
        let service = TowerToHyperService::new(HealthServer::new(Orders(requests)));
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // A client that goes away is no failure of the application's.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

struct Orders(Arc<AtomicU64>);

#[tonic::async_trait]
impl Health for Orders {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        self.0.fetch_add(1, Ordering::Relaxed);
        match request.into_inner().service.as_str() {
            "orders" => Ok(tonic::Response::new(HealthCheckResponse {
                status: ServingStatus::Serving.into(),
            })),
            other => Err(Status::not_found(format!("there is no service {other:?}"))),
        }
    }
}

/// Calls [`grpc`] for an answer and for an error. Both end in a `grpc-status`
/// that travels in HTTP/2 trailers, or, where there is no body, in its headers.
pub(crate) async fn calls_grpc(address: SocketAddr) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let mut client = HealthClient::new(channel);
    let request = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = client.check(request("orders")).await?;
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let error = client.check(request("bills")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "there is no service \"bills\"")
    );
    Ok(())
}

/// Waits for a greeting, then sends `words`, says that it is done, and returns
/// what came back.
pub(crate) async fn converse(
    address: SocketAddr,
    greeting: &[u8],
    words: &[u8],
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let mut greeted = vec![0; greeting.len()];
    stream.read_exact(&mut greeted).await?;
    assert_eq!(greeted, greeting);
    let (mut read, mut write) = stream.split();
    let mut echo = Vec::new();
    // At once: more than fits in the buffers on the way is sent.
    let (sent, received) = tokio::join!(
        async {
            write.write_all(words).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut echo)
    );
    sent?;
    received?;
    Ok(echo)
}
