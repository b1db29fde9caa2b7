//! A directory of YAML manifests, as `kubectl apply` takes them: for meshes
//! without a cluster.
//!
//! Every file whose name ends in `.yaml`, `.yml` or `.json` is read, those of
//! directories below as well. A file that cannot be read keeps what was read of
//! it before: half a file, as an editor leaves it for a moment, must not take
//! half of the mesh away.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bulkhead_runtime::drain;
use bulkhead_runtime::readiness::Condition;
use serde_json::Value;

use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::object::{Change, Key, Kind, Object, Reading, manifest};

/// How often the files are looked at: a change is known well within the tenth
/// of a second in which proxies are to know it.
const LOOK: Duration = Duration::from_millis(50);
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// How deep directories are followed.
const MAX_DEPTH: usize = 8;

/// A directory that is followed.
pub(crate) struct Directory {
    path: PathBuf,
    reading: Reading,
    files: BTreeMap<PathBuf, File>,
    metrics: Metrics,
}

/// What is known of a file.
struct File {
    stamp: Stamp,
    objects: Vec<(Key, Object)>,
}

/// By what a change of a file is noticed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Directory {
    pub(crate) fn new(path: PathBuf, reading: Reading, metrics: Metrics) -> Self {
        Self {
            path,
            reading,
            files: BTreeMap::new(),
            metrics,
        }
    }

    /// Follows the directory until the drain starts.
    pub(crate) async fn follow(mut self, hub: Hub, synced: Condition, mut drain: drain::Watch) {
        let mut looks = tokio::time::interval(LOOK);
        let mut is_first = true;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = drain.started() => return,
            }
            let looked = tokio::task::spawn_blocking(move || {
                let found = self.look();
                (self, found)
            });
            let Ok((directory, found)) = looked.await else {
                return; // The runtime is ending.
            };
            self = directory;
            match found {
                Ok(has_changed) if has_changed || is_first => {
                    for change in self.changes() {
                        hub.apply(change);
                    }
                    hub.complete();
                    synced.set(true);
                    is_first = false;
                }
                Ok(_) => {}
                Err(error) => {
                    self.metrics.source_error("directory");
                    tracing::error!(
                        error = format!("{error:#}"),
                        "looking at the manifests failed; what was read before stays in force"
                    );
                    // Once a second is often enough to say it.
                    tokio::time::sleep(20 * LOOK).await;
                }
            }
        }
    }

    /// Reads what has changed; says whether anything has.
    fn look(&mut self) -> anyhow::Result<bool> {
        let mut found = BTreeMap::new();
        list(&self.path, 0, &mut found)
            .with_context(|| format!("listing {} failed", self.path.display()))?;
        let before = self.files.len();
        self.files.retain(|path, _| found.contains_key(path));
        let mut has_changed = self.files.len() != before;
        for (path, stamp) in found {
            if self
                .files
                .get(&path)
                .is_some_and(|file| file.stamp == stamp)
            {
                continue;
            }
            has_changed = true;
            let known = self.files.remove(&path);
            let objects = self.read(&path).unwrap_or_else(|error| {
                self.metrics.source_error("directory");
                tracing::error!(
                    file = %path.display(),
                    error = format!("{error:#}"),
                    "a manifest cannot be honoured; what was read of the file before stays in force"
                );
                known.map(|file| file.objects).unwrap_or_default()
            });
            self.files.insert(path, File { stamp, objects });
        }
        Ok(has_changed)
    }

    fn read(&self, path: &Path) -> anyhow::Result<Vec<(Key, Object)>> {
        let text = std::fs::read_to_string(path).context("reading it failed")?;
        let mut objects = Vec::new();
        for value in documents(&text)? {
            for item in items(value) {
                let Some((key, object)) = manifest::read(item, &self.reading)? else {
                    continue;
                };
                if let Some(problem) = object.without_effect(&self.reading) {
                    let kind = object.kind().as_str();
                    tracing::warn!(file = %path.display(), kind, object = %key, "{problem}");
                }
                objects.push((key, object));
            }
        }
        Ok(objects)
    }

    /// All that the files say, by kind. Where an object is in two files, the
    /// later name counts, as with `kubectl apply`.
    fn changes(&self) -> Vec<Change> {
        let mut all: BTreeMap<(Kind, Key), Object> = BTreeMap::new();
        for (key, object) in self.files.values().flat_map(|file| &file.objects) {
            all.insert((object.kind(), key.clone()), object.clone());
        }
        let of_kind = |kind| {
            let objects = all.iter().filter(|((other, _), _)| *other == kind);
            objects
                .map(|((_, key), object)| (key.clone(), object.clone()))
                .collect()
        };
        Kind::ALL
            .map(|kind| Change::Replaced(kind, of_kind(kind)))
            .into()
    }
}

fn list(directory: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Editors and ConfigMap mounts keep what is not meant behind a dot.
        if name.starts_with('.') {
            continue;
        }
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            // It went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            if depth < MAX_DEPTH {
                list(&path, depth + 1, found)?;
            }
        } else if is_manifest(&path) && metadata.len() <= MAX_FILE {
            let stamp = Stamp {
                modified: metadata.modified().ok(),
                length: metadata.len(),
                inode: metadata.ino(),
            };
            found.insert(path, stamp);
        }
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The documents of a stream; JSON is YAML.
fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: 4_000_000,
            max_events: 16_000_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).context("it is not YAML")
}

/// The items of a List, as `kubectl get -o yaml` prints them, or the one object.
fn items(value: Value) -> Vec<Value> {
    let is_list = value
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind == "List" || kind.ends_with("List"));
    match value {
        Value::Object(mut list) if is_list => match list.remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        value => vec![value],
    }
}
