//! The program as a container runs it: started, asked, told to end.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use bulkhead_test_workload::load::http::{Answer, Client, RequestOptions};
use http::StatusCode;
use serde_json::Value;

/// A running `workload`, which is killed where a test fails.
struct Workload {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Workload {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_workload"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// `serve` with one listener on a free port, and its address for clients.
    fn serve(option: &str) -> (Self, String) {
        let mut workload = Self::start(&["serve", option, "0"]);
        let port = listening_port(&workload.line());
        (workload, format!("127.0.0.1:{port}"))
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Reads counts until they are as expected.
    fn until(&mut self, is_expected: impl Fn(&Value) -> bool) -> Value {
        loop {
            let counts = self.line();
            if is_expected(&counts) {
                return counts;
            }
        }
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(killed.success());
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // It has ended already in a test that passes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listening_port(line: &Value) -> u16 {
    let address = line["listening"].as_str().unwrap();
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

fn options() -> RequestOptions {
    RequestOptions {
        headers: Vec::new(),
        body: None,
        h2c: false,
        new_connections: false,
        timeout: 10.0,
    }
}

async fn get(url: &str, options: &RequestOptions) -> Answer {
    Client::new(url, options).unwrap().answer().await.unwrap()
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(answer.body()).unwrap()
}

#[tokio::test]
async fn an_answer_says_what_was_seen() {
    let (_server, address) = Workload::serve("--http");
    let asked = RequestOptions {
        headers: vec![("x-shop".parse().unwrap(), "tea".parse().unwrap())],
        ..options()
    };
    let answer = get(&format!("http://{address}/cart?item=1"), &asked).await;
    let seen = json(&answer);
    assert_eq!(seen["headers"]["x-shop"], "tea");
    assert_eq!(seen["uri"], "/cart?item=1");
    assert_eq!(seen["protocol"], "HTTP/1.1");
    assert!(seen["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(
        answer.headers()["workload-pod"],
        seen["pod"].as_str().unwrap()
    );
}

#[tokio::test]
async fn a_body_comes_back_and_a_status_can_be_asked_for() {
    let (_server, address) = Workload::serve("--http");
    let asked = RequestOptions {
        body: Some("two teas".to_owned()),
        ..options()
    };
    let answer = get(&format!("http://{address}/echo"), &asked).await;
    assert_eq!(answer.body(), "two teas");
    let answer = get(&format!("http://{address}/status/503"), &options()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn http2_is_spoken_with_prior_knowledge() {
    let (_server, address) = Workload::serve("--h2c");
    let asked = RequestOptions {
        h2c: true,
        ..options()
    };
    let answer = get(&format!("http://{address}/"), &asked).await;
    assert_eq!(json(&answer)["protocol"], "HTTP/2.0");
}

#[tokio::test]
async fn grpc_health_says_serving() {
    let (_server, address) = Workload::serve("--grpc-health");
    let asked = RequestOptions {
        h2c: true,
        body: Some("\0\0\0\0\0".to_owned()),
        ..options()
    };
    let url = format!("http://{address}/grpc.health.v1.Health/Check");
    let answer = get(&url, &asked).await;
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    assert_eq!(&answer.body()[..], [0, 0, 0, 0, 2, 0x08, 1]);
}

#[tokio::test]
async fn a_slow_starter_is_unhealthy_at_first() {
    let mut server = Workload::start(&["serve", "--http", "0", "--healthy-after", "3600"]);
    let port = listening_port(&server.line());
    let answer = get(&format!("http://127.0.0.1:{port}/health"), &options()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn a_server_may_speak_first() {
    let (_server, address) = Workload::serve("--server-first");
    let mut client = Workload::start(&["tcp", &address, "--server-first", "--line", "HELO"]);
    let said = client.line();
    assert!(said["greeting"].as_str().unwrap().starts_with("220 "));
    assert_eq!(said["echo"], "HELO");
    assert!(client.wait().success());
}

#[test]
fn a_request_that_is_not_answered_with_2xx_is_a_failure() {
    let (_server, address) = Workload::serve("--http");
    let mut client = Workload::start(&["get", &format!("http://{address}/status/403")]);
    assert_eq!(client.line()["status"], 403);
    assert_eq!(client.wait().code(), Some(1));
}

#[tokio::test]
async fn what_is_in_hand_at_sigterm_is_answered_and_the_exit_code_is_0() {
    let (mut server, address) = Workload::serve("--http");
    let mut client = TcpStream::connect(&address).unwrap();
    let request = "POST /echo HTTP/1.1\r\nhost: shop\r\ncontent-length: 8\r\n\r\n";
    client.write_all(request.as_bytes()).unwrap();
    client.write_all(b"two ").unwrap();
    let mut answer = BufReader::new(client.try_clone().unwrap());
    while !head_line(&mut answer).is_empty() {}
    server.terminate();
    client.write_all(b"teas").unwrap();
    let mut body = String::new();
    answer.read_to_string(&mut body).unwrap();
    assert_eq!(body, "two teas");
    assert_eq!(server.wait().code(), Some(0));
}

fn head_line(answer: &mut impl BufRead) -> String {
    let mut line = String::new();
    answer.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[tokio::test]
async fn a_server_that_was_told_to_end_takes_no_more_connections() {
    let (mut server, address) = Workload::serve("--http");
    server.terminate();
    assert!(server.wait().success());
    let client = Client::new(&format!("http://{address}/"), &options()).unwrap();
    assert_eq!(client.answer().await.unwrap_err().0, "connect");
}

#[tokio::test]
async fn the_load_can_be_read_and_stopped_from_outside() {
    let (_server, address) = Workload::serve("--http");
    let mut load = Workload::start(&[
        "load",
        &format!("http://{address}/"),
        "--rate",
        "200",
        "--listen",
        "0",
    ]);
    let control = format!("http://127.0.0.1:{}", listening_port(&load.line()));
    let counts = load.until(|counts| counts["ok"].as_u64() >= Some(20));
    assert_eq!(counts["failed"], 0);
    let read = json(&get(&format!("{control}/counts"), &options()).await);
    assert!(read["ok"].as_u64() >= counts["ok"].as_u64());
    let stop = RequestOptions {
        body: Some(String::new()),
        ..options()
    };
    get(&format!("{control}/stop"), &stop).await;
    assert!(load.wait().success());
    let last = load.until(|counts| counts["sent"] == counts["ok"]);
    assert_eq!(last["outcomes"]["200"], last["ok"]);
}

#[test]
fn a_connection_that_is_dropped_is_counted_once() {
    let (mut server, address) = Workload::serve("--tcp-echo");
    let url = format!("tcp://{address}");
    let mut load = Workload::start(&["load", &url, "--rate", "200", "--listen", "0"]);
    load.line();
    load.until(|counts| counts["ok"].as_u64() > Some(0));
    server.terminate();
    assert!(server.wait().success());
    let counts = load.until(|counts| counts["outcomes"]["connect"].as_u64() > Some(0));
    assert_eq!(counts["outcomes"]["broken"], 1, "{counts}");
    load.terminate();
    assert!(load.wait().success());
}
