//! A small HTTP/1.1 server for a process's own ports: metrics, readiness,
//! admin. Whole bodies, no state, and limits that hold against anybody who can
//! reach the port.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use crate::drain;

pub type Request = hyper::Request<Incoming>;
pub type Response = hyper::Response<Full<Bytes>>;
pub use hyper::{Method, StatusCode};

/// The most connections served at once. Further ones wait in the backlog, so a
/// flood of scrapes cannot take the process's memory.
const MAX_CONNECTIONS: usize = 64;
/// The most of them that one address may have. Further ones are closed, so that
/// one stranger cannot keep kubelet waiting until it kills the pod.
const MAX_CONNECTIONS_OF_ONE: usize = 16;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may live in all; scrapers reconnect.
const MAX_AGE: Duration = Duration::from_secs(300);
/// How long to wait after a failed accept, which is nearly always a lack of file
/// descriptors: trying again at once would take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `handler` on a listener until the drain starts, then finishes the
/// requests in hand.
pub async fn serve<H, F>(listener: TcpListener, handler: H, mut drain: drain::Watch)
where
    H: Fn(Request, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let handler = Arc::new(handler);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let clients = Clients::default();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return; // Never closed.
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => {
                // The port is free before anybody hears that the drain is done.
                drop(listener);
                return;
            }
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection on a monitoring port failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(guest) = clients.admit(peer.ip().to_canonical()) else {
            continue;
        };
        let handler = Arc::clone(&handler);
        let mut drain = drain.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = handler(request, peer);
                async move { Ok::<_, Infallible>(response.await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let age = tokio::time::sleep(MAX_AGE);
            // Whatever goes wrong on this connection is the client's affair.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = drain.started() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(HEAD_TIMEOUT, connection).await;
                }
                () = age => {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(HEAD_TIMEOUT, connection).await;
                }
            }
            drop((guest, place));
        });
    }
}

/// [`serve`] on a thread of its own, so that work which takes all the time of
/// the others' threads delays no answer here. The thread ends with the last
/// request in hand after the drain started.
pub fn serve_on_own_thread<H, F>(
    name: &str,
    listener: std::net::TcpListener,
    handler: H,
    drain: drain::Watch,
) -> io::Result<()>
where
    H: Fn(Request, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    listener.set_nonblocking(true)?;
    let (started, start) = std::sync::mpsc::channel();
    let run = move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = match runtime.enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return started.send(Err(error)),
        };
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener);
            let listening = listener.map(|listener| serve_to_the_end(listener, handler, drain));
            match listening {
                Ok(serving) => {
                    started.send(Ok(()))?;
                    serving.await;
                    Ok(())
                }
                Err(error) => started.send(Err(error)),
            }
        })
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)?;
    start.recv().map_err(io::Error::other)?
}

/// [`serve`], and the last connection too.
async fn serve_to_the_end<H, F>(listener: TcpListener, handler: H, drain: drain::Watch)
where
    H: Fn(Request, SocketAddr) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    // The connections hold the handler, and this with it.
    let (alive, mut all_ended) = mpsc::channel::<()>(1);
    let handler = move |request, peer| {
        let _ = &alive;
        handler(request, peer)
    };
    serve(listener, handler, drain).await;
    // Nothing is ever sent; the channel ends with its last sender.
    let _ = all_ended.recv().await;
}

/// How many connections each address has.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Clients {
    /// Counts a connection for as long as the guest lives; nothing where its
    /// address has enough of them.
    fn admit(&self, address: IpAddr) -> Option<Guest> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count == MAX_CONNECTIONS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Guest {
            address,
            clients: self.clone(),
        })
    }
}

struct Guest {
    address: IpAddr,
    clients: Clients,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let counts = &self.clients.0;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// A response with a plain text body.
/// Whether a request was made on this host, by a program and not by a page in a
/// browser: for what is on loopback and not for everybody.
///
/// A page can have a browser send a POST to localhost, which then names the page's
/// origin; and it can reach loopback by a name of its own (DNS rebinding), but
/// cannot make the browser call that localhost.
pub fn is_from_this_host(request: &Request) -> bool {
    let headers = request.headers();
    let host = headers.get("host").and_then(|host| host.to_str().ok());
    let is_local = host.is_some_and(|host| {
        let is_loopback = |address: &SocketAddr| address.ip().is_loopback();
        host == "localhost"
            || host.starts_with("localhost:")
            || host.parse().is_ok_and(|address| is_loopback(&address))
            || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    });
    is_local && !headers.contains_key("origin")
}

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    with_type(status, "text/plain; charset=utf-8", body)
}

/// A response with a JSON body.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    with_type(status, "application/json", body)
}

/// A response with a body of the given media type.
pub fn with_type(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpSocket, TcpStream};

    async fn connect_from(source: &str, server: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
        socket.connect(server).await
    }

    #[tokio::test]
    async fn a_thread_of_its_own_answers_while_this_one_is_busy() {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, watch) = drain::channel();
        let answer = |_, _| async { text(StatusCode::OK, "here\n") };
        serve_on_own_thread("monitoring", listener, answer, watch).unwrap();
        // This blocks the only thread of this runtime until the answer is there.
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("here\n"), "{answer}");
        let outcome = trigger.drain(HEAD_TIMEOUT).await;
        assert_eq!(outcome, drain::Outcome::Finished);
    }

    #[tokio::test]
    async fn one_client_cannot_take_every_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_trigger, watch) = drain::channel();
        let server = tokio::spawn(serve(
            listener,
            |_, _| async { text(StatusCode::OK, "here\n") },
            watch,
        ));
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            held.push(connect_from("127.0.0.1", address).await.unwrap());
        }
        let end = held[MAX_CONNECTIONS_OF_ONE].read(&mut [0]).await;
        assert!(matches!(end, Ok(0)), "one too many is closed: {end:?}");

        let mut other = connect_from("127.0.0.2", address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        other.write_all(request).await.unwrap();
        let mut answer = String::new();
        other.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here\n"), "{answer}");
        // The others were there all the time: none had to wait for a time limit.
        let mut held_still = [0];
        let first = held[0].try_read(&mut held_still);
        assert_eq!(first.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        server.abort();
    }
}
