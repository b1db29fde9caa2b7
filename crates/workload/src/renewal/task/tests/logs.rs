//! What is logged on this thread while a test runs.

use std::io;
use std::sync::{Arc, Mutex, Once};

use serde_json::Value;
use tracing::subscriber::DefaultGuard;

/// Lets somebody listen to the log from the first line on. Where nobody does, a
/// line that is reached for the first time just as a test begins to capture may be
/// remembered as one that nobody wants, and that test would never see it.
pub(super) fn always_listen() {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        let deaf = tracing_subscriber::registry();
        tracing::subscriber::set_global_default(deaf).unwrap();
    });
}

pub(super) struct Logs {
    written: Arc<Mutex<Vec<u8>>>,
    _guard: DefaultGuard,
}

impl Logs {
    pub(super) fn capture() -> Self {
        always_listen();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let writer = Arc::clone(&written);
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || Writer(Arc::clone(&writer)))
            .finish();
        Self {
            written,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    /// The lines with this outcome.
    pub(super) fn of(&self, outcome: &str) -> Vec<Value> {
        let written = self.written.lock().unwrap();
        let text = String::from_utf8(written.clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &Value| line["outcome"] == outcome)
            .collect()
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
