//! The processes of pods and of the node, which a test may end or stop as an
//! accident does: without a word to Kubernetes.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::config;

/// A process that runs, or did so a moment ago.
#[derive(Clone, Copy, Debug)]
pub struct Process(Pid);

/// Those of a pod that run this program, by the name of its file.
///
/// # Panics
/// Where the pod was never stored, or `/proc` cannot be read.
pub fn of_pod(pod: &Pod, program: &str) -> Vec<Process> {
    let uid = pod.uid().expect("a stored pod has a UID");
    all()
        .filter(|process| process.runs(program) && process.is_below(&format!("pod{uid}")))
        .collect()
}

/// That of a program of Kubernetes itself, in this cluster and in no other.
///
/// # Panics
/// Where it does not run.
pub fn of_node(program: &str) -> Process {
    let cluster = config::cluster_directory().expect("run by ./scripts/test cluster");
    let cluster = cluster.display().to_string();
    let found = all().find(|process| process.runs(program) && process.line().contains(&cluster));
    found.unwrap_or_else(|| panic!("{program} does not run"))
}

fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").expect("Linux has it");
    entries.filter_map(|entry| {
        let number = entry.ok()?.file_name().to_str()?.parse().ok()?;
        Pid::from_raw(number).map(Process)
    })
}

impl Process {
    /// A file in `/proc` about it.
    pub fn file(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.0.as_raw_pid()).into()
    }

    /// Its command line; empty where it has ended.
    fn line(&self) -> String {
        let line = fs::read(self.file("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).into_owned()
    }

    fn runs(&self, program: &str) -> bool {
        let line = self.line();
        let path = line.split('\0').next().unwrap_or_default();
        path.rsplit('/').next() == Some(program)
    }

    fn is_below(&self, cgroup: &str) -> bool {
        let cgroups = fs::read_to_string(self.file("cgroup")).unwrap_or_default();
        cgroups.contains(cgroup)
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Holds it until what is returned is dropped: it is there, and does nothing.
    pub fn stop(self) -> Stopped {
        self.signal(Signal::STOP);
        Stopped(self)
    }

    /// One that has ended takes no signal, and no harm.
    fn signal(&self, signal: Signal) {
        let _ = kill_process(self.0, signal);
    }
}

/// A process that is held.
#[derive(Debug)]
pub struct Stopped(Process);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}
