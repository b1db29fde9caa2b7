//! Keys in a file, which is read again when it changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_runtime::drain;

use super::keys::{JwksError, KnownKeys};

/// How often the file is looked at for changes.
const REREAD: Duration = Duration::from_secs(2);

/// The longest file that is read, in bytes.
const MAX_FILE: usize = 1024 * 1024;

/// A file with the keys of a token issuer.
pub struct KeyFile {
    path: PathBuf,
    keys: Arc<KnownKeys>,
}

impl KeyFile {
    /// Reads the file; without usable keys there is nothing to start for.
    pub async fn open(path: PathBuf) -> Result<Self, JwksError> {
        let keys = Arc::new(KnownKeys::here(read(&path).await?)?);
        Ok(Self { path, keys })
    }

    pub fn keys(&self) -> Arc<KnownKeys> {
        Arc::clone(&self.keys)
    }

    /// Keeps the keys as the file has them, until the drain starts. A file that
    /// cannot be used changes nothing: the keys before it stay good.
    pub async fn follow(self, mut drain: drain::Watch) {
        let mut ticks = tokio::time::interval(REREAD);
        let mut broken: Option<Vec<u8>> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.started() => return,
            }
            let replaced = match read(&self.path).await {
                Ok(text) if broken.as_ref() == Some(&text) => continue,
                Ok(text) => {
                    let replaced = self.keys.replace(text.clone());
                    replaced.inspect_err(|_| broken = Some(text))
                }
                Err(error) => Err(error),
            };
            match replaced {
                Ok(false) => {}
                Ok(true) => tracing::info!(
                    path = %self.path.display(),
                    "the token issuer's keys changed and were read again"
                ),
                Err(error) => tracing::warn!(
                    %error,
                    "the token issuer's keys could not be read again; the earlier ones stay in use"
                ),
            }
        }
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, JwksError> {
    let problem = |error| JwksError::Read {
        path: path.to_owned(),
        error,
    };
    let text = tokio::fs::read(path).await.map_err(problem)?;
    if text.len() > MAX_FILE {
        return Err(JwksError::TooLong(MAX_FILE));
    }
    Ok(text)
}
