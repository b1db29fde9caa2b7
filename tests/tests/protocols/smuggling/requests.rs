//! HTTP/1 requests.

use std::net::SocketAddr;

use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_proxy::app::Proxy;
use bulkhead_tests::metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::answers::{self, Answer};
use super::corpus::{self, Case};
use super::servers::{Read, Recorder};
use crate::pair::Pair;
use crate::programs::PATIENCE;

const MARKER: &[u8] = b"GET /marker HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
const AFTER: &[u8] = b"GET /after HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn nginx_reads_each_request_as_the_proxy_did_or_not_at_all() {
    no_request_is_read_in_two_ways(Recorder::nginx().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_reads_each_request_as_the_proxy_did_or_not_at_all() {
    no_request_is_read_in_two_ways(Recorder::node().await).await;
}

/// Each case, by way of both proxies and to the server's proxy alone: an attacker need
/// not have a proxy.
async fn no_request_is_read_in_two_ways(server: Recorder) {
    let cases = corpus::read(include_str!("requests.txt"));
    let pair = pair(server.http1, MtlsMode::Strict).await;
    let client = pair.client_of(Protocol::Http1).await;
    let alone = self::pair(server.http1, MtlsMode::Permissive).await;
    let mut before = 0;
    let mut wrong = Vec::new();
    for (way, address, proxy) in [
        ("both proxies", client.addresses.outbound[0], &pair.server),
        ("the server's proxy", alone.server_port(), &alone.server),
    ] {
        let mut served = 0;
        for case in &cases {
            let answers = send(
                address,
                &[&case.bytes()[..], MARKER].concat(),
                &case.expected,
            )
            .await;
            // What could still be on its way has come when this one has.
            let after = send(address, AFTER, &[]).await;
            assert_eq!(after[0].status, 200, "{}", case.name);
            let mut read = server.read(before, "GET /after").await;
            before += read.len();
            let last = read.pop().unwrap();
            let is_in_order = last.is("GET /after");
            read.retain(Read::is_served);
            served += read.len() + 1;
            if !is_in_order || !is_as_expected(case, &answers, &read, server.name) {
                let read: Vec<_> = read.iter().map(Read::to_string).collect();
                wrong.push(format!(
                    "{} ({way}):\n  answers {answers:?}\n  read {read:?}",
                    case.name
                ));
            }
        }
        counted(proxy, served).await;
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases, before {}:\n{}",
        wrong.len(),
        cases.len() * 2,
        server.name,
        wrong.join("\n")
    );
}

async fn pair(app: SocketAddr, mode: MtlsMode) -> Pair {
    Pair::start_with(app, |server| {
        server.mode = mode;
        server.port_protocols.insert(app.port(), Protocol::Http1);
    })
    .await
}

/// As many requests as the server has answered, the proxy has seen answered: none that
/// it did not know of.
async fn counted(proxy: &Proxy, served: usize) {
    let answered = ["reporter=\"destination\"", "response_code=\"200\""];
    let name = "istio_requests_total";
    metrics::become_sum(&proxy.monitoring, name, &answered, served as f64).await;
}

/// Sends, ends the sending side, and reads all that comes.
async fn send(address: SocketAddr, bytes: &[u8], expected: &[String]) -> Vec<Answer> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut came = Vec::new();
    let talk = async {
        // A proxy that has refused the beginning may not hear the rest.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        stream.read_to_end(&mut came).await
    };
    let ended = tokio::time::timeout(PATIENCE, talk).await;
    let _ = ended.unwrap_or_else(|_| panic!("no end of {}", bytes.escape_ascii()));
    answers::read(&came, |place| {
        let line = expected.get(place);
        line.is_some_and(|line| line.starts_with("HEAD "))
    })
}

fn is_as_expected(case: &Case, answers: &[Answer], read: &[Read], server: &str) -> bool {
    let mut expected: Vec<&str> = case.expected.iter().map(String::as_str).collect();
    let refusal = expected
        .last()
        .and_then(|line| line.strip_prefix("refused "));
    let is_closed = expected.last() == Some(&"closed");
    if refusal.is_some() || is_closed {
        expected.pop();
    } else {
        expected.push("GET /marker host=x body=");
    }
    let is_refused_as_expected = match refusal {
        Some(refusal) => answers.last().is_some_and(|last| {
            format!("{} {}", last.status, last.reason.as_deref().unwrap_or("-")) == refusal
        }),
        None => answers.iter().all(|answer| answer.reason.is_none()),
    };
    if case.except.iter().any(|name| name == server) {
        // Nothing but what was expected, though not all of it.
        let mut left = expected.iter();
        return read.iter().all(|read| left.any(|line| read.is(line)));
    }
    let count = expected.len() + usize::from(refusal.is_some());
    is_refused_as_expected
        && answers.len() == count
        && answers.iter().all(|answer| answer.is_whole)
        && read.len() == expected.len()
        && read.iter().zip(&expected).all(|(read, line)| read.is(line))
}
