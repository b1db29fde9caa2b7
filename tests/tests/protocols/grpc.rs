//! gRPC, between server and client of its own implementation.

use std::path::Path;

use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_tests::ports::free_address;
use tokio::process::Command;

use crate::pair::Pair;
use crate::programs::{Server, program, said};

fn python(role: &str, port: u16) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/protocols/grpc_peer.py");
    let mut python = program("python3");
    python.arg(script).args([role, &port.to_string()]);
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_calls_of_each_kind_keep_deadlines_cancellation_and_trailers() {
    let directory = tempfile::tempdir().unwrap();
    let address = free_address().unwrap();
    let server = Server::start(python("serve", address.port()), address, directory.path()).await;
    for protocol in [Protocol::Auto, Protocol::Grpc] {
        let pair = Pair::start_with(server.address, |config| {
            config.mode = MtlsMode::Strict;
            config.port_protocols.insert(address.port(), protocol);
        })
        .await;
        let client = pair.client_of(protocol).await;
        let port = client.addresses.outbound[0].port();
        assert_eq!(
            said(&mut python("talk", port)).await,
            "content\n",
            "{protocol}"
        );
    }
}
