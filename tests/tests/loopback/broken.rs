//! A connection that breaks on one side breaks on the other. At an orderly end,
//! half of an answer would be taken for all of it.

use std::io;
use std::time::Duration;

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::pair::Pair;

/// Closes so that the peer gets a reset, as of a process that is killed while
/// bytes for it are under way.
fn break_off(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Waits for a question, and breaks off after half of the answer.
async fn gives_half_of(answer: &'static [u8]) -> apps::App {
    apps::serve(move |mut stream, _| async move {
        stream.read_u8().await.unwrap();
        stream.write_all(answer).await.unwrap();
        break_off(stream);
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn half_of_a_servers_bytes_do_not_end_as_if_they_were_all() {
    let app = gives_half_of(b"half of").await;
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    for address in [pair.dial(), pair.server_port()] {
        assert_eq!(apps::talk(address, b"\0").await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_client_of_an_application_that_is_gone_is_reset() {
    let app = apps::server_first(b"").await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    drop(app);
    for address in [pair.dial(), pair.server_port()] {
        assert_eq!(apps::talk(address, b"\0").await.unwrap(), None);
    }
}

#[tokio::test]
async fn half_of_a_response_that_ends_with_its_connection_does_not_end_as_if_it_were_all() {
    let app = gives_half_of(b"HTTP/1.0 200 OK\r\n\r\nhalf of").await;
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    for address in [pair.dial(), pair.server_port()] {
        let request = b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n";
        assert_eq!(apps::talk(address, request).await.unwrap(), None);
    }
}

#[tokio::test]
async fn half_of_a_clients_bytes_do_not_end_as_if_they_were_all() {
    let (ends, mut ended) = mpsc::unbounded_channel();
    let app = apps::serve(move |mut stream, _| {
        let ends = ends.clone();
        async move {
            stream.read_u8().await.unwrap();
            stream.write_u8(0).await.unwrap();
            let end = stream.read_to_end(&mut Vec::new()).await;
            ends.send(end.map_err(|error| error.kind())).unwrap();
        }
    })
    .await
    .unwrap();
    let pair = Pair::start(app.address, MtlsMode::Permissive).await;
    for address in [pair.dial(), pair.server_port()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_u8(0).await.unwrap();
        stream.read_u8().await.unwrap();
        break_off(stream);
        let end = ended.recv().await.unwrap();
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    }
}
