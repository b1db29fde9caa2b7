//! gRPC with as little of it as there must be: unary calls over HTTP/2 whose
//! messages nobody decodes.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::WithTrailers;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use crate::http1::connect;
use crate::load::Caller;
use crate::stillness::Stillness;

/// What an HTTP/2 connection begins with (RFC 9113, 3.4); no HTTP/1 request does.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// The flag and the length before a message's bytes.
const MESSAGE_HEAD: usize = 5;
/// A response's message; the request's is a tenth of it.
const ANSWER: usize = 1024;
const QUESTION: usize = 100;

/// Runs HTTP/2's tasks on this thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// Makes one call after the other, among others' on the same connection.
pub(crate) struct Unary {
    sender: SendRequest<Full<Bytes>>,
    authority: SocketAddr,
    question: Bytes,
}

impl Unary {
    /// `streams` callers on each of `connections`.
    pub(crate) async fn connect(
        address: SocketAddr,
        connections: usize,
        streams: usize,
    ) -> Result<Vec<Self>> {
        let mut callers = Vec::new();
        for _ in 0..connections {
            let io = TokioIo::new(connect(address).await?);
            let (sender, connection) = http2::Builder::new(Local)
                .timer(TokioTimer::new())
                .handshake::<_, Full<Bytes>>(io)
                .await?;
            // It ends when the last caller is gone; calls say what went wrong.
            spawn_local(connection);
            callers.extend((0..streams).map(|_| Self {
                sender: sender.clone(),
                authority: address,
                question: message(QUESTION),
            }));
        }
        Ok(callers)
    }
}

impl Caller for Unary {
    async fn call(&mut self) -> Result<()> {
        let request = Request::post(format!("http://{}/bench.Items/Get", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(self.question.clone()))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let answer = response.into_body().collect().await?;
        let status = answer
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"));
        let status = status.context("a call ended without a status")?;
        ensure!(status == "0", "a call ended with status {status:?}");
        let length = answer.to_bytes().len();
        ensure!(
            length == MESSAGE_HEAD + ANSWER,
            "{length} bytes were answered"
        );
        Ok(())
    }
}

/// Serves one connection of HTTP/2: whatever it is asked, it answers a kilobyte.
pub(crate) async fn serve(stream: TcpStream, stillness: Stillness) -> Result<()> {
    let answer = message(ANSWER);
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, stillness) = (answer.clone(), stillness.clone());
        async move {
            request.into_body().collect().await?;
            stillness.reached().await;
            anyhow::Ok(respond(answer)?)
        }
    });
    hyper::server::conn::http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

type Trailers = std::future::Ready<Option<Result<HeaderMap, Infallible>>>;

fn respond(answer: Bytes) -> Result<Response<WithTrailers<Full<Bytes>, Trailers>>, http::Error> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let trailers = std::future::ready(Some(Ok(trailers)));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(Full::new(answer).with_trailers(trailers))
}

fn message(length: usize) -> Bytes {
    let mut message = vec![0];
    message.extend_from_slice(&(length as u32).to_be_bytes());
    message.resize(MESSAGE_HEAD + length, b'x');
    message.into()
}
