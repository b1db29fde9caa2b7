//! Responses of a server that means no good.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps::{self, App};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::answers::{self, Answer};
use super::corpus::{self, Case};
use crate::pair::Pair;
use crate::programs::PATIENCE;

const MARKER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nmarker";
const ASK_FOR_MARKER: &[u8] = b"GET /marker HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
/// How many clients ask for it after each case: more than there are connections that a
/// response could be waiting on.
const OTHERS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn no_client_gets_what_a_server_sent_beside_the_response_to_another_request() {
    let cases = corpus::read(include_str!("responses.txt"));
    let answer = Arc::new(Mutex::new(Vec::new()));
    let server = server(Arc::clone(&answer)).await;
    let pair = Pair::start(server.address, MtlsMode::Permissive).await;
    let mut wrong = Vec::new();
    for (way, address) in [
        ("both proxies", pair.dial()),
        ("the server's proxy", pair.server_port()),
    ] {
        for case in &cases {
            *answer.lock().unwrap() = case.bytes();
            let (request, is_head) = request(case);
            let came = send(address, &[&request[..], ASK_FOR_MARKER].concat()).await;
            let first = came.as_deref().unwrap_or_default();
            let answers = answers::read(first, |place| place == 0 && is_head);
            let mut others = Vec::new();
            for _ in 0..OTHERS {
                let came = send(address, ASK_FOR_MARKER).await.unwrap_or_default();
                others.extend(answers::read(&came, |_| false));
            }
            let is_right = is_as_expected(case, &answers, came.is_none())
                && others.len() == OTHERS
                && others.iter().all(is_marker);
            if !is_right {
                let text = String::from_utf8_lossy(first);
                wrong.push(format!("{} ({way}): {text:?}, {others:?}", case.name));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len() * 2,
        wrong.join("\n")
    );
}

/// Answers each request for `/case` with these bytes, whatever they are, and each other
/// one with the marker.
async fn server(answer: Arc<Mutex<Vec<u8>>>) -> App {
    apps::serve(move |mut stream, _| {
        let answer = Arc::clone(&answer);
        async move {
            let mut read = Vec::new();
            let mut piece = [0; 4096];
            loop {
                while let Some(end) = read.windows(4).position(|end| end == b"\r\n\r\n") {
                    let head: Vec<u8> = read.drain(..end + 4).collect();
                    let is_case = head.windows(6).any(|window| window == b" /case");
                    let bytes = if is_case {
                        answer.lock().unwrap().clone()
                    } else {
                        MARKER.to_vec()
                    };
                    if stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                match stream.read(&mut piece).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => read.extend_from_slice(&piece[..count]),
                }
            }
        }
    })
    .await
    .unwrap()
}

/// The case's request, and whether it is HEAD.
fn request(case: &Case) -> (Vec<u8>, bool) {
    let (lines, fields): (Vec<_>, Vec<_>) = case
        .request
        .iter()
        .partition(|line| line.ends_with(" HTTP/1.1"));
    let line = lines.first().map_or("GET /case HTTP/1.1", |line| line);
    let mut request = format!("{line}\r\nHost: x\r\n");
    for field in fields {
        request.push_str(&format!("{field}\r\n"));
    }
    request.push_str("\r\n");
    (request.into_bytes(), line.starts_with("HEAD "))
}

/// Sends, ends the sending side, and reads all that comes; nothing where the connection
/// broke before its end.
async fn send(address: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(bytes).await?;
        let mut came = Vec::new();
        stream.read_to_end(&mut came).await?;
        std::io::Result::Ok(came)
    };
    let ended = tokio::time::timeout(PATIENCE, talk).await;
    ended.unwrap().ok()
}

fn is_as_expected(case: &Case, answers: &[Answer], is_broken: bool) -> bool {
    let expected = &case.expected[0];
    if expected == "cut" {
        return is_broken || answers.iter().any(|answer| !answer.is_whole);
    }
    let Some((first, rest)) = answers.split_first() else {
        return false;
    };
    // Where the server's connection has become unusable, so may the client's.
    if !rest.iter().all(is_marker) {
        return false;
    }
    if let Some(refusal) = expected.strip_prefix("refused ") {
        let reason = first.reason.as_deref().unwrap_or("-");
        return format!("{} {reason}", first.status) == refusal;
    }
    let (status, body) = expected.split_once(' ').unwrap_or((expected, ""));
    first.status.to_string() == status && first.body == body.as_bytes() && first.is_whole
}

fn is_marker(answer: &Answer) -> bool {
    (answer.status, &answer.body[..], answer.is_whole) == (200, b"marker", true)
}
