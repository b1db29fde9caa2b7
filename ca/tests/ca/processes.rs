//! The program itself, as an operator starts it.

use std::process::Stdio;
use std::time::Duration;

use bulkhead_ca::config::name;
use bulkhead_pki::bundle::Roots;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{Client, ISSUER, Place, SERVER_NAME, request};

struct Process {
    child: Child,
    address: std::net::SocketAddr,
    /// Kept open: a process whose log nobody reads is another test.
    _log: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
}

fn command(place: &Place) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-ca"));
    command
        .env_clear()
        .env(name::LISTEN, "127.0.0.1:0")
        .env(name::MONITORING_LISTEN, "127.0.0.1:0")
        .env(name::SERVER_NAMES, SERVER_NAME)
        .env(
            name::STORE,
            format!("directory:{}", place.store().display()),
        )
        .env(
            name::AUTHENTICATION,
            format!("jwks:{}", place.issuer.jwks_path().display()),
        )
        .env(name::TOKEN_ISSUER, ISSUER)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Waits until the process says where it serves.
async fn started(mut child: Child) -> Process {
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = loop {
        let line = log.next_line().await.unwrap().expect("it starts");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if let Some(address) = line["address"].as_str() {
            break address.parse().unwrap();
        }
    };
    Process {
        child,
        address,
        _log: log,
    }
}

#[tokio::test]
async fn two_processes_that_start_at_once_on_an_empty_directory_agree_on_one_root() {
    let place = Place::new();
    let one = command(&place).spawn().unwrap();
    let two = command(&place).spawn().unwrap();
    let (one, two) = tokio::join!(started(one), started(two));
    let roots = std::fs::read_to_string(place.store().join("roots.pem")).unwrap();
    let roots = Roots::from_pem(&roots).unwrap();
    assert_eq!(roots.certificates().len(), 1);

    let issuer = place.issuer.jwks_path().parent().unwrap();
    let minted = Command::new(env!("CARGO_BIN_EXE_bulkhead-ca"))
        .args(["token", "--issuer", ISSUER, "--namespace", "shop"])
        .args(["--service-account", "cart", "--instance", "laptop"])
        .arg("--directory")
        .arg(issuer)
        .output()
        .await
        .unwrap();
    let token = String::from_utf8(minted.stdout).unwrap();
    for process in [&one, &two] {
        let mut client = Client::connect(process.address, &roots).await;
        let answer = client.call(Some(token.trim()), request(None).1).await;
        assert_eq!(answer.unwrap().roots, roots.to_pem());
    }
    for mut process in [one, two] {
        let pid = process.child.id().unwrap().to_string();
        let sent = Command::new("kill").arg(&pid).status().await.unwrap();
        assert!(sent.success());
        let ended = tokio::time::timeout(Duration::from_secs(20), process.child.wait());
        assert!(ended.await.unwrap().unwrap().success());
    }
}

#[tokio::test]
async fn bad_settings_are_all_named_and_nothing_starts() {
    let place = Place::new();
    let output = command(&place)
        .env(name::LISTEN, "nowhere")
        .env(name::MAX_LIFETIME, "forever")
        .output()
        .await
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(name::LISTEN), "{said}");
    assert!(said.contains(name::MAX_LIFETIME), "{said}");
    assert!(!place.store().exists());
}
