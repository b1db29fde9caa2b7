//! What pods send, as it is on the bridge between them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::SOON;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/cluster");

/// A capture that is under way.
pub struct Capture {
    process: Child,
    file: PathBuf,
    _directory: TempDir,
}

impl Capture {
    /// Starts one; it sees every packet from now on.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().expect("there is a place for temporary files");
        let file = directory.path().join("pods.pcap");
        let mut process = Command::new(SCRIPT)
            .arg("capture")
            .arg(&file)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("scripts/cluster can be run");
        let stderr = process.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(stderr).lines();
        let listening = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("listening on") {
                    return true;
                }
            }
            false
        };
        let listening = timeout(SOON, listening).await;
        assert_eq!(listening, Ok(true), "the capture did not start");
        Self {
            process,
            file,
            _directory: directory,
        }
    }

    /// Ends it, and gives what was seen.
    ///
    /// # Panics
    /// Where it does not end by itself.
    pub async fn stop(mut self) -> Packets {
        let id = self.process.id().expect("it runs");
        let told = Command::new("kill").arg(id.to_string()).status().await;
        assert!(told.expect("kill can be run").success());
        let ended = timeout(SOON, self.process.wait()).await;
        ended.expect("it ends").expect("it was ours");
        Packets::read(&self.file)
    }
}

/// Packets, one after the other.
pub struct Packets(Vec<u8>);

impl Packets {
    fn read(file: &Path) -> Self {
        Self(std::fs::read(file).expect("the capture wrote its file"))
    }

    /// Whether these bytes went over the wire, in one packet.
    pub fn contain(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|window| window == bytes)
    }
}
