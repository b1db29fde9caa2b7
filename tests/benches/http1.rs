//! HTTP/1.1 with as little of it as there must be, so that what is measured is
//! not this: requests that were written beforehand, responses with a length.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use crate::grpc;
use crate::load::Caller;
use crate::stillness::Stillness;

/// What ends a head.
const END: &[u8] = b"\r\n\r\n";
/// Room for a whole request or response of these benchmarks.
const ROOM: usize = 16 * 1024;
/// What the application answers with.
const BODY: [u8; 1024] = [b'x'; 1024];
/// What is asked for a body that has no end, so to speak.
pub(crate) const BULK_PATH: &str = "/bulk";
const BULK_LENGTH: u64 = 1 << 50;
/// How much of it is written, and read, at a time.
const BULK_PIECE: usize = 64 * 1024;

/// A kept connection that sends the same request again and again.
pub(crate) struct Kept<S> {
    stream: S,
    request: Arc<[u8]>,
    response: Vec<u8>,
}

impl Kept<TcpStream> {
    pub(crate) async fn connect(address: SocketAddr, request: &Arc<[u8]>) -> Result<Self> {
        Ok(Self::over(connect(address).await?, request))
    }
}

impl<S> Kept<S> {
    pub(crate) fn over(stream: S, request: &Arc<[u8]>) -> Self {
        Self {
            stream,
            request: Arc::clone(request),
            response: Vec::with_capacity(ROOM),
        }
    }

    pub(crate) fn into_stream(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Kept<S> {
    /// Sends the request, and returns the whole response.
    pub(crate) async fn answer(&mut self) -> Result<&[u8]> {
        self.stream.write_all(&self.request).await?;
        self.stream.flush().await?;
        self.response.clear();
        let head = loop {
            let read = self.stream.read_buf(&mut self.response).await?;
            ensure!(read > 0, "the server closed the connection");
            if let Some(end) = find_end(&self.response) {
                break end;
            }
        };
        let length = head + content_length(&self.response[..head])?;
        while self.response.len() < length {
            let read = self.stream.read_buf(&mut self.response).await?;
            ensure!(
                read > 0,
                "the server closed the connection within a response"
            );
        }
        Ok(&self.response)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Caller for Kept<S> {
    async fn call(&mut self) -> Result<()> {
        self.answer().await.map(|_| ())
    }
}

/// Makes a connection for each request.
pub(crate) struct Fresh {
    pub(crate) address: SocketAddr,
    /// It says `connection: close`.
    pub(crate) request: Arc<[u8]>,
}

impl Caller for Fresh {
    async fn call(&mut self) -> Result<()> {
        let mut connection = Kept::connect(self.address, &self.request).await?;
        connection.answer().await?;
        // The server closes, and keeps the port from being used again for a
        // while: its ports are not the ones that run out.
        let read = connection.stream.read_buf(&mut connection.response).await?;
        ensure!(read == 0, "there is more after the response");
        Ok(())
    }
}

/// Receives one response that does not end; each call is a mebibyte of it.
pub(crate) struct Bulk {
    stream: TcpStream,
    piece: Vec<u8>,
}

impl Bulk {
    pub(crate) const CALL: usize = 1 << 20;

    /// `request` asks for [`BULK_PATH`].
    pub(crate) async fn connect(address: SocketAddr, request: &[u8]) -> Result<Self> {
        let mut stream = connect(address).await?;
        stream.write_all(request).await?;
        let piece = vec![0; BULK_PIECE];
        Ok(Self { stream, piece })
    }
}

impl Caller for Bulk {
    async fn call(&mut self) -> Result<()> {
        let mut received = 0;
        while received < Self::CALL {
            let read = self.stream.read(&mut self.piece).await?;
            ensure!(read > 0, "the server ended a response that has no end");
            received += read;
        }
        Ok(())
    }
}

pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn find_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(END.len()).position(|window| window == END)?;
    Some(end + END.len())
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is: {head}");
    for line in head.lines() {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return Ok(value.trim().parse()?);
        }
    }
    bail!("there is no length in: {head}")
}

/// Starts the application: whatever it is asked, by HTTP/1.1 or gRPC, it answers a
/// kilobyte, unless the path is [`BULK_PATH`]; each answer waits for stillness.
pub(crate) async fn start_app(stillness: Stillness) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        BODY.len()
    );
    let response: Arc<[u8]> = [head.as_bytes(), &BODY].concat().into();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that goes away is no failure of the application's.
            spawn_local(serve(stream, Arc::clone(&response), stillness.clone()));
        }
    });
    Ok(address)
}

async fn serve(mut stream: TcpStream, response: Arc<[u8]>, stillness: Stillness) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut beginning = [0; grpc::PREFACE.len()];
    // Nobody sends so little that it would be split.
    stream.peek(&mut beginning).await?;
    if beginning == grpc::PREFACE {
        return grpc::serve(stream, stillness).await;
    }
    let mut request = Vec::with_capacity(ROOM);
    while stream.read_buf(&mut request).await? > 0 {
        if let Some(end) = find_end(&request) {
            if request[b"GET ".len()..].starts_with(BULK_PATH.as_bytes()) {
                return write_without_end(stream).await;
            }
            let closes = asks_to_close(&request[..end]);
            request.drain(..end);
            stillness.reached().await;
            stream.write_all(&response).await?;
            if closes {
                stream.shutdown().await?;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Answers until the client goes away.
async fn write_without_end(mut stream: TcpStream) -> Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BULK_LENGTH}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let piece = vec![b'x'; BULK_PIECE];
    loop {
        stream.write_all(&piece).await?;
    }
}

fn asks_to_close(head: &[u8]) -> bool {
    let close = b"connection: close";
    head.windows(close.len())
        .any(|window| window.eq_ignore_ascii_case(close))
}
