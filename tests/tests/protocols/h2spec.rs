//! h2spec asks a server about each rule of RFC 7540 and RFC 7541, and each answer of
//! the proxy must be the right one.

use std::net::SocketAddr;

use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_tests::apps;

use crate::pair::Pair;
use crate::programs::{program, run};

/// Runs h2spec, all of it, and returns its last line.
async fn h2spec(address: SocketAddr) -> String {
    let mut command = program("h2spec");
    command.arg("--host").arg(address.ip().to_string());
    command.arg("--port").arg(address.port().to_string());
    command.args(["--strict", "--timeout", "10"]);
    let output = run(&mut command).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_served_as_the_standard_says_to_the_application_beside_us_and_to_strangers() {
    let app = apps::echo_http().await.unwrap();
    let port = app.address.port();
    let pair = Pair::start_with(app.address, |server| {
        server.mode = MtlsMode::Permissive;
        server.port_protocols.insert(port, Protocol::Http2);
    })
    .await;
    let client = pair.client_of(Protocol::Http2).await;
    for address in [client.addresses.outbound[0], pair.server_port()] {
        let result = h2spec(address).await;
        assert_eq!(result, "146 tests, 146 passed, 0 skipped, 0 failed");
    }
}
