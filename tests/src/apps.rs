//! Applications to put behind proxies, and clients to put before them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// A running application; dropping it stops it.
pub struct App {
    pub address: SocketAddr,
    requests: Arc<AtomicU64>,
    task: AbortHandle,
}

impl App {
    /// How many requests, or connections, it has seen.
    pub fn seen(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves HTTP/1 and HTTP/2 on one port and says what it was asked: the version,
/// method, path, and the body that came.
pub async fn echo_http() -> io::Result<App> {
    serve(|stream, requests| async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let requests = Arc::clone(&requests);
            async move {
                requests.fetch_add(1, Ordering::Relaxed);
                let line = format!(
                    "{:?} {} {}\n",
                    request.version(),
                    request.method(),
                    request.uri().path()
                );
                let is_head = request.method() == http::Method::HEAD;
                let body = match request.into_body().collect().await {
                    Ok(body) => body.to_bytes(),
                    Err(_) => Bytes::new(),
                };
                // Over HTTP/2 hyper leaves it to us that there is none.
                let answer = if is_head {
                    Vec::new()
                } else {
                    [line.into_bytes(), body.to_vec()].concat()
                };
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
            }
        });
        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        // A client that goes away is no failure of the application's.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

/// Sends back what comes of each request's body as it comes, over HTTP/1 and HTTP/2,
/// with the trailers of a gRPC call that went well.
pub async fn echo_stream() -> io::Result<App> {
    serve(|stream, requests| async move {
        let service = service_fn(move |request: Request<Incoming>| {
            requests.fetch_add(1, Ordering::Relaxed);
            let is_grpc = request.headers().contains_key("te");
            let body = request.into_body();
            async move {
                let mut response = Response::new(Echo { body, is_grpc });
                if is_grpc {
                    let kind = http::HeaderValue::from_static("application/grpc");
                    response.headers_mut().insert("content-type", kind);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        // A client that goes away is no failure of the application's.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

/// A request's body as a response's.
struct Echo {
    body: Incoming,
    /// Whether the trailers are still to come.
    is_grpc: bool,
}

impl Body for Echo {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() && std::mem::take(&mut self.is_grpc) {
            let status = http::HeaderValue::from_static("0");
            let trailers = [(http::HeaderName::from_static("grpc-status"), status)];
            let trailers = Frame::trailers(trailers.into_iter().collect());
            return Poll::Ready(Some(Ok(trailers)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && !self.is_grpc
    }
}

/// Greets, as MySQL and SMTP servers do, before the client has said anything,
/// then sends back what comes.
pub async fn server_first(greeting: &'static [u8]) -> io::Result<App> {
    serve(move |mut stream, requests| async move {
        requests.fetch_add(1, Ordering::Relaxed);
        if stream.write_all(greeting).await.is_ok() {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
    })
    .await
}

/// Hands each connection to `each`.
pub async fn serve<F>(
    each: impl Fn(TcpStream, Arc<AtomicU64>) -> F + Send + 'static,
) -> io::Result<App>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let requests = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&requests);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream, Arc::clone(&counted)));
        }
    });
    Ok(App {
        address,
        requests,
        task: task.abort_handle(),
    })
}

/// What an HTTP client got back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: String,
}

impl Answer {
    /// The reason code, where the proxy answered by itself.
    pub fn reason(&self) -> Option<&str> {
        self.headers.get("bulkhead-reason")?.to_str().ok()
    }
}

/// One request over a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let mut client = Client::connect(address).await?;
    client.send("GET", path, Bytes::new()).await
}

/// An HTTP/1.1 client with one connection.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    authority: String,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            authority: address.to_string(),
        })
    }

    pub async fn send(&mut self, method: &str, path: &str, body: Bytes) -> anyhow::Result<Answer> {
        self.sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .body(Full::new(body))?;
        answer(self.sender.send_request(request).await?).await
    }
}

/// One HTTP/2 request with prior knowledge.
pub async fn get_http2(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("http://{address}{path}")).body(Full::<Bytes>::default())?;
    answer(sender.send_request(request).await?).await
}

async fn answer(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// Sends bytes and reads whatever comes until the other side is done; `None`
/// where it broke the connection off.
pub async fn talk(address: SocketAddr, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut answer = Vec::new();
    let talked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(bytes).await?;
        stream.read_to_end(&mut answer).await
    };
    match talked.await {
        Ok(_) => Ok(Some(answer)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error),
    }
}
