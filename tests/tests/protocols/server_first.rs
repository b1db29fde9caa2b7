//! Protocols in which the server speaks first, or which are no HTTP, with their real
//! clients and servers: at ports that are known for them, and at ports of which nobody
//! knows anything.

use std::net::SocketAddr;
use std::path::Path;

use bulkhead_core::policy::MtlsMode;
use bulkhead_core::protocol::Protocol;
use bulkhead_tests::ports::free_address;
use tempfile::TempDir;
use tokio::process::Command;

use crate::pair::{Pair, metric_becomes};
use crate::programs::{Server, program, run, said};

/// Has `client` talk to the server: at a port that is looked at, then at one that is
/// not.
async fn talks(server: SocketAddr, client: impl AsyncFn(SocketAddr)) {
    let pair = Pair::start(server, MtlsMode::Strict).await;
    client(pair.dial()).await;
    let closed = "istio_tcp_connections_closed_total";
    metric_becomes(&pair.client, closed, &["mutual_tls"], 1.0).await;
    let pair = Pair::start_with(server, |config| {
        config.mode = MtlsMode::Strict;
        config
            .port_protocols
            .insert(server.port(), Protocol::Opaque);
    })
    .await;
    let told = pair.client_of(Protocol::Opaque).await;
    client(told.addresses.outbound[0]).await;
    metric_becomes(&told, closed, &["mutual_tls"], 1.0).await;
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    // Servers that will not run as root have to get in.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(directory.path(), everybody).unwrap();
    directory
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_spoken_with_through_a_pair() {
    let directory = directory();
    let address = free_address().unwrap();
    let mut redis = program("redis-server");
    redis.args(["--bind", "127.0.0.1", "--save", "", "--port"]);
    redis.arg(address.port().to_string());
    redis.arg("--dir").arg(directory.path());
    let server = Server::start(redis, address, directory.path()).await;
    talks(server.address, async |address: SocketAddr| {
        let mut client = program("redis-cli");
        client.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]);
        client.args(["eval", "return redis.call('incrby', 'answer', 21) * 2", "0"]);
        assert!(["42\n", "84\n"].contains(&&*said(&mut client).await));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_is_spoken_with_through_a_pair() {
    let directory = directory();
    let address = free_address().unwrap();
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut mariadb = program("mariadbd");
    mariadb.args(["--no-defaults", "--skip-grant-tables", "--user=root"]);
    mariadb.args(["--bind-address=127.0.0.1", "--innodb-log-file-size=4M"]);
    mariadb.arg(format!("--port={}", address.port()));
    mariadb.arg(format!("--datadir={}", data.display()));
    mariadb.arg(format!("--socket={}/socket", directory.path().display()));
    let server = Server::start(mariadb, address, directory.path()).await;
    talks(server.address, async |address: SocketAddr| {
        let mut client = program("mariadb");
        client.args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1"]);
        client.args(["--user=root", "--batch", "--skip-column-names"]);
        client.arg(format!("--port={}", address.port()));
        client.args(["--execute", "select 6 * 7; select repeat('x', 100000)"]);
        let said = said(&mut client).await;
        assert_eq!(said, format!("42\n{}\n", "x".repeat(100_000)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_spoken_with_through_a_pair() {
    let directory = directory();
    let address = free_address().unwrap();
    let data = directory.path().join("data");
    let mut initdb = not_as_root(program("initdb"));
    initdb.args(["--no-sync", "--auth=trust", "--username=somebody", "-D"]);
    said(initdb.arg(&data)).await;
    let mut postgres = not_as_root(program("postgres"));
    postgres
        .arg("-D")
        .arg(&data)
        .arg("-k")
        .arg(directory.path());
    postgres.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]);
    let server = Server::start(postgres, address, directory.path()).await;
    talks(server.address, async |address: SocketAddr| {
        let mut client = program("psql");
        client.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command"]);
        client.args(["select 6 * 7, length(repeat('x', 100000))"]);
        client.arg(format!(
            "postgresql://somebody@127.0.0.1:{}/postgres",
            address.port()
        ));
        assert_eq!(said(&mut client).await, "42|100000\n");
    })
    .await;
}

/// PostgreSQL does not run as root; where we are, it runs as a user without a name.
fn not_as_root(command: Command) -> Command {
    if !rustix::process::geteuid().is_root() {
        return command;
    }
    let inner = command.as_std();
    let mut outer = Command::new("setpriv");
    outer.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    outer.arg(inner.get_program()).args(inner.get_args());
    outer.kill_on_drop(true);
    outer
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_is_delivered_through_a_pair() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/protocols/mail.py");
    let directory = directory();
    let address = free_address().unwrap();
    let mut python = program("python3");
    python
        .arg(&script)
        .args(["serve", &address.port().to_string()]);
    let server = Server::start(python, address, directory.path()).await;
    talks(server.address, async |address: SocketAddr| {
        let mut client = program("python3");
        client
            .arg(&script)
            .args(["send", &address.port().to_string()]);
        let output = run(&mut client).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    })
    .await;
    let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
    assert_eq!(log.matches("a letter of 100000 lines").count(), 2, "{log}");
}
