//! The file that the kubelet refreshes, when a ConfigMap of that name comes,
//! changes or goes.

use std::io::{self, Read as _};

use bulkhead_core::bypass::{BypassOrder, MAX_ORDER};
use bulkhead_core::discovery::Bypass;

/// An order in a file, which most of the time is not there.
pub(super) struct OrderFile {
    path: String,
    pod: String,
    /// What was read last; nothing where there was no file.
    last: Option<Vec<u8>>,
}

impl OrderFile {
    pub(super) fn new(path: String, pod: String) -> Self {
        Self {
            path,
            pod,
            last: None,
        }
    }

    /// What the file asks for, where that is not what it asked for before. By
    /// content: the kubelet swaps a link, and times say little.
    pub(super) async fn changed(&mut self) -> Option<Bypass> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let now = match read {
            Ok(Ok(now)) => now,
            Ok(Err(error)) => {
                tracing::debug!(%error, path = self.path, "reading the bypass file failed");
                return None;
            }
            Err(_) => return None,
        };
        if now == self.last {
            return None;
        }
        let asked = match &now {
            None => Some(Bypass::default()),
            Some(bytes) => match BypassOrder::from_json(bytes) {
                Ok(order) => Some(order.for_pod(&self.pod)),
                Err(error) => {
                    tracing::warn!(%error, path = self.path, "the bypass file cannot be followed; what it said before holds");
                    None
                }
            },
        };
        self.last = now;
        asked
    }
}

fn read(path: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_ORDER as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_ORDER {
        return Err(io::Error::other(format!(
            "it has more than {MAX_ORDER} bytes"
        )));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::discovery::BypassPhase;

    #[tokio::test]
    async fn a_file_that_comes_changes_and_goes_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bypass.json");
        let mut file = OrderFile::new(path.display().to_string(), "cart-0".into());
        let phase = |asked: Option<Bypass>| asked.map(|asked| asked.phase);

        assert_eq!(phase(file.changed().await), None, "there is no file");
        std::fs::write(&path, r#"{"phase": "accept"}"#).unwrap();
        assert_eq!(phase(file.changed().await), Some(BypassPhase::Accept));
        assert_eq!(phase(file.changed().await), None, "it is the same");
        std::fs::write(&path, r#"{"phase": "forward"}"#).unwrap();
        assert_eq!(phase(file.changed().await), Some(BypassPhase::Forward));
        std::fs::write(&path, "half an ord").unwrap();
        assert_eq!(phase(file.changed().await), None, "nobody knows what it is");
        std::fs::write(&path, r#"{"phase": "forward", "pods": ["cart-1"]}"#).unwrap();
        assert_eq!(phase(file.changed().await), Some(BypassPhase::Off));
        std::fs::write(&path, r#"{"phase": "forward"}"#).unwrap();
        assert_eq!(phase(file.changed().await), Some(BypassPhase::Forward));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(phase(file.changed().await), Some(BypassPhase::Off));
    }
}
