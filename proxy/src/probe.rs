//! The application's probes, asked for by kubelet and performed on loopback.
//!
//! Kubelet has no certificate, so under STRICT it could not probe the
//! application itself. It asks the proxy, which passes the question on and
//! answers with the application's answer.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bulkhead_core::sidecar::{AppProbe, ProbeHandler, ProbeHeader};
use bulkhead_proto::health::{HealthCheckRequest, HealthClient, ServingStatus};
use bulkhead_runtime::http_server::{Response, StatusCode, text};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

/// Performs a probe within its own time limit.
pub(crate) async fn perform(probe: &AppProbe) -> Response {
    let limit = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
    let performed = async {
        match &probe.handler {
            ProbeHandler::HttpGet {
                path,
                scheme,
                host,
                http_headers,
            } => {
                let https = scheme.as_deref() == Some("HTTPS");
                let path = path.as_deref().unwrap_or("/");
                let host = host.as_deref();
                http_get(probe.port, https, host, path, http_headers).await
            }
            ProbeHandler::TcpSocket { .. } => connect(probe.port).await.map(|_| StatusCode::OK),
            ProbeHandler::Grpc { service } => grpc(probe.port, service.as_deref()).await,
        }
    };
    match tokio::time::timeout(limit, performed).await {
        // Kubelet counts 200 to 399 as healthy; a redirection would make it
        // look for a Location, so a healthy answer is always 200.
        Ok(Ok(status)) if (200..400).contains(&status.as_u16()) => text(StatusCode::OK, "ok\n"),
        Ok(Ok(status)) => text(status, format!("the application answered {status}\n")),
        Ok(Err(problem)) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "probing the application's port {} failed: {problem}\n",
                probe.port
            ),
        ),
        Err(_) => text(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "the application's port {} did not answer within {limit:?}\n",
                probe.port
            ),
        ),
    }
}

async fn connect(port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    TcpStream::connect(address).await.map_err(said)
}

async fn http_get(
    port: u16,
    https: bool,
    host: Option<&str>,
    path: &str,
    headers: &[ProbeHeader],
) -> Result<StatusCode, String> {
    let stream = connect(port).await?;
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let mut request = hyper::Request::get(path)
        .header("user-agent", "kube-probe/bulkhead")
        .header("accept", "*/*")
        .header("connection", "close");
    let mut has_host = false;
    for header in headers {
        has_host |= header.name.eq_ignore_ascii_case("host");
        request = request.header(&header.name, &header.value);
    }
    if !has_host {
        let host = host.map_or_else(|| format!("localhost:{port}"), str::to_owned);
        request = request.header("host", host);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(said)?;
    if https {
        let config = bulkhead_pki::probe::client_config().map_err(said)?;
        let name = rustls::pki_types::ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(said)?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: hyper::Request<Empty<Bytes>>) -> Result<StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(said)?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let answer = tokio::select! {
        answer = answer.as_mut() => answer,
        // An application may answer and close at once: the answer is there.
        _ = connection => answer.await,
    };
    answer.map(|response| response.status()).map_err(said)
}

/// The gRPC health checking protocol, as kubelet speaks it.
async fn grpc(port: u16, service: Option<&str>) -> Result<StatusCode, String> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).map_err(said)?;
    let connector = tower::service_fn(move |_| async move {
        connect(port)
            .await
            .map(TokioIo::new)
            .map_err(std::io::Error::other)
    });
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(said)?;
    let request = HealthCheckRequest {
        service: service.unwrap_or_default().to_owned(),
    };
    let response = HealthClient::new(channel)
        .check(request)
        .await
        .map_err(|status| format!("{}: {}", status.code(), status.message()))?;
    if response.into_inner().status() == ServingStatus::Serving {
        Ok(StatusCode::OK)
    } else {
        Ok(StatusCode::SERVICE_UNAVAILABLE)
    }
}

fn said(problem: impl Display) -> String {
    problem.to_string()
}
