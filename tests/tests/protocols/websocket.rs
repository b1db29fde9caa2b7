//! WebSockets, between Node's server and client.

use std::path::Path;

use bulkhead_core::policy::MtlsMode;
use bulkhead_tests::ports::free_address;
use tokio::process::Command;

use crate::pair::Pair;
use crate::programs::{Server, program, said};

fn node(role: &str, port: u16) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/protocols/websocket.js");
    let mut node = program("node");
    node.arg(script).args([role, &port.to_string()]);
    // Where Debian has the packages of npm.
    node.env("NODE_PATH", "/usr/share/nodejs");
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_carries_messages_both_ways_and_ends_as_it_was_ended() {
    let directory = tempfile::tempdir().unwrap();
    let address = free_address().unwrap();
    let node_serves = node("serve", address.port());
    let server = Server::start(node_serves, address, directory.path()).await;
    let pair = Pair::start(server.address, MtlsMode::Strict).await;
    let said = said(&mut node("talk", pair.dial().port())).await;
    assert_eq!(said, "content\n");
}
