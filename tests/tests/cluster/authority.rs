//! The CA as people look at it, on a real mesh.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use bulkhead_tests::cluster::apps::server;
use bulkhead_tests::cluster::commands::{Running, bulkhead, bulkhead_json};
use bulkhead_tests::cluster::processes::{self, Process};
use bulkhead_tests::cluster::{SOON, beside_others, until};
use kube::ResourceExt as _;
use serde_json::Value;

use crate::programs::{ALL, pods_of};

#[tokio::test]
async fn what_a_workload_holds_was_issued_by_the_root_that_the_status_shows() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web").start(&namespace).await;
    let name = web.pod().await.name_any();
    let held = bulkhead_json(&["secret", "-n", namespace.name(), &name]).await;
    let identity = held["identity"].as_str().unwrap();
    assert!(identity.contains(&format!("/ns/{}/sa/", namespace.name())));
    assert!(!held.to_string().contains("PRIVATE KEY"));

    // The status follows the CA with a moment's delay.
    let status = until("the status shows every replica", async || {
        let status = bulkhead_json(&["ca", "status"]).await;
        let asked = status["replicas"].as_array()?;
        let all_said = asked.iter().all(|replica| !replica["load"].is_null());
        (all_said && !asked.is_empty()).then_some(status)
    })
    .await;
    let authorities = status["authority"]["authorities"].as_array().unwrap();
    let root = held["trustBundle"]["signingRoot"].as_str().unwrap();
    let is_root = |authority: &Value| {
        authority["kind"] == "root"
            && authority["state"] == "active"
            && authority["fingerprint"] == root
    };
    assert!(authorities.iter().any(is_root), "{status}");

    // What it holds is in the log, with the pod that asked for it.
    let serial = held["chain"][0]["serial"].as_str().unwrap();
    let log = bulkhead(&["ca", "log", "--serial", serial, "--output", "json"]).await;
    let record: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(record["identity"], identity);
    assert_eq!(record["pod"], name.as_str());
}

/// What `bulkhead check` says of the CA's authorities, and how it ends.
async fn checked(arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let arguments = [&["check", "--output", "json"], arguments].concat();
    let ended = Running::start(&arguments).ended(SOON).await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    let findings = findings.filter(|finding| finding["check"] == "authorities");
    (ended.code, findings.cloned().collect())
}

#[tokio::test]
async fn check_fails_where_the_root_ends_sooner_than_asked_and_says_what_to_do() {
    let _cluster = beside_others().await;
    let (_, findings) = checked(&[]).await;
    assert!(!findings.is_empty());
    let is_ok = |finding: &Value| finding["status"] == "ok";
    assert!(findings.iter().all(is_ok), "{findings:?}");

    let (code, findings) = checked(&["--expires-within", "4000d"]).await;
    assert_eq!(code, Some(1));
    let problem = findings.iter().find(|finding| !is_ok(finding)).unwrap();
    let words = problem.to_string();
    assert!(words.contains("bulkhead ca rotate-root"), "{words}");
}

/// Whether a process can leave a core file, and its user can read its memory; none
/// where it has ended, because other tests restart programs.
fn can_be_copied(process: Process) -> Option<bool> {
    let limits = fs::read_to_string(process.file("limits")).ok()?;
    let cores = limits
        .lines()
        .find(|line| line.starts_with("Max core file"));
    let cores = cores?.split_whitespace();
    let is_dumped = !cores.eq(["Max", "core", "file", "size", "0", "0", "bytes"]);
    let owner = fs::metadata(process.file("environ")).ok()?.uid();
    Some(is_dumped || owner != 0)
}

#[tokio::test]
async fn no_program_that_holds_a_key_can_be_dumped() {
    let cluster = beside_others().await;
    let namespace = cluster.meshed_namespace().await;
    let web = server("web").start(&namespace).await;
    let sidecar = web.pod().await;
    let mut copied = Vec::new();
    for process in processes::of_pod(&sidecar, "bulkhead-proxy") {
        copied.push(("bulkhead-proxy", can_be_copied(process).unwrap()));
    }
    for program in ALL {
        for pod in pods_of(&cluster, program).await {
            let found = processes::of_pod(&pod, program).into_iter();
            copied.extend(found.filter_map(|process| Some((*program, can_be_copied(process)?))));
        }
    }
    for program in [ALL, &["bulkhead-proxy"]].concat() {
        assert!(copied.contains(&(program, false)), "{copied:?}");
        assert!(!copied.contains(&(program, true)), "{copied:?}");
    }
}
