//! An HTTP/1.1 client, and a look at metrics.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long whatever is awaited may take on loopback.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// A connection that is kept between requests.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The reason code, where a proxy answered by itself.
    pub(super) reason: Option<String>,
    pub(super) body: String,
}

impl Answer {
    /// In a few words, for people.
    pub(super) fn shown(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} {reason}", self.status),
            None => format!("{} {:?}", self.status, self.body.trim_end()),
        }
    }
}

impl Connection {
    pub(super) async fn to(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connecting to {address} failed"))?;
        Self::over(stream, address.to_string()).await
    }

    /// Speaks HTTP over a connection that is there already.
    pub(super) async fn over<S>(stream: S, host: String) -> anyhow::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host })
    }

    /// Whether another request can be sent; it cannot where the server has
    /// closed the connection.
    pub(super) async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        let request = Request::get(path);
        self.send(request.header("host", &self.host).body(Full::default())?)
            .await
    }

    pub(super) async fn post(
        &mut self,
        path: &str,
        media_type: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let request = Request::post(path)
            .header("host", &self.host)
            .header("content-type", media_type);
        self.send(request.body(Full::new(body.into()))?).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let exchange = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let reason = head.headers.get("bulkhead-reason");
            Ok(Answer {
                status: head.status.as_u16(),
                reason: reason.and_then(|code| Some(code.to_str().ok()?.to_owned())),
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        timeout(PATIENCE, exchange)
            .await
            .with_context(|| format!("{} did not answer within {PATIENCE:?}", self.host))?
    }
}

/// One request over a connection of its own.
pub(super) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    Connection::to(address).await?.get(path).await
}

/// A line of `/metrics`: its labels as text, and its value.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) line: String,
    pub(super) value: f64,
}

/// The sum of the metrics that have this name and all of these labels.
pub(super) async fn metric(
    address: SocketAddr,
    name: &str,
    labels: &[&str],
) -> anyhow::Result<f64> {
    let samples = samples(address, name, labels).await?;
    Ok(samples.iter().map(|sample| sample.value).sum())
}

/// Waits for a metric to exceed a value: clients have their answers a moment
/// before they are counted. Returns the first line that has the labels.
pub(super) async fn metric_exceeds(
    address: SocketAddr,
    name: &str,
    labels: &[&str],
    value: f64,
) -> anyhow::Result<Sample> {
    let exceeds = async {
        loop {
            let mut samples = samples(address, name, labels).await?;
            let sum: f64 = samples.iter().map(|sample| sample.value).sum();
            if sum > value {
                return Ok(samples.swap_remove(0));
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    timeout(PATIENCE, exceeds).await.unwrap_or_else(|_| {
        Err(anyhow::anyhow!(
            "expected {name} with {} to exceed {value}; it did not within {PATIENCE:?}",
            labels.join(", ")
        ))
    })
}

async fn samples(address: SocketAddr, name: &str, labels: &[&str]) -> anyhow::Result<Vec<Sample>> {
    let text = get(address, "/metrics").await?.body;
    let lines = text
        .lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)));
    Ok(lines
        .filter_map(|line| {
            let value = line.rsplit_once(' ')?.1.parse().ok()?;
            let line = line.to_owned();
            Some(Sample { line, value })
        })
        .collect())
}
