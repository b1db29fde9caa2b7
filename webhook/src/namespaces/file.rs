//! Namespaces from a file, where there is no API server to ask.

use std::path::{Path, PathBuf};

use bulkhead_inject::Namespace;
use k8s_openapi::api::core::v1 as core_v1;
use serde::Deserialize;

use super::namespace;

/// The list as kubectl writes it, which is of no kind in particular.
#[derive(Deserialize)]
struct List {
    items: Vec<core_v1::Namespace>,
}

/// Reads the namespaces that `kubectl get namespaces -o json` wrote.
pub fn read(path: &Path) -> Result<Vec<Namespace>, FileError> {
    let text = std::fs::read(path).map_err(|error| FileError::Read {
        path: path.to_owned(),
        error,
    })?;
    let list: List = serde_json::from_slice(&text).map_err(|error| FileError::Malformed {
        path: path.to_owned(),
        error,
    })?;
    let namespaces = list.items.into_iter();
    Ok(namespaces.map(|item| namespace(item.metadata)).collect())
}

/// Why the namespaces of a file are not known.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("reading the namespaces from {path} failed: {error}")]
    Read {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    #[error(
        "{path} is not a list of namespaces: {error}; `kubectl get namespaces -o json` writes one"
    )]
    Malformed {
        path: PathBuf,
        #[source]
        error: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Namespace>, FileError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn what_kubectl_wrote_is_read() {
        let namespaces = read_text(
            r#"{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
                {"apiVersion": "v1", "kind": "Namespace", "status": {"phase": "Active"},
                 "spec": {"finalizers": ["kubernetes"]},
                 "metadata": {"name": "shop", "labels": {"bulkhead.io/inject": "enabled"}}}]}"#,
        )
        .unwrap();
        assert_eq!(namespaces.len(), 1);
        assert_eq!(namespaces[0].name, "shop");
        assert_eq!(namespaces[0].labels["bulkhead.io/inject"], "enabled");
    }

    #[test]
    fn anything_else_is_refused_with_the_file_and_what_writes_one() {
        for text in [
            "",
            "{}",
            r#"{"kind": "List", "items": [{"kind": "Pod", "apiVersion": "v1", "metadata": {}}]}"#,
        ] {
            let error = read_text(text).unwrap_err().to_string();
            assert!(error.contains("kubectl get namespaces"), "{error}");
        }
    }
}
