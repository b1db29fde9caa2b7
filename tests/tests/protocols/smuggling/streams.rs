//! HTTP/2 requests, in front of servers that speak HTTP/2 and one that makes HTTP/1
//! of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::corpus::{self, Case, unescaped};
use super::servers::{Read, Recorder};
use crate::pair::Pair;
use crate::programs::PATIENCE;

type Field = (Vec<u8>, Vec<u8>);

#[tokio::test(flavor = "multi_thread")]
async fn nginx_makes_no_other_request_of_a_stream() {
    no_stream_becomes_another_request(Recorder::nginx().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_reads_each_stream_as_the_proxy_did_or_not_at_all() {
    no_stream_becomes_another_request(Recorder::node().await).await;
}

async fn no_stream_becomes_another_request(server: Recorder) {
    let cases = corpus::read(include_str!("streams.txt"));
    let pair = Pair::start_with(server.http2, |config| {
        config.mode = MtlsMode::Permissive;
        let port = server.http2.port();
        config.port_protocols.insert(port, Protocol::Http2);
    })
    .await;
    let client = pair.client_of(Protocol::Http2).await;
    let mut before = 0;
    let mut wrong = Vec::new();
    for (way, address) in [
        ("both proxies", client.addresses.outbound[0]),
        ("the server's proxy", pair.server_port()),
    ] {
        for case in &cases {
            let (fields, body) = message(case);
            let first = request(1, &fields, body.as_deref());
            let marker = request(3, &get("/marker"), None);
            let outcomes = send(address, &[first, marker].concat()).await;
            let after = send(address, &request(1, &get("/after"), None)).await;
            assert_eq!(after.get(&1), Some(&Outcome::Ok), "{}", case.name);
            let mut read = server.read(before, "GET /after").await;
            before += read.len();
            read.retain(|read| read.is_served() && !read.is("GET /after"));
            if !is_as_expected(case, &outcomes, &read, server.name) {
                let read: Vec<_> = read.iter().map(Read::to_string).collect();
                wrong.push(format!(
                    "{} ({way}): {outcomes:?}, read {read:?}",
                    case.name
                ));
            }
        }
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

fn is_as_expected(
    case: &Case,
    outcomes: &BTreeMap<u32, Outcome>,
    read: &[Read],
    server: &str,
) -> bool {
    let markers = read.iter().filter(|read| read.is("GET /marker host=x"));
    let others: Vec<_> = read
        .iter()
        .filter(|read| !read.is("GET /marker host=x"))
        .collect();
    // What breaks the whole connection takes the other stream with it.
    let has_marker = markers.count() == 1 && outcomes.get(&3) == Some(&Outcome::Ok);
    let outcome = outcomes.get(&1);
    let expected = &case.expected[0];
    if case.except.iter().any(|name| name == server) {
        return has_marker && others.iter().all(|read| read.is(expected));
    }
    if expected == "refused" {
        let is_refused = matches!(outcome, Some(Outcome::Refused | Outcome::Reset) | None);
        return others.is_empty() && is_refused && (has_marker || outcome.is_none());
    }
    has_marker && outcome == Some(&Outcome::Ok) && others.len() == 1 && others[0].is(expected)
}

fn get(path: &str) -> Vec<Field> {
    [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", path),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}

/// A case's fields, and its body.
fn message(case: &Case) -> (Vec<Field>, Option<Vec<u8>>) {
    let mut lines = case.lines.iter();
    let fields = lines.by_ref().take_while(|line| !line.is_empty());
    let fields = fields.map(|line| {
        // The name may begin with a colon, and have one inside.
        let (name, value) = line.rsplit_once(": ").unwrap_or_else(|| {
            let name = line.strip_suffix(':').unwrap();
            (name, "")
        });
        (unescaped(name), unescaped(value))
    });
    let fields = fields.collect();
    (fields, lines.next().map(|line| unescaped(line)))
}

/// The frames of a request: HEADERS, and DATA where it has a body (RFC 9113, 6).
fn request(stream: u32, fields: &[Field], body: Option<&[u8]>) -> Vec<u8> {
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal field that is not indexed, with a new name (RFC 7541, 6.2.2).
        block.push(0);
        for text in [name, value] {
            length(text.len(), &mut block);
            block.extend(text);
        }
    }
    match body {
        None => frame(1, END_HEADERS | END_STREAM, stream, &block),
        Some(body) => [
            frame(1, END_HEADERS, stream, &block),
            frame(0, END_STREAM, stream, body),
        ]
        .concat(),
    }
}

/// An integer with a prefix of seven bits (RFC 7541, 5.1).
fn length(length: usize, out: &mut Vec<u8>) {
    match length.checked_sub(127) {
        None => out.push(length as u8),
        Some(rest) if rest < 128 => out.extend([127, rest as u8]),
        Some(_) => panic!("a text of the corpus is longer than 254 bytes"),
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// 200.
    Ok,
    /// 400.
    Refused,
    Other,
    Reset,
}

/// Sends frames on a connection of their own, and reads until each stream that was
/// begun has an outcome, or there is no more to come.
async fn send(address: SocketAddr, frames: &[u8]) -> BTreeMap<u32, Outcome> {
    let mut outcomes = BTreeMap::new();
    let count = if frames.ends_with(&request(3, &get("/marker"), None)) {
        2
    } else {
        1
    };
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        let preface = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, b""),
        ];
        stream.write_all(&preface.concat()).await?;
        stream.write_all(frames).await?;
        while outcomes.len() < count {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await?;
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            // An indexed status comes first in a response (RFC 7541, A).
            let outcome = match (head[3], payload.first()) {
                (1, Some(0x88)) => Outcome::Ok,
                (1, Some(0x8c)) => Outcome::Refused,
                (1, _) => Outcome::Other,
                (3, _) => Outcome::Reset,
                _ => continue,
            };
            // Of an answer and a reset behind it, the answer counts.
            outcomes.entry(id).or_insert(outcome);
        }
        std::io::Result::Ok(())
    };
    let ended = tokio::time::timeout(PATIENCE, talk).await;
    // A connection that was broken off leaves streams without an outcome.
    let _ = ended.unwrap_or_else(|_| panic!("no end of {}", frames.escape_ascii()));
    outcomes
}
