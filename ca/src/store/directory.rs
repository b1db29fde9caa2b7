//! The files in a directory that only the CA may read.
//!
//! ```text
//! <directory>/             0700
//!   current -> version-3   swapped by one rename
//!   version-3/             0700
//!     state.json root-1.crt root-1.key ... roots.pem bundle.json   0600
//!   roots.pem bundle.json  0644, copies for whoever hands out trust
//!   lock                   held while reading (shared) or writing
//!   leader, followers      held while serving: see [`election`]
//! ```
//!
//! Everything is on disk before `current` points to it: after a crash the
//! directory holds the old version or the new one, whole. What `current` does not
//! point to is removed by whoever comes next, because keys are in it.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

pub mod election;

use super::{BUNDLE, Files, ROOTS, Store, StoreError, Stored, Version, Written};

const CURRENT: &str = "current";
const LOCK: &str = "lock";
const VERSION: &str = "version-";

const PRIVATE_DIRECTORY: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;
const PUBLIC_FILE: u32 = 0o644;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Keeps the files in a directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Uses a directory, which is made where it is missing and must be closed to
    /// everybody else.
    pub fn open(path: PathBuf) -> Result<Self, StoreError> {
        let directory = Self { path };
        make_directory(&directory.path)
            .or_else(|error| match error.kind() {
                ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            })
            .map_err(at(&directory.path))?;
        refuse_loose_permissions(&directory.path, PRIVATE_DIRECTORY)?;
        directory.clear_leftovers();
        Ok(directory)
    }

    fn load_now(&self) -> Result<Option<Stored>, StoreError> {
        refuse_loose_permissions(&self.path, PRIVATE_DIRECTORY)?;
        let lock = self.lock_file()?;
        lock.lock_shared().map_err(at(&self.path.join(LOCK)))?;
        let Some(version) = self.current()? else {
            return Ok(None);
        };
        let directory = self.path.join(&version.0);
        refuse_loose_permissions(&directory, PRIVATE_DIRECTORY)?;
        let mut files = Files::new();
        for entry in std::fs::read_dir(&directory).map_err(at(&directory))? {
            let path = entry.map_err(at(&directory))?.path();
            refuse_loose_permissions(&path, PRIVATE_FILE)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.insert(name.into_owned(), read(&path)?);
        }
        Ok(Some(Stored { files, version }))
    }

    fn load_and_mend(&self) -> Result<Option<Stored>, StoreError> {
        let stored = self.load_now()?;
        self.clear_leftovers();
        if let Some(stored) = &stored
            && let Err(error) = self.mend_copies(stored)
        {
            tracing::error!(
                %error,
                "the trust bundle beside the keys is not the present one, and could not be written again; this is tried again"
            );
        }
        Ok(stored)
    }

    /// Writes the copies again that are not as the version has them: whoever
    /// wrote it crashed before they were, or found the disk full.
    fn mend_copies(&self, stored: &Stored) -> Result<(), StoreError> {
        let stale = [ROOTS, BUNDLE].into_iter().filter_map(|name| {
            let text = stored.files.get(name)?;
            let copy = std::fs::read(self.path.join(name)).ok();
            (copy.as_deref() != Some(text.as_bytes())).then_some((name, text))
        });
        let stale: Vec<_> = stale.collect();
        if stale.is_empty() {
            return Ok(());
        }
        let lock = self.lock_file()?;
        lock.lock().map_err(at(&self.path.join(LOCK)))?;
        if self.current()?.as_ref() != Some(&stored.version) {
            return Ok(());
        }
        for (name, text) in stale {
            self.publish(name, text)?;
        }
        sync_directory(&self.path)
    }

    fn write_now(&self, files: &Files, previous: Option<&Version>) -> Result<Written, StoreError> {
        let lock = self.lock_file()?;
        lock.lock().map_err(at(&self.path.join(LOCK)))?;
        let current = self.current()?;
        if current.as_ref() != previous {
            return Ok(Written::Overtaken);
        }
        match &current {
            Some(current) => self.remove_leftovers(current)?,
            None => self.begin()?,
        }
        let written = self.replace(files, current.as_ref());
        // Also of what was not written whole, where the disk was full.
        let cleared = match self.current()? {
            Some(current) => self.remove_leftovers(&current),
            None => Ok(()),
        };
        written.and(cleared)?;
        Ok(Written::Done)
    }

    /// Makes room for the first version. Where there was a CA and somebody removed
    /// the link to it, it is not buried under a new one.
    fn begin(&self) -> Result<(), StoreError> {
        let first = self.path.join(next_version(None).0);
        let versions = self.versions()?;
        let other = versions.iter().find(|version| **version != first);
        if other.is_some() || self.path.join(ROOTS).exists() {
            return Err(StoreError::Unlinked {
                link: self.path.join(CURRENT),
                version: other.or(versions.first()).cloned(),
            });
        }
        // What a crash left behind was never current.
        remove_if_there(&first, |path| std::fs::remove_dir_all(path))
    }

    /// Writes the version after `current`, and lets `current` be that.
    fn replace(&self, files: &Files, current: Option<&Version>) -> Result<(), StoreError> {
        let next = next_version(current);
        let directory = self.path.join(&next.0);
        make_directory(&directory).map_err(at(&directory))?;
        for (name, text) in files {
            let path = directory.join(name);
            write_new(&path, text.as_bytes(), PRIVATE_FILE).map_err(at(&path))?;
        }
        sync_directory(&directory)?;
        self.switch_to(&next)?;
        for name in [ROOTS, BUNDLE] {
            if let Some(text) = files.get(name) {
                self.publish(name, text)?;
            }
        }
        sync_directory(&self.path)
    }

    /// Removes the versions that are not current: those of before, and what
    /// nobody came to finish. Only for who holds the lock.
    fn remove_leftovers(&self, current: &Version) -> Result<(), StoreError> {
        for leftover in self.leftovers(current)? {
            remove_if_there(&leftover, |path| std::fs::remove_dir_all(path))?;
        }
        Ok(())
    }

    fn leftovers(&self, current: &Version) -> Result<Vec<PathBuf>, StoreError> {
        let current = self.path.join(&current.0);
        let versions = self.versions()?.into_iter();
        Ok(versions.filter(|version| *version != current).collect())
    }

    fn versions(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(at(&self.path))? {
            let entry = entry.map_err(at(&self.path))?;
            if entry.file_name().to_string_lossy().starts_with(VERSION) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Removes them at any time. Whoever writes now has the lock, and removes what
    /// is left over then.
    fn clear_leftovers(&self) {
        let clear = || -> Result<(), StoreError> {
            let Some(current) = self.current()? else {
                return Ok(());
            };
            if self.leftovers(&current)?.is_empty() {
                return Ok(());
            }
            let lock = self.lock_file()?;
            match lock.try_lock() {
                Ok(()) => match self.current()? {
                    Some(current) => self.remove_leftovers(&current),
                    None => Ok(()),
                },
                Err(TryLockError::WouldBlock) => Ok(()),
                Err(TryLockError::Error(error)) => Err(at(&self.path.join(LOCK))(error)),
            }
        };
        if let Err(error) = clear() {
            tracing::error!(
                %error,
                "keys that are not in use any more are still on the disk: removing them failed, and is tried again"
            );
        }
    }

    /// Lets `current` point to a version, in one step.
    fn switch_to(&self, version: &Version) -> Result<(), StoreError> {
        let link = self.path.join(CURRENT);
        let unfinished = self.path.join(format!("{CURRENT}.new"));
        remove_if_there(&unfinished, |path| std::fs::remove_file(path))?;
        symlink(&version.0, &unfinished).map_err(at(&unfinished))?;
        std::fs::rename(&unfinished, &link).map_err(at(&link))
    }

    /// The trust bundle is no secret; this copy is for whoever installs it.
    fn publish(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let path = self.path.join(name);
        let unfinished = self.path.join(format!("{name}.new"));
        remove_if_there(&unfinished, |path| std::fs::remove_file(path))?;
        write_new(&unfinished, text.as_bytes(), PUBLIC_FILE).map_err(at(&unfinished))?;
        std::fs::rename(&unfinished, &path).map_err(at(&path))
    }

    fn current(&self) -> Result<Option<Version>, StoreError> {
        let link = self.path.join(CURRENT);
        match std::fs::read_link(&link) {
            Ok(target) => Ok(Some(Version(target.to_string_lossy().into_owned()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&link)(error)),
        }
    }

    fn lock_file(&self) -> Result<File, StoreError> {
        let path = self.path.join(LOCK);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE_FILE)
            .open(&path)
            .map_err(at(&path))
    }
}

#[tonic::async_trait]
impl Store for Directory {
    async fn load(&self) -> Result<Option<Stored>, StoreError> {
        let directory = self.clone();
        off_the_runtime(move || directory.load_and_mend()).await
    }

    async fn write(
        &self,
        files: &Files,
        previous: Option<&Version>,
    ) -> Result<Written, StoreError> {
        let (directory, files, previous) = (self.clone(), files.clone(), previous.cloned());
        off_the_runtime(move || directory.write_now(&files, previous.as_ref())).await
    }
}

/// Locks and disks may take their time; calls must not wait for them.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and whoever waits for this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

fn next_version(current: Option<&Version>) -> Version {
    let number: u64 = current
        .and_then(|version| version.0.strip_prefix(VERSION)?.parse().ok())
        .unwrap_or(0);
    Version(format!("{VERSION}{}", number.saturating_add(1)))
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(PRIVATE_DIRECTORY).create(path)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The process's umask may have taken bits away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

fn read(path: &Path) -> Result<Zeroizing<String>, StoreError> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
        .map_err(at(path))?;
    Ok(text)
}

/// A name in a directory is on disk once the directory is.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(at(path))
}

