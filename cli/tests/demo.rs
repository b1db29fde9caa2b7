//! `bulkhead demo`, as a person runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The whole demo takes less than this, on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(30);

/// Starts it, with a directory for its temporary files.
fn demo(arguments: &[&str], temporary: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The steps that the README promises, in its order.
fn promised() -> Vec<String> {
    let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
    let (_, table) = readme.split_once("<!-- demo-steps -->").unwrap();
    let (table, _) = table.split_once("<!-- /demo-steps -->").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned())
        .collect()
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn two_demos_at_once_prove_every_promised_step_in_its_order() {
    let directory = TempDir::new().unwrap();
    let began = Instant::now();
    let for_programs = demo(&["--json"], directory.path());
    let for_people = demo(&[], directory.path());
    let for_programs = for_programs.wait_with_output().unwrap();
    let for_people = for_people.wait_with_output().unwrap();
    assert!(began.elapsed() < LIMIT, "took {:?}", began.elapsed());

    let json = String::from_utf8(for_programs.stdout).unwrap();
    let lines: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let steps: Vec<_> = lines.iter().map(|line| line["step"].as_str()).collect();
    let promised = promised();
    assert_eq!(promised.len(), 15);
    let expected: Vec<_> = promised.iter().map(|step| Some(step.as_str())).collect();
    assert_eq!(steps, expected, "{json}");
    for line in &lines {
        assert_eq!(line["ok"], true, "{line}");
        assert!(!line["detail"].as_str().unwrap().is_empty(), "{line}");
        assert!(line["ms"].is_u64(), "{line}");
    }
    assert!(for_programs.status.success());

    let text = String::from_utf8(for_people.stdout).unwrap();
    assert!(for_people.status.success(), "{text}");
    assert!(text.contains("15 of 15 held"), "{text}");
    assert!(
        !text.contains('\x1b'),
        "no terminal, no escape codes:\n{text}"
    );
    assert!(is_empty(directory.path()), "a temporary file was left");
}

#[test]
fn ctrl_c_ends_it_promptly_and_leaves_nothing_behind() {
    let directory = TempDir::new().unwrap();
    let mut child = demo(&["--json"], directory.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // By now there are a CA, proxies, tokens and keys; and steps to come.
    lines
        .find(|line| line.as_ref().unwrap().contains("\"issue\""))
        .unwrap()
        .unwrap();
    assert!(!is_empty(directory.path()));

    let interrupt = format!("kill -INT {}", child.id());
    let sent = Command::new("sh").args(["-c", &interrupt]).status();
    assert!(sent.unwrap().success());
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("nothing is left behind"), "{said}");
    assert!(is_empty(directory.path()), "a temporary file was left");
    assert!(lines.count() < 14 - 5, "it went on to the end");
}
