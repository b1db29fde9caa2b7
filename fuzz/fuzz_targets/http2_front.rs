//! An HTTP/2 connection from anybody who can reach a proxy, to its end.

#![no_main]

use std::convert::Infallible;
use std::time::Duration;

use bulkhead_proxy::fuzzing::serve_http2;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// Longer than any time that the proxy gives a client, on a clock that only runs while
/// everybody waits.
const FOR_EVER: Duration = Duration::from_secs(3600);
/// On the same clock.
const A_MOMENT: Duration = Duration::from_millis(1);

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing");
    let connection = async { timeout(FOR_EVER, exchange(bytes.to_vec())).await };
    let ended = LocalSet::new().block_on(&runtime, connection);
    ended.expect("a client that has left is not waited for");
});

/// What a client says that then leaves, and what the proxy makes of it.
async fn exchange(said: Vec<u8>) {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let client = async move {
        // The proxy may have had enough before the end.
        let _ = client.write_all(&said).await;
        let mut answers = Vec::new();
        // Until nobody has anything to do any more.
        let _ = timeout(A_MOMENT, client.read_to_end(&mut answers)).await;
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut answers).await;
    };
    // Bytes that break the protocol are the client's fault, which is an error.
    let (_, ()) = tokio::join!(serve_http2(server, application), client);
}

/// A connection to an application that says what it was asked.
fn application() -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let service = service_fn(answer);
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(far), service)
            .await;
    });
    near
}

async fn answer(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    // Whatever reaches an application says once what policy was decided by.
    let uri = request.uri();
    assert!(
        uri.authority()
            .is_some_and(|host| !host.as_str().contains('@')),
        "{uri}"
    );
    if request.method() != Method::CONNECT {
        assert!(uri.path().starts_with('/') || uri.path() == "*", "{uri}");
    }
    let headers = request.headers();
    for host in headers.get_all(HOST) {
        let authority = uri.authority().expect("it was looked at above");
        assert!(
            host.as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes()),
            "{host:?} and {uri}"
        );
    }
    assert!(headers.get_all(CONTENT_LENGTH).iter().count() <= 1);
    for (name, value) in headers {
        assert!(
            !value.as_bytes().iter().any(|byte| b"\r\n\0".contains(byte)),
            "{name}: {value:?}"
        );
    }
    // Cut off where the client left in the middle.
    let _ = request.into_body().collect().await;
    Ok(Response::new(Empty::new()))
}
