//! Connections of the application: HTTP/2, with a bound on everything that it
//! can make the sidecar hold.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::workload_api::{SECURITY_HEADER, SpiffeWorkloadApiServer};
use bulkhead_runtime::drain;
use http::HeaderMap;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::Service as _;

use super::authority;
use super::service::Service;
use super::tokens::Mint;

/// The most connections at once; more wait until one ends. An application has
/// one, or one a process.
const MAX_CONNECTIONS: usize = 32;
/// Calls at once on one connection: an application follows three streams.
const MAX_CALLS: u32 = 16;
/// What gRPC sends before a message.
const MAX_HEADERS: u32 = 8 * 1024;
/// A token to be validated, and room for audiences.
const MAX_MESSAGE: usize = 64 * 1024;
/// How much of an answer waits for an application that does not read.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// An application that does not answer a ping in time is stuck; its place is for
/// another.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is worth a line in the log that there is no room.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// After a failed accept, which is nearly always a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the drain starts.
pub(super) async fn serve<M: Mint>(
    listener: UnixListener,
    service: Service<M>,
    mut drain: drain::Watch,
) {
    let calls = SpiffeWorkloadApiServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(usize::MAX);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut said = None;
    loop {
        if places.available_permits() == 0 {
            say_full(&mut said);
        }
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = drain.started() => return,
        };
        let Ok(place) = place else {
            return; // Never closed.
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = serve_one(stream, calls.clone(), drain.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the Workload API failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One line for all who wait, now and then.
fn say_full(said: &mut Option<Instant>) {
    if said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
        *said = Some(Instant::now());
        tracing::warn!(
            connections = MAX_CONNECTIONS,
            "the application has as many connections to the Workload API as it may; another waits until one ends. Does each of its processes open one, or does it never close them?"
        );
    }
}

async fn serve_one<M: Mint>(
    stream: UnixStream,
    calls: SpiffeWorkloadApiServer<Service<M>>,
    mut drain: drain::Watch,
) {
    let service = service_fn(move |request| answer(calls.clone(), request));
    let (read, write) = stream.into_split();
    let stream = tokio::io::join(authority::Reader::new(read), write);
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CALLS)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Whatever goes wrong here is the application's affair.
        _ = connection => {}
        () = drain.started() => {}
    }
}

async fn answer<M: Mint>(
    mut calls: SpiffeWorkloadApiServer<Service<M>>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<tonic::body::Body>, Infallible> {
    if !has_security_header(request.headers()) {
        let (name, value) = SECURITY_HEADER;
        let refusal = Status::invalid_argument(format!(
            "the metadata {name}: {value} is missing (SPIFFE Workload Endpoint, 3)"
        ));
        return Ok(refusal.into_http());
    }
    calls.call(request).await
}

/// Whether the header is there, once, with the one value that it may have.
fn has_security_header(headers: &HeaderMap) -> bool {
    let (name, expected) = SECURITY_HEADER;
    let mut values = headers.get_all(name).iter();
    values.next().is_some_and(|value| value == expected) && values.next().is_none()
}
