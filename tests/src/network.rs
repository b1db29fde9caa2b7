//! Network namespaces with links between them, and threads inside, as the user
//! and with the capabilities that a container would have.
//!
//! A namespace has no name and no file: it is gone with the last socket, thread
//! or file of this process that is in it, however the process ends. Making one
//! needs root.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags};

/// A network namespace.
pub struct Network {
    file: File,
}

/// Who a thread is.
#[derive(Clone, Copy, Debug)]
pub enum User {
    Root,
    /// A user without capabilities.
    Id(u32),
    /// A container's process of this user, which may not gain privileges, with
    /// these capabilities (`securityContext.capabilities.add`) and no others.
    /// This is what runc makes before it starts the container's program.
    Container(u32, CapabilitySet),
}

impl Network {
    /// Makes a namespace in which nothing but `lo` is.
    #[expect(
        clippy::new_without_default,
        reason = "it does something, and may fail"
    )]
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            #[expect(
                deprecated,
                reason = "what replaces it is unsafe, for flags other than this one"
            )]
            rustix::thread::unshare(UnshareFlags::NEWNET)
                .expect("making a network namespace needs root");
            File::open("/proc/thread-self/ns/net").expect("/proc is mounted")
        });
        let network = Self {
            file: made.join().expect("the namespace was made"),
        };
        network.configure("link set lo up");
        network
    }

    /// Links the interface `ours` of this namespace with `theirs` of another.
    pub fn link(&self, ours: &str, other: &Self, theirs: &str) {
        let (pid, fd) = (std::process::id(), other.file.as_raw_fd());
        self.configure(&format!(
            "link add {ours} type veth peer name {theirs} netns /proc/{pid}/fd/{fd}\n\
             link set {ours} up"
        ));
        other.configure(&format!("link set {theirs} up"));
    }

    /// Runs commands of `ip`, one a line, in this namespace.
    pub fn configure(&self, commands: &str) {
        let finished = self.within(User::Root, || {
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("the program `ip` (iproute2) is installed");
            let mut input = ip.stdin.take().expect("its input is piped");
            input
                .write_all(commands.as_bytes())
                .expect("ip reads its input");
            drop(input);
            ip.wait().expect("ip was started")
        });
        assert!(finished.success(), "ip refused: {commands}");
    }

    /// Sets a kernel parameter of this namespace, such as
    /// `net/ipv6/conf/all/disable_ipv6`.
    pub fn set_parameter(&self, name: &str, value: &str) {
        self.within(User::Root, || {
            std::fs::write(format!("/proc/sys/{name}"), value)
        })
        .expect("root may set parameters of a namespace");
    }

    /// Does something on a thread of this namespace, as a user. Sockets that it
    /// opens and programs that it starts stay in the namespace.
    pub fn within<T: Send>(&self, user: User, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let network = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(self.file.as_fd(), network)
                .expect("root may enter a namespace");
            user.assume();
            work()
        };
        thread::scope(|scope| match scope.spawn(enter).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl User {
    /// Makes the calling thread, and no other, one of this user's.
    fn assume(self) {
        let failed = "root may become anybody";
        match self {
            Self::Root => {}
            Self::Id(id) => become_user(id),
            Self::Container(id, granted) => {
                for capability in CapabilitySet::all().difference(granted).iter() {
                    // The kernel knows fewer than there are bits.
                    let _ = rustix::thread::remove_capability_from_bounding_set(capability);
                }
                rustix::thread::set_keep_capabilities(true).expect(failed);
                become_user(id);
                let sets = CapabilitySets {
                    effective: granted,
                    permitted: granted,
                    inheritable: CapabilitySet::empty(),
                };
                rustix::thread::set_capabilities(None, sets).expect(failed);
                rustix::thread::set_no_new_privs(true).expect(failed);
            }
        }
    }
}

fn become_user(id: u32) {
    let failed = "root may become anybody";
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[]).expect(failed);
    rustix::thread::set_thread_res_gid(group, group, group).expect(failed);
    rustix::thread::set_thread_res_uid(user, user, user).expect(failed);
}