fn remove_if_there(
    path: &Path,
    remove: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), StoreError> {
    match remove(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn refuse_loose_permissions(path: &Path, wanted: u32) -> Result<(), StoreError> {
    let metadata = std::fs::metadata(path).map_err(at(path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & !wanted == 0 {
        return Ok(());
    }
    Err(StoreError::Permissions {
        path: path.to_owned(),
        mode,
        wanted,
    })
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Directory { path, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(root: &str) -> Files {
        [
            ("root.key".to_owned(), Zeroizing::new(root.to_owned())),
            (ROOTS.to_owned(), Zeroizing::new("roots".to_owned())),
        ]
        .into()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_written_is_read_back_and_closed_to_others() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca");
        let directory = Directory::open(path.clone()).unwrap();
        assert!(directory.load_now().unwrap().is_none());
        assert_eq!(
            directory.write_now(&files("one"), None).unwrap(),
            Written::Done
        );
        let stored = directory.load_now().unwrap().unwrap();
        assert_eq!(stored.files, files("one"));
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("current/root.key")), 0o600);
        assert_eq!(mode(&path.join(ROOTS)), 0o644);
    }

    #[test]
    fn a_writer_that_was_overtaken_changes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path().join("ca")).unwrap();
        directory.write_now(&files("one"), None).unwrap();
        assert_eq!(
            directory.write_now(&files("other"), None).unwrap(),
            Written::Overtaken
        );
        let first = directory.load_now().unwrap().unwrap().version;
        directory.write_now(&files("two"), Some(&first)).unwrap();
        assert_eq!(
            directory.write_now(&files("other"), Some(&first)).unwrap(),
            Written::Overtaken
        );
        let stored = directory.load_now().unwrap().unwrap();
        assert_eq!(stored.files, files("two"));
    }

    #[test]
    fn old_keys_do_not_stay_behind() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca");
        let directory = Directory::open(path.clone()).unwrap();
        directory.write_now(&files("one"), None).unwrap();
        let first = directory.load_now().unwrap().unwrap().version;
        directory.write_now(&files("two"), Some(&first)).unwrap();
        assert!(!path.join(&first.0).exists());
        let mut names: Vec<_> = std::fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["current", "lock", "roots.pem", "version-2"]);
    }

    #[test]
    fn keys_that_a_crash_left_behind_are_gone_at_the_next_look_and_start() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca");
        let directory = Directory::open(path.clone()).unwrap();
        directory.write_now(&files("one"), None).unwrap();
        let first = directory.load_now().unwrap().unwrap().version;
        directory.write_now(&files("two"), Some(&first)).unwrap();
        let retired = path.join(&first.0);
        let unfinished = path.join("version-3");
        // As far as a write gets that crashes before or after the switch.
        let crash = || {
            for left in [&retired, &unfinished] {
                make_directory(left).unwrap();
                write_new(&left.join("root.key"), b"one", PRIVATE_FILE).unwrap();
            }
        };
        crash();
        let stored = directory.load_and_mend().unwrap().unwrap();
        assert!(!retired.exists() && !unfinished.exists());
        crash();
        let again = Directory::open(path.clone()).unwrap();
        assert!(!retired.exists() && !unfinished.exists());
        assert_eq!(again.load_now().unwrap().unwrap().version, stored.version);
    }

    #[test]
    fn a_ca_whose_link_was_deleted_is_neither_removed_nor_followed_by_another() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca");
        let directory = Directory::open(path.clone()).unwrap();
        directory.write_now(&files("one"), None).unwrap();
        for _ in 0..2 {
            let target = std::fs::read_link(path.join(CURRENT)).unwrap();
            std::fs::remove_file(path.join(CURRENT)).unwrap();
            assert!(directory.load_and_mend().unwrap().is_none());
            let error = directory.write_now(&files("other"), None).unwrap_err();
            let advice = format!("ln -s {}", target.display());
            assert!(error.to_string().contains(&advice), "{error}");
            symlink(target, path.join(CURRENT)).unwrap();
            let stored = directory.load_now().unwrap().unwrap();
            assert_eq!(stored.files, files("one"));
            directory
                .write_now(&files("one"), Some(&stored.version))
                .unwrap();
        }
    }

    #[test]
    fn a_write_that_fails_half_way_changes_nothing_and_leaves_no_keys() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca");
        let directory = Directory::open(path.clone()).unwrap();
        directory.write_now(&files("one"), None).unwrap();
        let first = directory.load_now().unwrap().unwrap().version;
        let mut cannot = files("two");
        cannot.insert("the.last/one".to_owned(), Zeroizing::new(String::new()));
        let error = directory.write_now(&cannot, Some(&first)).unwrap_err();
        assert!(error.to_string().contains("the.last/one"), "{error}");
        assert!(!path.join("version-2").exists());
        assert_eq!(directory.load_now().unwrap().unwrap().files, files("one"));
        let written = directory.write_now(&files("two"), Some(&first)).unwrap();
        assert_eq!(written, Written::Done);
    }

    #[test]
    fn a_crash_in_the_middle_of_a_write_leaves_the_old_version_and_no_hindrance() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca");
        let directory = Directory::open(path.clone()).unwrap();
        directory.write_now(&files("one"), None).unwrap();
        let first = directory.load_now().unwrap().unwrap().version;
        // As far as a write gets before it points to what it wrote.
        make_directory(&path.join("version-2")).unwrap();
        write_new(&path.join("version-2/root.key"), b"half", 0o600).unwrap();
        symlink("version-2", path.join("current.new")).unwrap();
        write_new(&path.join("roots.pem.new"), b"half", 0o644).unwrap();
        assert_eq!(directory.load_now().unwrap().unwrap().files, files("one"));
        directory.write_now(&files("two"), Some(&first)).unwrap();
        assert_eq!(directory.load_now().unwrap().unwrap().files, files("two"));
    }

    #[test]
    fn a_crash_before_the_trust_bundle_was_copied_leaves_no_old_one_behind() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca");
        let directory = Directory::open(path.clone()).unwrap();
        let with_roots = |roots: &str| {
            let mut files = files("key");
            files.insert(ROOTS.to_owned(), Zeroizing::new(roots.to_owned()));
            files
        };
        directory.write_now(&with_roots("new"), None).unwrap();
        // As far as a write gets before it crashes, or finds the disk full.
        std::fs::write(path.join(ROOTS), "retired").unwrap();
        let stored = directory.load_and_mend().unwrap().unwrap();
        assert_eq!(stored.files, with_roots("new"));
        assert_eq!(std::fs::read_to_string(path.join(ROOTS)).unwrap(), "new");
        assert_eq!(mode(&path.join(ROOTS)), PUBLIC_FILE);
    }

    #[test]
    fn loose_permissions_are_refused_and_named() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca");
        let directory = Directory::open(path.clone()).unwrap();
        directory.write_now(&files("one"), None).unwrap();
        for (loose, mode) in [
            (path.join("current/root.key"), 0o640),
            (path.join("current"), 0o755),
            (path.clone(), 0o750),
        ] {
            let good = std::fs::metadata(&loose).unwrap().permissions();
            std::fs::set_permissions(&loose, Permissions::from_mode(mode)).unwrap();
            let error = directory.load_now().unwrap_err();
            assert!(
                matches!(&error, StoreError::Permissions { mode: found, .. } if *found == mode),
                "{error}"
            );
            std::fs::set_permissions(&loose, good).unwrap();
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        assert!(Directory::open(path).is_err());
    }
}
