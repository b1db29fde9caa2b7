//! An API server that judges tokens slowly and not always: what a cluster has
//! while all of it starts.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use bulkhead_core::sidecar::TOKEN_AUDIENCE;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

/// How long a review takes once the server has settled, and before.
const REVIEW: Duration = Duration::from_millis(40);
const REVIEW_AT_FIRST: Duration = Duration::from_millis(1500);
const SETTLES_AFTER: Duration = Duration::from_secs(10);
/// One in so many is answered with an error.
const FAILS_ONE_IN: u32 = 10;

/// The server, until the runtime ends.
pub(super) struct Reviewer {
    address: SocketAddr,
    began: Rc<Cell<Instant>>,
}

impl Reviewer {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let began = Rc::new(Cell::new(Instant::now()));
        let count = Rc::new(Cell::new(0_u32));
        let since = Rc::clone(&began);
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (since, count) = (Rc::clone(&since), Rc::clone(&count));
                let answer = service_fn(move |request| {
                    count.set(count.get() + 1);
                    answer(request, since.get(), count.get())
                });
                spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        Ok(Self { address, began })
    }

    /// From now on it is slow, and settles after a while.
    pub(super) fn begin(&self) {
        self.began.set(Instant::now());
    }

    pub(super) fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        })
        .to_string()
    }

    /// The token of a pod, which this server believes.
    pub(super) fn token(pod: usize) -> String {
        // As long as a real one.
        format!("{pod}.{}", "x".repeat(1000))
    }
}

async fn answer(
    request: Request<Incoming>,
    began: Instant,
    number: u32,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_review = request.uri().path().ends_with("/tokenreviews");
    let body = request.into_body().collect().await;
    let text = body.map(http_body_util::Collected::to_bytes);
    let settled = began.elapsed() > SETTLES_AFTER;
    sleep(if settled { REVIEW } else { REVIEW_AT_FIRST }).await;
    let mut response = Response::new(Full::default());
    let review: Value = match text {
        Ok(text) if is_review && !number.is_multiple_of(FAILS_ONE_IN) => {
            serde_json::from_slice(&text).unwrap_or_default()
        }
        _ => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        }
    };
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let pod = token.split('.').next().unwrap_or_default();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "metadata": {},
        "spec": review["spec"],
        "status": {
            "authenticated": true,
            "audiences": [TOKEN_AUDIENCE],
            "user": {
                "username": format!("system:serviceaccount:bench:pod-{pod}"),
                "groups": ["system:serviceaccounts"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": [format!("pod-{pod}-0")],
                    "authentication.kubernetes.io/pod-uid": [format!("uid-{pod}")],
                },
            },
        },
    });
    *response.body_mut() = Full::new(body.to_string().into());
    Ok(response)
}
