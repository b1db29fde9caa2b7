//! Keeping what is in this process's memory in it.
//!
//! A private key is wiped when it is dropped, which helps nothing against a copy
//! of the memory of a process that still uses it. Such copies are made when a
//! program crashes (a core dump, which the node writes to its disk or hands to a
//! collector) and by whoever may trace it.

use rustix::io;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// What a program says that could not do it, and therefore does not start.
pub const FAILED: &str = "forbidding copies of this program's memory failed";

/// Lets no copy be made of this process's memory. To be called first in `main`.
///
/// - RLIMIT_CORE 0, soft and hard: no core file, of this program or of one that
///   it starts.
/// - PR_SET_DUMPABLE 0: no dump either where the kernel hands them to a collector
///   (`core_pattern` begins with `|`), which no limit prevents; and processes of
///   the same user, such as the containers of a pod that share it, can neither
///   trace this one nor read `/proc/<pid>/mem`. Who has CAP_SYS_PTRACE still can.
pub fn forbid_memory_copies() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
