//! Programs under Valgrind's Callgrind, and what it has counted.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// What each function has executed, by its name.
pub(super) type Functions = BTreeMap<String, Executed>;

/// What one function has executed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Executed {
    /// Those of the functions that it calls not included.
    pub(super) instructions: f64,
    /// How often it called the allocator for memory.
    pub(super) allocations: f64,
}

/// What asks the allocator for memory.
const ALLOCATES: [&str; 3] = ["__rust_alloc", "__rust_alloc_zeroed", "__rust_realloc"];

/// What a thread that serves connections runs in.
const WORKER: &str = "bulkhead_proxy::worker::";

/// The arguments with which Valgrind runs `program` and leaves what it counted in
/// `directory`, a file for each thread.
pub(crate) fn arguments(program: &Path, directory: &Path) -> Vec<String> {
    [
        "--tool=callgrind",
        "--separate-threads=yes",
        "--compress-strings=no",
        "--compress-pos=no",
        "--dump-line=no",
        &format!("--callgrind-out-file={}/counts.%p", directory.display()),
        &program.display().to_string(),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What the worker of the process has executed, of what is written in Rust.
///
/// What is not depends on more than our code: AWS-LC and the C library choose
/// among implementations by what the CPU has.
pub(super) fn of_worker(directory: &Path, process: u32) -> Result<Functions> {
    let mut workers = Vec::new();
    for path in other_threads(directory, process)? {
        let text = read_to_string(&path)?;
        if text.contains(WORKER) {
            workers.push(text);
        }
    }
    ensure!(
        workers.len() == 1,
        "{} threads of {process} were workers, by what Callgrind has written to {}; was the program built without symbols?",
        workers.len(),
        directory.display()
    );
    parse(&workers[0])
}

/// What was counted of each thread but the first, which starts the workers.
fn other_threads(directory: &Path, process: u32) -> Result<Vec<PathBuf>> {
    let (prefix, first) = (format!("counts.{process}-"), format!("counts.{process}-01"));
    let mut paths = Vec::new();
    for entry in read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name != first {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

/// Reads Callgrind's format: after a line `fn=NAME`, lines of a position and a
/// cost are the function's own, but for the one after `calls=`, which is what was
/// called, by the name in `cfn=`.
fn parse(text: &str) -> Result<Functions> {
    let mut functions = Functions::new();
    let mut function: Option<String> = None;
    let (mut allocates, mut is_call) = (false, false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = is_rust(name).then(|| plain(name).to_owned());
            continue;
        }
        if let Some(called) = line.strip_prefix("cfn=") {
            let called = plain(called);
            allocates = ALLOCATES.iter().any(|name| called.ends_with(name));
            continue;
        }
        let Some(function) = &function else {
            continue;
        };
        if let Some(times) = line.strip_prefix("calls=") {
            is_call = true;
            if allocates {
                let executed = functions.entry(function.clone()).or_default();
                executed.allocations += number(times.split(' ').next())?;
            }
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            if !is_call {
                let executed = functions.entry(function.clone()).or_default();
                executed.instructions += number(line.split(' ').nth(1))?;
            }
            is_call = false;
        }
    }
    Ok(functions)
}

fn number(text: Option<&str>) -> Result<f64> {
    let text = text.context("Callgrind's file has a line without a number")?;
    text.parse()
        .with_context(|| format!("Callgrind's file has {text:?} for a number"))
}

/// Only Rust's names have paths.
fn is_rust(name: &str) -> bool {
    name.contains("::")
}

/// A function's name without what changes from build to build: the hash, and what
/// tells copies and depths of recursion apart.
fn plain(name: &str) -> &str {
    let name = name.split(['\'', '.']).next().unwrap_or(name);
    match name.rsplit_once("::h") {
        Some((path, hash))
            if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            path
        }
        _ => name,
    }
}
