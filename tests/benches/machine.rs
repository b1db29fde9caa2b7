//! What the figures were measured on.

use std::fs::read_to_string;
use std::process::Command;
use std::time::UNIX_EPOCH;

use bulkhead_runtime::clock::Clock;
use serde::Serialize;

/// The facts without which a figure says nothing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    kernel: String,
    rustc: String,
    /// With a `+` where the tree has changes of its own.
    commit: String,
    /// Seconds since 1970.
    time: u64,
    /// Processes that wanted a core, over the last minute: above 0.1 or so,
    /// something else was running, and the figures are worse than they should be.
    load_before: f64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let processors = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let models = processors
            .lines()
            .filter_map(|line| line.strip_prefix("model name"))
            .map(|rest| rest.trim_matches([' ', '\t', ':']).to_owned());
        let models: Vec<_> = models.collect();
        let now = Clock::system().now().duration_since(UNIX_EPOCH);
        Self {
            cores: models.len(),
            cpu: models.first().cloned().unwrap_or_default(),
            kernel: read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            rustc: output("rustc", &["--version"]),
            commit: output("git", &["describe", "--always", "--dirty=+", "--exclude=*"]),
            time: now.unwrap_or_default().as_secs(),
            load_before: load(),
        }
    }
}

/// What compiles here, and for what.
pub(crate) fn compiler() -> String {
    format!(
        "{} for {}",
        output("rustc", &["--version"]),
        std::env::consts::ARCH
    )
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} cores ({}), Linux {}, {}, commit {}, load before {:.2}",
            self.cores, self.cpu, self.kernel, self.rustc, self.commit, self.load_before
        )
    }
}

/// The load average of the last minute.
pub(crate) fn load() -> f64 {
    let text = read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or_default()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}
