//! HTTP requests, and what became of each.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::POD_HEADER;
use crate::counts::Outcome;

/// How much of an answer is kept, in characters.
const SAID: usize = 300;

/// How requests are made.
#[derive(Args, Clone, Debug)]
pub struct RequestOptions {
    /// A header to send, `NAME:VALUE`.
    #[arg(long = "header", value_name = "NAME:VALUE", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// A body to send, by POST.
    #[arg(long, value_name = "TEXT")]
    pub body: Option<String>,
    /// HTTP/2 without TLS, with prior knowledge.
    #[arg(long)]
    pub h2c: bool,
    /// A connection for each request.
    #[arg(long)]
    pub new_connections: bool,
    /// A request that takes longer has failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub timeout: f64,
}

impl RequestOptions {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').context("there is no colon in it")?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

/// Sends the same request again and again.
#[derive(Debug)]
pub struct Client {
    client: legacy::Client<HttpConnector, Full<Bytes>>,
    request: Request<Full<Bytes>>,
    within: Duration,
}

/// A whole answer.
pub type Answer = Response<Bytes>;

impl Client {
    /// # Errors
    /// The URL is none that can be asked.
    pub fn new(url: &str, options: &RequestOptions) -> Result<Self> {
        let uri: Uri = url
            .parse()
            .with_context(|| format!("reading {url} as a URL"))?;
        ensure!(
            uri.scheme_str() == Some("http") && uri.host().is_some(),
            "{url} is not of the form http://HOST:PORT/PATH"
        );
        let body = options.body.clone();
        let method = body.as_ref().map_or(Method::GET, |_| Method::POST);
        let mut request = Request::new(Full::new(Bytes::from(body.unwrap_or_default())));
        *request.uri_mut() = uri;
        *request.method_mut() = method;
        request
            .headers_mut()
            .extend(options.headers.iter().cloned());
        let mut client = legacy::Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).http2_only(options.h2c);
        if options.new_connections {
            client.pool_max_idle_per_host(0);
        }
        Ok(Self {
            client: client.build(HttpConnector::new()),
            request,
            within: options.timeout(),
        })
    }

    /// # Errors
    /// No whole answer came in time: a word for what went wrong, and the error.
    pub async fn answer(&self) -> Result<Answer, (&'static str, String)> {
        timeout(self.within, self.whole_answer())
            .await
            .unwrap_or_else(|_| {
                Err((
                    "timeout",
                    format!("no whole answer within {:?}", self.within),
                ))
            })
    }

    async fn whole_answer(&self) -> Result<Answer, (&'static str, String)> {
        let answer = self.client.request(self.request.clone()).await;
        let (head, body) = answer
            .map_err(|error| {
                let how = if error.is_connect() {
                    "connect"
                } else {
                    "broken"
                };
                (how, format!("{:#}", anyhow::Error::new(error)))
            })?
            .into_parts();
        let body = body.collect().await;
        let body = body.map_err(|error| ("broken", format!("{:#}", anyhow::Error::new(error))))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    pub(super) async fn request(&self) -> Outcome {
        match self.answer().await {
            Ok(answer) => Outcome::Answered {
                status: answer.status().as_u16(),
                by: answer
                    .headers()
                    .get(POD_HEADER)
                    .map(|pod| String::from_utf8_lossy(pod.as_bytes()).into_owned()),
                said: String::from_utf8_lossy(answer.body())
                    .chars()
                    .take(SAID)
                    .collect(),
            },
            Err((how, error)) => Outcome::Failed { how, error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_a_name_and_a_value() {
        let (name, value) = header("Host: shop.example").unwrap();
        assert_eq!(
            (name.as_str(), value.to_str().unwrap()),
            ("host", "shop.example")
        );
        assert!(header("no colon").is_err());
        assert!(header("bad name: x").is_err());
    }
}
