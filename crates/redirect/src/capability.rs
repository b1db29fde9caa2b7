//! NET_ADMIN, without which the kernel changes no rules.
//!
//! A container's processes run as a user other than root. When such a user's
//! process starts a program, the kernel takes its capabilities away, except for
//! those that the program's *file* gives back, if the container may have them
//! (`securityContext.capabilities.add`). The image's file gives NET_ADMIN as
//! *permitted* only (`setcap cap_net_admin+p`): were it *effective* too, the
//! kernel would refuse to start the program in a container without it, and
//! nobody could say why. So the program raises it here.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, no_new_privs,
    set_capabilities,
};

/// Why there is no NET_ADMIN.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "redirecting needs the capability NET_ADMIN, and this container may not have it: add \
         NET_ADMIN to securityContext.capabilities.add of the container bulkhead-init; where a \
         policy removed it (Pod Security `restricted` or `baseline`, an admission controller), \
         the namespace needs an exception for it"
    )]
    NotGranted,
    #[error(
        "redirecting needs the capability NET_ADMIN. This container may have it, but its file \
         /bulkhead-init does not give it to a user that is not root{hint}. The file must carry it \
         (`setcap cap_net_admin+p`), which copying an image with a tool that drops extended \
         attributes undoes; and neither the container's file system may be mounted nosuid"
    )]
    NotInFile { hint: &'static str },
    #[error("asking the kernel for this process's capabilities failed: {0}")]
    Kernel(#[from] Errno),
}

/// Makes NET_ADMIN effective for this thread.
pub fn raise_net_admin() -> Result<(), Error> {
    let needed = CapabilitySet::NET_ADMIN;
    let sets = capabilities(None)?;
    if sets.effective.contains(needed) {
        return Ok(());
    }
    if sets.permitted.contains(needed) {
        let raised = CapabilitySets {
            effective: sets.effective | needed,
            ..sets
        };
        return Ok(set_capabilities(None, raised)?);
    }
    if !capability_is_in_bounding_set(needed)? {
        return Err(Error::NotGranted);
    }
    let hint = if no_new_privs()? {
        ", or the container runtime gave it to the container without letting its programs keep \
         it (no_new_privs, from allowPrivilegeEscalation: false)"
    } else {
        ""
    };
    Err(Error::NotInFile { hint })
}
