//! Real servers that write down what they read.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use bulkhead_tests::ports::free_address;
use serde::Deserialize;
use tempfile::TempDir;

use crate::programs::{PATIENCE, Server, program};

/// A request as a server read it, body included.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Read {
    /// The request line.
    line: String,
    host: String,
    body: String,
    /// What it answered.
    status: u16,
}

impl Read {
    /// Whether it was one that the server could do something with.
    pub(crate) fn is_served(&self) -> bool {
        self.status == 200
    }

    /// Whether it is the request that a line of the corpus describes. What the line
    /// does not name may be anything.
    pub(crate) fn is(&self, line: &str) -> bool {
        let mut words = line.split(' ');
        let mut read = self.line.split(' ');
        let is_same = |word: Option<&str>| word.is_some() && word == read.next();
        [words.next(), words.next()].into_iter().all(is_same)
            && words.all(|word| match word.split_once('=') {
                Some(("host", host)) => self.host == host,
                Some(("body", body)) => self.body == body,
                _ => panic!("{word} says nothing of a request: {line}"),
            })
    }
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            host,
            body,
            status,
        } = self;
        write!(f, "{line} host={host} body={body:?} ({status})")
    }
}

/// A server that speaks HTTP/1 at one address and HTTP/2 at another.
pub(crate) struct Recorder {
    pub(crate) name: &'static str,
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
    record: PathBuf,
    _directory: TempDir,
    _server: Server,
}

impl Recorder {
    pub(crate) async fn node() -> Self {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/protocols/smuggling/recorder.js"
        );
        let directory = tempfile::tempdir().unwrap();
        let [http1, http2] = [free_address().unwrap(), free_address().unwrap()];
        let record = directory.path().join("record");
        let mut node = program("node");
        node.arg(script).arg(http1.port().to_string());
        node.arg(http2.port().to_string()).arg(&record);
        let server = Server::start(node, http2, directory.path()).await;
        Self {
            name: "node",
            http1,
            http2,
            record,
            _directory: directory,
            _server: server,
        }
    }

    /// Its HTTP/2 is turned into HTTP/1.1 for the server behind it, which is the one
    /// that writes down: that is where a header could become a request.
    pub(crate) async fn nginx() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [http1, http2, behind, last] = std::array::from_fn(|_| free_address().unwrap());
        let record = directory.path().join("record");
        let path = directory.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {path}/{kind};"))
            .concat();
        let config = format!(
            r#"daemon off; master_process off; pid {path}/pid; error_log stderr info;
            events {{ worker_connections 256; }}
            http {{
                {temporary} access_log off; client_body_buffer_size 1m;
                log_format record escape=json '{{"line":"$request","host":"$http_host",'
                    '"body":"$request_body","status":$status}}';
                server {{ listen {http1}; access_log {path}/record record;
                    location / {{ proxy_pass http://{last}; }} }}
                server {{ listen {http2} http2;
                    location / {{ proxy_pass http://{behind}; proxy_set_header Host $http_host; }} }}
                server {{ listen {behind}; access_log {path}/record record;
                    location / {{ proxy_pass http://{last}; }} }}
                server {{ listen {last}; return 200 "$request_method $request_uri\n"; }}
            }}"#
        );
        std::fs::write(directory.path().join("nginx.conf"), config).unwrap();
        let mut nginx = program("nginx");
        nginx.arg("-p").arg(directory.path());
        nginx.args(["-e", "stderr", "-c", "nginx.conf"]);
        let server = Server::start(nginx, last, directory.path()).await;
        Self {
            name: "nginx",
            http1,
            http2,
            record,
            _directory: directory,
            _server: server,
        }
    }

    /// What it has read since it had read `before` requests, up to `last`. A server writes down after it has answered.
    pub(crate) async fn read(&self, before: usize, last: &str) -> Vec<Read> {
        let reading = async {
            loop {
                let bytes = std::fs::read(&self.record).unwrap_or_default();
                let text: String = bytes.into_iter().map(char::from).collect();
                let whole = text.lines().filter(|line| line.ends_with('}'));
                let mut read: Vec<Read> = whole
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect();
                let since = read.split_off(before.min(read.len()));
                if since.iter().any(|read| read.is(last)) {
                    return since;
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap()
    }
}
