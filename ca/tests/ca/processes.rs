//! The program itself, as an operator starts it.

use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::Duration;

use bulkhead_ca::config::name;
use bulkhead_pki::bundle::Roots;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{Client, ISSUER, Place, SERVER_NAME, request};

const PROGRAM: &str = env!("CARGO_BIN_EXE_bulkhead-ca");

struct Process {
    child: Child,
    address: std::net::SocketAddr,
    /// Kept open: a process whose log nobody reads is another test.
    log: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
}

impl Process {
    /// The next line of the log with this in it.
    async fn says(&mut self, text: &str) -> String {
        let line = async {
            loop {
                let line = self.log.next_line().await.unwrap();
                let line = line.expect("the process goes on");
                if line.contains(text) {
                    return line;
                }
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(60), line).await;
        in_time.unwrap_or_else(|_| panic!("it never says {text:?}"))
    }
}

fn command(place: &Place) -> Command {
    with_settings(Command::new(PROGRAM), place)
}

fn with_settings(mut command: Command, place: &Place) -> Command {
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

async fn token(place: &Place) -> String {
    let issuer = place.issuer.jwks_path().parent().unwrap();
    let minted = Command::new(PROGRAM)
        .args(["token", "--issuer", ISSUER, "--namespace", "shop"])
        .args(["--service-account", "cart", "--instance", "laptop"])
        .arg("--directory")
        .arg(issuer)
        .output();
    let minted = String::from_utf8(minted.await.unwrap().stdout).unwrap();
    minted.trim().to_owned()
}

fn published_roots(place: &Place) -> Roots {
    let roots = std::fs::read_to_string(place.store().join("roots.pem")).unwrap();
    Roots::from_pem(&roots).unwrap()
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
        log,
    }
}

#[tokio::test]
async fn two_processes_that_start_at_once_on_an_empty_directory_agree_on_one_root() {
    let place = Place::new();
    let one = command(&place).spawn().unwrap();
    let two = command(&place).spawn().unwrap();
    let (one, two) = tokio::join!(started(one), started(two));
    let roots = published_roots(&place);
    assert_eq!(roots.certificates().len(), 1);

    let token = token(&place).await;
    for process in [&one, &two] {
        let mut client = Client::connect(process.address, &roots).await;
        let answer = client.call(Some(&token), request(None).1).await;
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

/// How long a file may be that the process writes: none is as a full disk is.
fn limit_files(process: &Process, bytes: Option<u64>) {
    let pid = i32::try_from(process.child.id().unwrap()).unwrap();
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(Pid::from_raw(pid), Resource::Fsize, limit).unwrap();
}

#[tokio::test]
async fn a_disk_that_takes_no_more_loses_nothing_and_the_rotation_goes_on_when_there_is_room() {
    let place = Place::new();
    // A limit is told by a signal as well, which a full disk does not send.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\"", PROGRAM]);
    let child = with_settings(shell, &place).spawn().unwrap();
    let mut process = started(child).await;
    let before = published_roots(&place);
    limit_files(&process, Some(0));

    let store = format!("directory:{}", place.store().display());
    let ordered = Command::new(PROGRAM)
        .args(["root", "--store", &store, "rotate"])
        .status();
    assert!(ordered.await.unwrap().success());
    let said = process.says("looking after the CA's own").await;
    assert!(said.contains("version-2"), "{said}");
    assert_eq!(published_roots(&place).to_pem(), before.to_pem());
    let mut client = Client::connect(process.address, &before).await;
    let token = token(&place).await;
    let answer = client.call(Some(&token), request(None).1).await;
    assert_eq!(answer.unwrap().roots, before.to_pem());

    limit_files(&process, None);
    process.says("PublishRoot").await;
    let after = published_roots(&place);
    assert_eq!(after.certificates().len(), 2);
    assert_eq!(after.certificates()[0], before.certificates()[0]);
}

/// A group that is not root's, where the tests are root: the kernel gives what
/// is in `/proc/<pid>` of a program that must not be copied to root, and of any
/// other program to whom it runs as.
fn as_another_group(command: &mut Command) -> &mut Command {
    match std::fs::metadata("/proc/self").unwrap().uid() {
        0 => command.gid(65532),
        _ => command,
    }
}

fn is_roots(pid: u32) -> bool {
    let environment = std::fs::metadata(format!("/proc/{pid}/environ")).unwrap();
    (environment.uid(), environment.gid()) == (0, 0)
}

#[tokio::test]
async fn neither_a_crash_nor_another_process_of_the_user_copies_the_keys_from_memory() {
    let place = Place::new();
    let process = as_another_group(&mut command(&place)).spawn().unwrap();
    let process = started(process).await;
    let pid = process.child.id().unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let of_cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file"));
    let of_cores: Vec<_> = of_cores.unwrap().split_whitespace().collect();
    assert_eq!(of_cores, ["Max", "core", "file", "size", "0", "0", "bytes"]);
    assert!(is_roots(pid), "the process can be dumped and traced");

    // That it shows: a program that may be copied is not root's.
    let mut other = Command::new("cat");
    other.stdin(Stdio::piped()).kill_on_drop(true);
    let other = as_another_group(&mut other).spawn().unwrap();
    assert!(!is_roots(other.id().unwrap()));
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
