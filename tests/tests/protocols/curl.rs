//! curl, as people use it.

use std::net::SocketAddr;

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::apps;
use tokio::process::Command;

use crate::pair::Pair;
use crate::programs::{program, said};

fn curl(address: SocketAddr, path: &str) -> Command {
    let mut curl = program("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--max-time",
        "100",
        "--noproxy",
        "*",
    ]);
    curl.arg(format!("http://{address}{path}"));
    curl
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_served_in_each_version_of_http_and_by_each_method() {
    let app = apps::echo_http().await.unwrap();
    let pair = Pair::start(app.address, MtlsMode::Strict).await;
    let body = "x".repeat(300_000);
    for (arguments, expected) in [
        (&[][..], "HTTP/1.1 GET /a\n".to_owned()),
        (&["--http1.0"], "HTTP/1.0 GET /a\n".to_owned()),
        (&["--http2-prior-knowledge"], "HTTP/2.0 GET /a\n".to_owned()),
        // An offer that the application does not take.
        (&["--http2"], "HTTP/1.1 GET /a\n".to_owned()),
        (&["-X", "DELETE"], "HTTP/1.1 DELETE /a\n".to_owned()),
        (
            &["--data-binary", "@-"],
            format!("HTTP/1.1 POST /a\n{body}"),
        ),
        (
            &["--data-binary", "@-", "-H", "Transfer-Encoding: chunked"],
            format!("HTTP/1.1 POST /a\n{body}"),
        ),
        (
            &["--data-binary", "@-", "-H", "Expect: 100-continue"],
            format!("HTTP/1.1 POST /a\n{body}"),
        ),
        (
            &["--upload-file", "-", "--http2-prior-knowledge"],
            format!("HTTP/2.0 PUT /a\n{body}"),
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("body");
        std::fs::write(&file, &body).unwrap();
        let mut curl = curl(pair.dial(), "/a");
        curl.args(arguments)
            .stdin(std::fs::File::open(file).unwrap());
        let said = said(&mut curl).await;
        assert!(said == expected, "{arguments:?}: {said:.100}");
    }
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut curl = curl(pair.dial(), "/a");
        let head = said(curl.args([version, "--head"])).await;
        assert!(head.contains(" 200"), "{version}: {head}");
    }
}
