//! The limit of the process's memory, and what the kernel says is used of it.
//!
//! The limit is that of the control group, or of one above it: `memory.max` in
//! version 2, `memory.limit_in_bytes` in version 1. It is read each time, because a
//! pod can be resized while it runs. What counts against the group's own limit is all
//! of the group's memory that the kernel cannot take back by itself, sockets included.
//! A limit further up, or a group with other processes in it, is shared with others, and
//! there the process counts its own.

use std::fs;
use std::path::{Path, PathBuf};

/// What one look at the kernel's figures found, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Look {
    pub(super) limit: Option<u64>,
    pub(super) used: i64,
}

pub(super) struct Kernel {
    group: Option<Group>,
    /// A limit that stands in the settings.
    given: Option<u64>,
    status: PathBuf,
}

impl Kernel {
    pub(super) fn of_this_process(given: Option<u64>) -> Self {
        Self::of(Path::new("/proc/self"), given)
    }

    fn of(process: &Path, given: Option<u64>) -> Self {
        let read = |name| fs::read_to_string(process.join(name)).unwrap_or_default();
        Self {
            group: Group::find(&read("cgroup"), &read("mountinfo")),
            given,
            status: process.join("status"),
        }
    }

    pub(super) fn look(&self) -> Look {
        let group = self.group.as_ref();
        let (limit, is_own) = match group.and_then(Group::limit) {
            Some((limit, is_own)) => (Some(limit), is_own),
            None => (None, false),
        };
        let alone = group.filter(|group| is_own && group.is_ours_alone());
        let in_group = alone.map_or(0, Group::used);
        let limits = [limit, self.given].into_iter().flatten();
        Look {
            limit: limits.min(),
            used: self.resident().max(in_group).cast_signed(),
        }
    }

    fn resident(&self) -> u64 {
        let status = fs::read_to_string(&self.status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }
}

/// A control group that counts memory.
#[derive(Debug, Eq, PartialEq)]
struct Group {
    version: Version,
    directory: PathBuf,
    /// Where the hierarchy is mounted, which is as far up as can be seen.
    top: PathBuf,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn limit_file(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }

    /// Version 1 counts the bytes in sockets apart, and only where they have a limit of
    /// their own.
    fn used_files(self) -> &'static [&'static str] {
        match self {
            Self::One => &["memory.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes"],
            Self::Two => &["memory.current"],
        }
    }

    /// The lines of `memory.stat` with what the kernel takes back by itself.
    fn reclaimable(self) -> &'static [&'static str] {
        match self {
            Self::One => &["total_inactive_file", "total_active_file"],
            Self::Two => &["inactive_file", "active_file", "slab_reclaimable"],
        }
    }
}

