//! A control group with a limit of memory, as a container's, for one program.
//!
//! Making one needs root, and the kernel's `memory` controller, of version 1 or 2.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

const VERSION_1: &str = "/sys/fs/cgroup/memory";
const VERSION_2: &str = "/sys/fs/cgroup";

/// A control group; it is removed when this is dropped, which is to be after its program
/// has ended.
pub struct MemoryGroup {
    directory: PathBuf,
    files: &'static Files,
}

/// What the two versions call the same things.
struct Files {
    limit: &'static str,
    peak: &'static str,
    events: &'static str,
}

const FILES_1: Files = Files {
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
};
const FILES_2: Files = Files {
    limit: "memory.max",
    peak: "memory.peak",
    events: "memory.events",
};

impl MemoryGroup {
    /// Makes a group whose programs may use so many bytes together.
    ///
    /// # Errors
    /// Where there is no such controller, or where this is not root.
    pub fn new(limit: u64) -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (top, files) = if Path::new(VERSION_1).is_dir() {
            (VERSION_1, &FILES_1)
        } else {
            let children = Path::new(VERSION_2).join("cgroup.subtree_control");
            std::fs::write(&children, "+memory").context(
                "switching the memory controller of control groups on; is this root, outside of containers?",
            )?;
            (VERSION_2, &FILES_2)
        };
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("bulkhead-test-{}-{number}", std::process::id());
        let directory = Path::new(top).join(name);
        std::fs::create_dir(&directory).with_context(|| {
            format!(
                "making the control group {}; is this root?",
                directory.display()
            )
        })?;
        let group = Self { directory, files };
        std::fs::write(group.file(files.limit), limit.to_string())
            .context("limiting a control group")?;
        Ok(group)
    }

    /// A command that is in the group from its first instruction on.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]);
        command.arg(self.file("cgroup.procs")).arg(program);
        command
    }

    /// The most that was ever charged to the group, in bytes.
    pub fn peak(&self) -> Result<u64> {
        let text = std::fs::read_to_string(self.file(self.files.peak))?;
        text.trim().parse().context("reading a group's peak")
    }

    /// How many programs of the group the kernel has killed for its memory.
    pub fn killed(&self) -> Result<u64> {
        let text = std::fs::read_to_string(self.file(self.files.events))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count
            .context("the kernel does not count whom it kills")?
            .trim()
            .parse()
            .context("reading a group's events")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A program that still runs in it keeps it, and hurts nobody.
        let _ = std::fs::remove_dir(&self.directory);
    }
}
