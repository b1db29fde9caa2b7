//! Kubelet's probes under STRICT: asked of the proxy, answered by the
//! application.

use bulkhead_core::policy::MtlsMode;
use bulkhead_core::sidecar::{AppProbe, ProbeHandler, ProbeHeader};
use bulkhead_proto::health::{
    Health, HealthCheckRequest, HealthCheckResponse, HealthServer, ServingStatus,
};
use bulkhead_tests::apps;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tonic::{Request, Response, Status};

use crate::pair::Pair;

fn probe(handler: ProbeHandler, port: u16) -> AppProbe {
    AppProbe {
        handler,
        port,
        port_name: None,
        timeout_seconds: 5,
        original: None,
    }
}

fn http_get(path: &str) -> ProbeHandler {
    ProbeHandler::HttpGet {
        path: Some(path.to_owned()),
        scheme: None,
        host: None,
        http_headers: vec![ProbeHeader {
            name: "x-probe".into(),
            value: "yes".into(),
        }],
    }
}

/// Asks the status port, as kubelet does.
async fn status_of(path: &str, probe: AppProbe) -> u16 {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start_with(app.address, |server| {
        server.mode = MtlsMode::Strict;
        server.probes.insert(path.to_owned(), probe);
    })
    .await;
    apps::get(pair.server.addresses.status, path)
        .await
        .unwrap()
        .status
}

#[tokio::test]
async fn an_http_probe_has_the_applications_answer() {
    let healthy = apps::serve(|mut stream, _| async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut head = [0; 1024];
        let count = stream.read(&mut head).await.unwrap_or(0);
        let head = String::from_utf8_lossy(&head[..count]).into_owned();
        let good = head.starts_with("GET /healthz?full=1 ") && head.contains("x-probe: yes");
        let status = if good { "302 Found" } else { "500 Error" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
    .unwrap();
    let port = healthy.address.port();
    let path = "/app-health/app/readyz";
    assert_eq!(
        status_of(path, probe(http_get("/healthz?full=1"), port)).await,
        200
    );
    assert_eq!(status_of(path, probe(http_get("/other"), port)).await, 500);
}

#[tokio::test]
async fn a_tcp_probe_tells_whether_the_port_is_open() {
    let app = apps::server_first(b"").await.unwrap();
    let path = "/app-health/app/livez";
    let open = probe(ProbeHandler::TcpSocket { host: None }, app.address.port());
    assert_eq!(status_of(path, open.clone()).await, 200);
    drop(app);
    assert_eq!(status_of(path, open).await, 503);
}

struct Serving;

#[tonic::async_trait]
impl Health for Serving {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = match request.into_inner().service.as_str() {
            "well" => ServingStatus::Serving,
            "ill" => ServingStatus::NotServing,
            _ => return Err(Status::not_found("no such service")),
        };
        let status = status.into();
        Ok(Response::new(HealthCheckResponse { status }))
    }
}

#[tokio::test]
async fn a_grpc_probe_speaks_the_health_protocol() {
    let app = apps::serve(|stream, _| async move {
        let service = TowerToHyperService::new(HealthServer::new(Serving));
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
    .unwrap();
    let path = "/app-health/app/startupz";
    for (service, expected) in [("well", 200), ("ill", 503), ("unknown", 503)] {
        let service = Some(service.to_owned());
        let probe = probe(ProbeHandler::Grpc { service }, app.address.port());
        assert_eq!(status_of(path, probe).await, expected);
    }
}

#[tokio::test]
async fn a_probe_that_nobody_set_up_is_not_found() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let answer = apps::get(pair.server.addresses.status, "/app-health/app/readyz")
        .await
        .unwrap();
    assert_eq!((answer.status, app.seen()), (404, 0));
}