impl Group {
    /// Finds the group in `/proc/self/cgroup` and its directory by
    /// `/proc/self/mountinfo` (cgroups(7), proc_pid_mountinfo(5)).
    fn find(groups: &str, mounts: &str) -> Option<Self> {
        let group = |wanted: &dyn Fn(&str) -> bool| {
            groups.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                wanted(controllers).then_some(path)
            })
        };
        // Version 1 first: where both are mounted, memory is in one of them, and the
        // other has no files for it.
        let counts_memory = |it: &str| it.split(',').any(|it| it == "memory");
        let (version, path) = match group(&counts_memory) {
            Some(path) => (Version::One, path),
            None => (Version::Two, group(&str::is_empty)?),
        };
        mounts
            .lines()
            .find_map(|line| Self::at_mount(version, path, line))
    }

    fn at_mount(version: Version, path: &str, mount: &str) -> Option<Self> {
        let (common, own) = mount.split_once(" - ")?;
        let mut common = common.split(' ').skip(3);
        let (root, top) = (common.next()?, Path::new(common.next()?));
        let mut own = own.split(' ');
        let is_of = match version {
            Version::Two => own.next()? == "cgroup2",
            Version::One => {
                own.next()? == "cgroup" && own.nth(1)?.split(',').any(|it| it == "memory")
            }
        };
        if !is_of {
            return None;
        }
        // A container sees its own group as the top of the hierarchy, whatever path
        // the kernel knows it by.
        let below = Path::new(path).strip_prefix(root).ok();
        let directory = below.map_or(top.to_owned(), |below| top.join(below));
        Some(Self {
            version,
            directory,
            top: top.to_owned(),
        })
    }

    /// The least limit of the group and those above it, and whether it is the
    /// group's own.
    fn limit(&self) -> Option<(u64, bool)> {
        let up = self.directory.ancestors();
        let up = up.take_while(|directory| directory.starts_with(&self.top));
        let limits = up.enumerate().filter_map(|(distance, directory)| {
            let text = fs::read_to_string(directory.join(self.version.limit_file())).ok()?;
            let limit: u64 = text.trim().parse().ok()?;
            // Version 1 writes the largest number of pages where there is no limit.
            (limit < i64::MAX as u64 / 2).then_some((limit, distance == 0))
        });
        limits.min_by_key(|(limit, _)| *limit)
    }

    /// Whether this process is the only one in the group, as it is in its container.
    fn is_ours_alone(&self) -> bool {
        let members = fs::read_to_string(self.directory.join("cgroup.procs"));
        members.is_ok_and(|members| members.lines().count() == 1)
    }

    fn used(&self) -> u64 {
        let read = |name| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        let number = |name| read(name).trim().parse::<u64>().unwrap_or(0);
        let all: u64 = self.version.used_files().iter().copied().map(number).sum();
        let stat = read("memory.stat");
        let reclaimable = stat.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            let counts = self.version.reclaimable().contains(&name);
            counts.then(|| value.parse::<u64>().ok())?
        });
        all.saturating_sub(reclaimable.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    type Outcome = Result<(), Box<dyn Error>>;

    /// A process, and a hierarchy that is mounted somewhere.
    struct Host {
        directory: tempfile::TempDir,
    }

    impl Host {
        fn new(cgroup: &str, mount: &str) -> Result<Self, Box<dyn Error>> {
            let host = Self {
                directory: tempfile::tempdir()?,
            };
            let top = host.path("cgroup");
            host.write("proc/cgroup", cgroup)?;
            let mounts = mount.replace("TOP", top.to_str().ok_or("a path that is text")?);
            host.write("proc/mountinfo", &mounts)?;
            host.write("proc/status", "Name:\tproxy\nVmRSS:\t    5120 kB\n")?;
            Ok(host)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, text: &str) -> Outcome {
            let path = self.path(name);
            fs::create_dir_all(path.parent().ok_or("a file in a directory")?)?;
            Ok(fs::write(path, text)?)
        }

        fn look(&self, given: Option<u64>) -> Look {
            Kernel::of(&self.path("proc"), given).look()
        }
    }

    const VERSION_2: &str = "25 21 0:22 / /proc rw - proc proc rw\n\
         30 25 0:26 / TOP rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const VERSION_1: &str = "31 25 0:27 / /elsewhere rw - cgroup cgroup rw,cpu\n\
         32 25 0:28 / TOP rw shared:9 - cgroup cgroup rw,memory\n";

    #[test]
    fn a_container_sees_its_own_limit_and_all_of_its_memory() -> Outcome {
        let host = Host::new("0::/\n", VERSION_2)?;
        host.write("cgroup/memory.max", "67108864\n")?;
        host.write("cgroup/memory.current", "30000000\n")?;
        host.write("cgroup/cgroup.procs", "1\n")?;
        let stat = "anon 1\nfile 9\ninactive_file 4000000\nactive_file 5000000\n\
                    slab_reclaimable 1000000\n";
        host.write("cgroup/memory.stat", stat)?;
        let expected = Look {
            limit: Some(67_108_864),
            used: 20_000_000,
        };
        assert_eq!(host.look(None), expected);
        host.write("cgroup/memory.max", "134217728\n")?;
        let resized = host.look(None);
        assert_eq!(resized.limit, Some(134_217_728), "resized in place");
        host.write("cgroup/memory.max", "max\n")?;
        assert_eq!(host.look(None).limit, None);
        Ok(())
    }

    #[test]
    fn a_limit_further_up_counts_the_processs_own_memory() -> Outcome {
        let host = Host::new("0::/pods/a/proxy\n", VERSION_2)?;
        host.write("cgroup/pods/a/proxy/memory.max", "max\n")?;
        host.write("cgroup/pods/a/proxy/memory.current", "900000000\n")?;
        host.write("cgroup/pods/a/memory.max", "268435456\n")?;
        host.write("cgroup/pods/memory.max", "1073741824\n")?;
        let expected = Look {
            limit: Some(268_435_456),
            used: 5 << 20,
        };
        assert_eq!(host.look(None), expected);
        Ok(())
    }

    #[test]
    fn version_1_says_it_in_other_files() -> Outcome {
        let host = Host::new("9:cpu:/x\n4:memory:/pods/proxy\n0::/\n", VERSION_1)?;
        host.write("cgroup/memory.limit_in_bytes", "9223372036854771712\n")?;
        let group = "cgroup/pods/proxy";
        host.write(&format!("{group}/memory.limit_in_bytes"), "33554432\n")?;
        host.write(&format!("{group}/memory.usage_in_bytes"), "9000000\n")?;
        let in_sockets = format!("{group}/memory.kmem.tcp.usage_in_bytes");
        host.write(&in_sockets, "3000000\n")?;
        host.write(&format!("{group}/cgroup.procs"), "7\n")?;
        host.write(
            &format!("{group}/memory.stat"),
            "total_active_file 2000000\n",
        )?;
        let expected = Look {
            limit: Some(33_554_432),
            used: 10_000_000,
        };
        assert_eq!(host.look(None), expected);
        host.write(&format!("{group}/cgroup.procs"), "7\n8\n")?;
        assert_eq!(host.look(None).used, 5 << 20, "others are in the group too");
        Ok(())
    }

    #[test]
    fn a_container_that_sees_the_hosts_paths_finds_its_own_group() -> Outcome {
        let mount = "32 25 0:28 /docker/77 TOP ro - cgroup cgroup rw,memory\n";
        let host = Host::new("4:memory:/docker/77\n", mount)?;
        host.write("cgroup/memory.limit_in_bytes", "33554432\n")?;
        assert_eq!(host.look(None).limit, Some(33_554_432));
        Ok(())
    }

    #[test]
    fn the_settings_may_lower_the_limit_and_are_all_there_is_without_groups() -> Outcome {
        let host = Host::new("", "")?;
        assert_eq!(host.look(None).limit, None);
        let expected = Look {
            limit: Some(1000),
            used: 5 << 20,
        };
        assert_eq!(host.look(Some(1000)), expected);
        let host = Host::new("0::/\n", VERSION_2)?;
        host.write("cgroup/memory.max", "2000\n")?;
        assert_eq!(host.look(Some(1000)).limit, Some(1000));
        assert_eq!(host.look(Some(3000)).limit, Some(2000));
        Ok(())
    }
}
