//! A program on a core, with its CPU time and memory.

use std::fs::{File, read_to_string};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bulkhead_tests::ports::free_address;
use tokio::time::{Instant, sleep};

/// The core of the programs under test. This process is on the other one.
pub(crate) const CORE: &str = "1";
/// The kernel's unit of CPU time in /proc, whatever its own ticks are.
const TICKS_PER_SECOND: f64 = 100.0;
/// How long a program may take until it does its work.
///
/// Under Valgrind everything takes fifty times as long.
const READY_WITHIN: Duration = Duration::from_secs(180);
const READY_POLL: Duration = Duration::from_millis(20);

/// A running program; it ends when this is dropped.
pub(crate) struct Process {
    child: Child,
    program: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Starts a program on the core for programs under test. What it says goes
    /// to a file in `directory`.
    pub(crate) fn start(
        program: &Path,
        directory: &Path,
        arguments: &[String],
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let log = directory.join(format!("{name}-{}.log", free_address()?.port()));
        let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let child = Command::new("taskset")
            .args(["--cpu-list", CORE])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {} by taskset", program.display()))?;
        Ok(Self {
            child,
            program: program.to_owned(),
            log,
        })
    }

    /// Waits until `attempt` succeeds, for as long as the program runs.
    pub(crate) async fn ready<T>(
        &mut self,
        mut attempt: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = read_to_string(&self.log).unwrap_or_default();
                bail!(
                    "{} does not work ({}): {error:#}; it said:\n{said}",
                    self.program.display(),
                    ended.map_or("it runs".to_owned(), |status| status.to_string()),
                );
            }
            sleep(READY_POLL).await;
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The CPU seconds that the program has taken.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.unwrap_or_default();
        // The name may have spaces; fields are counted from after it (proc(5)).
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        ticks / TICKS_PER_SECOND
    }

    /// The seconds for which its first thread could have run and others had the core.
    pub(crate) fn held_up_seconds(&self) -> f64 {
        let stat = read_to_string(format!("/proc/{}/schedstat", self.child.id()));
        let stat = stat.unwrap_or_default();
        let nanoseconds = stat.split_whitespace().nth(1).unwrap_or_default();
        nanoseconds.parse::<f64>().unwrap_or_default() / 1e9
    }

    /// Its resident memory, in MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        self.memory("VmRSS:")
    }

    /// The most that it ever was.
    pub(crate) fn peak_mib(&self) -> f64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> f64 {
        let status = read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.unwrap_or_default() / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM, so that a program ends those that it started.
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        let _ = self.child.wait();
    }
}
