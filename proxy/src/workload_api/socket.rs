//! The socket's file.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use tokio::net::UnixListener;

/// Whoever sees the directory may connect: containers of one pod run as
/// different users, and share that directory with nobody else.
const MODE: u32 = 0o666;

/// Listens on a socket at `path`.
///
/// It is made under another name, so that whoever finds it under its own can
/// connect. A socket that is there already is replaced: nobody listens on it any
/// more, or will not be asked again.
///
/// # Errors
/// There is something at `path` that is no socket, or the directory is not there
/// or not ours to write.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::other("there is something that is no socket"));
        }
        _ => {}
    }
    let unfinished = path.with_extension(format!("{}", std::process::id()));
    // Left by a process that had our id and did not get to the end.
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&unfinished)?;
    std::fs::set_permissions(&unfinished, Permissions::from_mode(MODE))?;
    std::fs::rename(&unfinished, path)?;
    Ok(listener)
}
