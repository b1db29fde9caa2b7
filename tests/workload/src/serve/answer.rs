//! What HTTP requests are answered with:
//!
//! | path | answer |
//! |---|---|
//! | `/health` | 200, or 503 while the application is still starting |
//! | `/status/NNN` | this status |
//! | `/slow?ms=N` | what was seen, after so many milliseconds |
//! | `/echo` | the body that came |
//! | `/grpc.health.v1.Health/Check` | gRPC's health service |
//! | all else | what was seen, as JSON |
//!
//! Every answer has the header `workload-pod`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};

use crate::load::POD_HEADER;

/// The longest `/slow`.
const SLOWEST: Duration = Duration::from_secs(60);

/// `HealthCheckResponse { status: SERVING }` and `NOT_SERVING`, each behind gRPC's
/// prefix: not compressed, two bytes long. Field 1, a varint.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 1];
const NOT_SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 2];

/// Who answers.
#[derive(Debug)]
pub(super) struct About {
    pod: HeaderValue,
    healthy_from: Instant,
}

impl About {
    /// A kubelet gives a pod's name to its containers as the host's name.
    pub(super) fn this_pod(healthy_from: Instant) -> Result<Self> {
        let path = "/proc/sys/kernel/hostname";
        let name = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let pod = HeaderValue::from_str(name.trim()).context("the host's name is no text")?;
        Ok(Self { pod, healthy_from })
    }

    pub(super) fn pod(&self) -> &str {
        self.pod.to_str().expect("it was made of a string")
    }

    fn is_healthy(&self) -> bool {
        Instant::now() >= self.healthy_from
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

pub(super) async fn answer(
    about: Arc<About>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path();
    let mut response = if path == "/health" {
        text(health(&about), "health\n")
    } else if path == "/grpc.health.v1.Health/Check" {
        grpc_health(&about)
    } else if path == "/echo" {
        Response::new(request.into_body().boxed())
    } else {
        let status = path.strip_prefix("/status/").map(status_of);
        if path == "/slow" {
            sleep(delay(request.uri().query())).await;
        }
        seen(&about, peer, request, status.unwrap_or(StatusCode::OK)).await
    };
    response.headers_mut().insert(POD_HEADER, about.pod.clone());
    Ok(response)
}

fn health(about: &About) -> StatusCode {
    if about.is_healthy() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// The status that a path asks for. Below 200 are none that end a request.
fn status_of(text: &str) -> StatusCode {
    let status = text.parse().ok().filter(|status| *status >= 200);
    status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::BAD_REQUEST)
}

fn delay(query: Option<&str>) -> Duration {
    let milliseconds = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find_map(|pair| pair.strip_prefix("ms=")?.parse().ok());
    Duration::from_millis(milliseconds.unwrap_or_default()).min(SLOWEST)
}

async fn seen(
    about: &About,
    peer: SocketAddr,
    request: Request<Incoming>,
    status: StatusCode,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return text(
                StatusCode::BAD_REQUEST,
                &format!("the body broke off: {error}\n"),
            );
        }
    };
    let seen = serde_json::json!({
        "pod": about.pod(),
        "peer": SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        "protocol": format!("{:?}", head.version),
        "method": head.method.as_str(),
        "uri": head.uri.to_string(),
        "headers": headers(&head.headers),
        "body_bytes": body.len(),
    });
    let mut response = text(status, &format!("{seen}\n"));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Header values by name; several of one name are joined as RFC 9110 5.3 says.
pub(crate) fn headers(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let mut by_name = BTreeMap::<_, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        by_name
            .entry(name.as_str())
            .and_modify(|values| *values = format!("{values}, {value}"))
            .or_insert_with(|| value.into_owned());
    }
    by_name
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}

/// <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>: what a
/// kubelet's gRPC probe calls.
fn grpc_health(about: &About) -> Response<Body> {
    let message = if about.is_healthy() {
        SERVING
    } else {
        NOT_SERVING
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(message)).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body.map_err(|never: Infallible| match never {}).boxed());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_asks_for_a_status_that_ends_a_request() {
        let asked = ["204", "503", "100", "99", "1000", "ok"].map(|text| status_of(text).as_u16());
        assert_eq!(asked, [204, 503, 400, 400, 400, 400]);
    }

    #[test]
    fn an_answer_can_be_slow_but_not_for_ever() {
        let delays = [
            Some("ms=250"),
            Some("x=1&ms=5"),
            Some("ms="),
            None,
            Some("ms=86400000"),
        ];
        let expected = [250, 5, 0, 0, 60_000].map(Duration::from_millis);
        assert_eq!(delays.map(delay), expected);
    }
}
