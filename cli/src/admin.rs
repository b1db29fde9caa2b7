//! What a program of Bulkhead says on its admin port, which is on its pod's
//! loopback alone: asked through the API server and the kubelet of its node.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::cluster::Cluster;

/// Pods that are spoken with at the same time. Each is a connection of the API
/// server to a kubelet.
pub(crate) const AT_ONCE: usize = 64;
/// How long one may take. A node that is gone does not answer at all.
pub(crate) const ANSWER: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// Asks for what is at a path.
pub(crate) async fn get<T: DeserializeOwned>(
    cluster: &Cluster,
    (namespace, pod): (&str, &str),
    port: u16,
    path: &str,
) -> anyhow::Result<T> {
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Full::default())?;
    within_time(ask(cluster, (namespace, pod), port, request)).await
}

/// Sends JSON to a path.
pub(crate) async fn post<T: DeserializeOwned>(
    cluster: &Cluster,
    (namespace, pod): (&str, &str),
    port: u16,
    path: &str,
    content: &str,
) -> anyhow::Result<T> {
    let request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(content.to_owned())))?;
    within_time(ask(cluster, (namespace, pod), port, request)).await
}

async fn within_time<T>(answer: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {} s", ANSWER.as_secs()),
    }
}

async fn ask<T: DeserializeOwned>(
    cluster: &Cluster,
    pod: (&str, &str),
    port: u16,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<T> {
    let body = through(cluster, pod, port, async |stream| {
        exchange(TokioIo::new(stream), request).await
    })
    .await?;
    serde_json::from_slice(&body).context("its answer is not what was expected of it")
}

/// Does something over a connection to a port of a pod.
pub(crate) async fn through<T>(
    cluster: &Cluster,
    (namespace, pod): (&str, &str),
    port: u16,
    work: impl AsyncFnOnce(Box<dyn Stream>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let mut forwarder = pods
        .portforward(pod, &[port])
        .await
        .context("the API server does not forward to it")?;
    let refusal = forwarder.take_error(port);
    let stream = forwarder
        .take_stream(port)
        .context("the API server opened no stream")?;
    let refusal = async {
        match refusal {
            Some(refusal) => refusal.await,
            None => None,
        }
    };
    tokio::select! {
        answer = work(Box::new(stream)) => answer,
        Some(refusal) = refusal => Err(anyhow!("its node says: {}", refusal.trim())),
    }
}

/// A connection that was forwarded.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One request on a connection to an admin port.
async fn exchange<T>(connection: T, request: Request<Full<Bytes>>) -> anyhow::Result<Bytes>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(connection)
        .await
        .context("opening a connection to its admin port failed")?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .context("its admin port did not answer")?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        let body = body
            .collect()
            .await
            .map_err(|error| anyhow!("its answer broke off: {error}"))?
            .to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            bail!("it refused with {status}: {}", text.trim());
        }
        Ok(body)
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => {
            ended.context("the connection to its admin port failed")?;
            bail!("its admin port closed the connection")
        }
    }
}
