//! What every Bulkhead process needs, and no more. Nothing here knows of
//! certificates, pods or policy.
//!
//! ```text
//!  main: log::init ─▶ config ─▶ app ─┬─ monitoring (/metrics /ready /live)
//!                                    └─ work, holding a drain::Watch
//!        shutdown::signal ─▶ drain::Trigger::drain(deadline) ─▶ exit
//! ```
//!
//! In reading order:
//! - [`log`]: JSON or text lines, with a level that can be changed while running.
//! - [`shutdown`]: SIGTERM and SIGINT.
//! - [`tasks`]: the work that must not end before.
//! - [`drain`]: tell everyone to finish, then wait for them, but not for ever.
//! - [`readiness`]: named conditions that must hold before work is sent here.
//! - [`monitoring`]: the metrics registry and the server that shows it.
//! - [`http_server`]: the small HTTP/1.1 server under `monitoring` and the
//!   proxy's status and admin ports.
//! - [`backoff`]: how long to wait before the next try.
//! - [`clock`]: the wall clock, which tests can set.
//! - [`custody`]: no core dumps of a process that holds a key.
//! - [`descriptors`]: as many connections as the kernel lets us have.

pub mod backoff;
pub mod clock;
pub mod custody;
pub mod descriptors;
pub mod drain;
pub mod http_server;
pub mod log;
pub mod monitoring;
pub mod readiness;
pub mod shutdown;
pub mod tasks;
