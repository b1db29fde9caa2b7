//! The sidecar: takes a workload's connections, proves who it is, learns who the
//! other side is, and passes on what policy permits.
//!
//! ```text
//!             ┌────────────── a worker: one thread, nothing shared ──────────────┐
//!  client ──▶ │ detect ─▶ inbound ─▶ Permit ─┬─ http1 ─┐                         │
//!             │                              ├─ http2 ─┼─▶ upstream (App)  ──────┼─▶ application
//!             │                              └─ copy ──┘                         │
//!  app ─────▶ │ outbound ─▶ detect ──────────┬─ http1 ─┐                         │
//!             │     │                        ├─ http2 ─┼─▶ upstream (Peer) ──────┼─▶ peer's proxy,
//!             │     ▼                        └─ copy ──┘                         │   or whatever is there
//!             └── directory ───▲──────▲──────────▲───────────────────────────────┘
//!                     ▲        │      │ policy   │ credentials (published, never locked)
//!  control ─▶ discovery ───────┼──────┘      identity: key ─▶ CSR ─▶ CA ─▶ verified ─▶ published
//!                     └▶ bypass ◀─ file, admin
//! ```
//!
//! In reading order:
//! - [`app`]: wiring; [`config`]: settings; `worker`: threads and accepting.
//! - `inbound`, `outbound`: one connection, top to bottom; `open_connections`:
//!   ending those that a new policy does not permit.
//! - `discovery`: what control says of destinations and of this pod.
//! - `bypass`: standing aside, by whose word and until when.
//! - [`detect`]: what a connection is, by its first bytes.
//! - [`http1`], `http2`, `copy`: forwarding.
//! - `upstream`: connections to the application and to peers.
//! - `buffer`: memory, held only while it holds bytes; `budget`: how much there is,
//!   `accounts`: which connection holds how much.
//! - [`credentials`]: the certificate; `bulkhead_workload` gets it from the CA.
//! - [`workload_api`]: the same for the application itself, where it is asked for.
//! - `metrics`, `failure`: what is counted, and what is said; [`access_log`]: a line for
//!   each request; `trace`: where requests belong to.
//! - `fuzzing`: the HTTP/2 front in memory, for `fuzz/` alone.
//! - `status`, `probe`: the status and admin ports; [`wait`]: holding others back.

pub mod access_log;
mod accounts;
pub mod app;
mod budget;
mod buffer;
mod bypass;
pub mod config;
mod copy;
pub mod detect;
mod discovery;
mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod http1;
mod http2;
mod inbound;
mod metrics;
mod open_connections;
mod outbound;
mod probe;
mod socket;
mod status;
mod trace;
mod upstream;
pub mod wait;
mod worker;
pub mod workload_api;

pub use bulkhead_workload::{RenewalRequests, credentials};
