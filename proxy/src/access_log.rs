//! A line for each request or opaque connection, while somebody wants that.
//!
//! ```text
//!  workers ─▶ lines that wait, bounded ─▶ a thread that writes them ─▶ standard output
//!                    └─ beyond the bound: dropped and counted
//! ```
//!
//! Whoever reads the lines may be slow or stop; nobody's request waits for that. Off,
//! it costs a look at a flag.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use bulkhead_core::bypass::rfc3339;
use bulkhead_runtime::clock::Clock;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

/// The most bytes of lines that wait to be written: some hundred lines.
const MAX_WAITING: usize = 256 * 1024;
/// The most bytes of a path, or of a method, that are logged; what is longer is cut.
const MAX_TEXT: usize = 1024;

/// Where the lines go.
pub struct Output(Box<dyn Write + Send>);

impl Output {
    pub fn new(writer: impl Write + Send + 'static) -> Self {
        Self(Box::new(writer))
    }
}

/// Standard output; the log proper is on standard error.
impl Default for Output {
    fn default() -> Self {
        Self::new(io::stdout())
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

/// One line. Absent fields are those that its protocol does not have.
#[derive(Serialize)]
pub(crate) struct Line<'a> {
    pub(crate) direction: &'static str,
    /// `http`, `grpc` or `tcp`.
    pub(crate) protocol: &'static str,
    /// SPIFFE IDs, or `unknown` where mutual TLS proved none.
    pub(crate) source: &'a str,
    pub(crate) destination: &'a str,
    pub(crate) service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<&'a str>,
    /// 0 where a response broke off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grpc_status: Option<u8>,
    /// Why the proxy refused it, or `response_cut`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    pub(crate) duration_ms: f64,
    /// Of bodies, or of all that passed where nobody looks at the bytes.
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
}

#[derive(Serialize)]
struct Dated<'a> {
    /// Of its end.
    time: String,
    #[serde(flatten)]
    line: &'a Line<'a>,
}

/// The access log of a proxy. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct AccessLog(Arc<Shared>);

struct Shared {
    on: AtomicBool,
    clock: Clock,
    dropped: Counter,
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    has_ended: bool,
    /// Until there is a thread that writes.
    output: Option<Output>,
    /// Ends with that thread.
    writing: Option<mpsc::Receiver<()>>,
}

impl AccessLog {
    pub(crate) fn new(clock: Clock, output: Output) -> Self {
        Self(Arc::new(Shared {
            on: AtomicBool::new(false),
            clock,
            dropped: Counter::default(),
            waiting: Mutex::new(Waiting {
                output: Some(output),
                ..Waiting::default()
            }),
            wake: Condvar::new(),
        }))
    }

    /// Counts the lines that were dropped.
    pub(crate) fn dropped(&self) -> &Counter {
        &self.0.dropped
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// # Errors
    /// The kernel refuses the thread that writes the lines.
    pub(crate) fn switch(&self, on: bool) -> io::Result<()> {
        if on {
            self.start()?;
        }
        self.0.on.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn start(&self) -> io::Result<()> {
        let mut waiting = self.0.lock();
        let Some(output) = waiting.output.take() else {
            return Ok(());
        };
        let shared = Arc::clone(&self.0);
        let (writes, writing) = mpsc::channel();
        let writer = std::thread::Builder::new().name("access-log".to_owned());
        writer.spawn(move || {
            shared.write(output);
            drop(writes);
        })?;
        waiting.writing = Some(writing);
        Ok(())
    }

    /// Adds a line, where there is room for it.
    pub(crate) fn add(&self, line: &Line<'_>) {
        let time = rfc3339(self.0.clock.now()).unwrap_or_default();
        let mut waiting = self.0.lock();
        let before = waiting.lines.len();
        let whole = if before < MAX_WAITING {
            serde_json::to_writer(&mut waiting.lines, &Dated { time, line }).is_ok()
        } else {
            false
        };
        if !whole || waiting.lines.len() >= MAX_WAITING {
            waiting.lines.truncate(before);
            self.0.dropped.inc();
            return;
        }
        waiting.lines.push(b'\n');
        if before == 0 {
            self.0.wake.notify_one();
        }
    }

    /// Writes what is waiting, for a while, and ends.
    pub(crate) fn end(&self, within: Duration) {
        self.0.on.store(false, Ordering::Relaxed);
        let writing = {
            let mut waiting = self.0.lock();
            waiting.has_ended = true;
            waiting.writing.take()
        };
        self.0.wake.notify_one();
        if let Some(writing) = writing {
            // Whoever reads may have stopped; then the last lines are lost with it.
            let _ = writing.recv_timeout(within);
        }
    }
}

/// Ends the access log with the proxy.
pub(crate) struct Ending(pub(crate) AccessLog);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(Duration::ZERO);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes lines until the end.
    fn write(&self, Output(mut output): Output) {
        let mut batch = Vec::new();
        loop {
            let mut waiting = self.lock();
            while waiting.lines.is_empty() {
                if waiting.has_ended {
                    return;
                }
                waiting = self
                    .wake
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut waiting.lines, &mut batch);
            drop(waiting);
            if let Err(error) = output.write_all(&batch).and_then(|()| output.flush()) {
                let lost = batch.iter().filter(|byte| **byte == b'\n').count();
                self.dropped.inc_by(lost as u64);
                tracing::debug!(%error, "lines of the access log could not be written");
            }
            batch.clear();
        }
    }
}

/// What a client said, as it is logged.
pub(crate) fn text(said: &[u8]) -> String {
    let end = said.len().min(MAX_TEXT);
    String::from_utf8_lossy(&said[..end]).into_owned()
}

#[cfg(any(test, fuzzing))]
impl AccessLog {
    /// One that nobody switches on.
    pub(crate) fn silent() -> Self {
        Self::new(Clock::default(), Output::new(io::sink()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    /// Waits before each write until somebody lets it.
    struct Reluctant {
        may: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.may.recv().map_err(io::Error::other)?;
            self.written
                .send(bytes.to_vec())
                .map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line() -> Line<'static> {
        Line {
            direction: "inbound",
            protocol: "http",
            source: "spiffe://cluster.local/ns/web/sa/front",
            destination: "spiffe://cluster.local/ns/shop/sa/cart",
            service: "cart",
            method: Some("GET"),
            path: Some("/a\"\n{\"forged\":1}"),
            status: Some(200),
            grpc_status: None,
            reason: None,
            duration_ms: 1.5,
            bytes_received: 0,
            bytes_sent: 12,
        }
    }

    #[test]
    fn a_line_is_one_object_whatever_a_path_has_in_it() {
        let (let_it, may) = mpsc::channel();
        let (written, writes) = mpsc::channel();
        let clock = Clock::stopped_at(SystemTime::UNIX_EPOCH);
        let log = AccessLog::new(clock, Output::new(Reluctant { may, written }));
        log.switch(true).unwrap();
        log.add(&line());
        let_it.send(()).unwrap();
        let text = String::from_utf8(writes.recv().unwrap()).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["time"], "1970-01-01T00:00:00Z");
        assert_eq!(value["path"], "/a\"\n{\"forged\":1}");
        assert_eq!(value["status"], 200);
        assert_eq!(value.get("grpc_status"), None);
    }

    #[test]
    fn nobody_waits_for_a_reader_that_has_stopped_and_what_it_misses_is_counted() {
        let (let_it, may) = mpsc::channel();
        let (written, writes) = mpsc::channel();
        let clock = Clock::stopped_at(SystemTime::UNIX_EPOCH);
        let log = AccessLog::new(clock, Output::new(Reluctant { may, written }));
        log.switch(true).unwrap();
        const LINES: usize = 10_000;
        for _ in 0..LINES {
            log.add(&line());
        }
        assert!(log.0.lock().lines.len() < MAX_WAITING);
        let dropped = usize::try_from(log.dropped().get()).unwrap();
        assert!(dropped > 0);
        for _ in 0..LINES {
            let_it.send(()).unwrap();
        }
        log.end(Duration::from_secs(60));
        drop(log);
        let whole: usize = writes
            .iter()
            .map(|bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
            .sum();
        assert_eq!(whole + dropped, LINES);
    }
}
