//! The sidecar: takes a workload's connections, proves who it is, learns who the
//! other side is, and passes on what policy permits.
//!
//! ```text
//!             ┌────────────── a worker: one thread, nothing shared ──────────────┐
//!  client ──▶ │ detect ─▶ inbound ─▶ Permit ─┬─ http1 ─┐                         │
//!             │                              ├─ http2 ─┼─▶ upstream (App)  ──────┼─▶ application
//!             │                              └─ copy ──┘                         │
//!  app ─────▶ │ detect ─▶ outbound ──────────┬─ http1 ─┐                         │
//!             │                              ├─ http2 ─┼─▶ upstream (Mesh) ──────┼─▶ peer's proxy
//!             │                              └─ copy ──┘                         │
//!             └───────────────▲──────────────────────────────────────────────────┘
//!                             │ credentials (published, never locked)
//!             renewal: key ─▶ CSR ─▶ CA ─▶ verified ─▶ published ─▶ wait
//! ```
//!
//! In reading order:
//! - [`app`]: wiring; [`config`]: settings; `worker`: threads and accepting.
//! - `inbound`, `outbound`: one connection, top to bottom.
//! - [`detect`]: what a connection is, by its first bytes.
//! - [`http1`], `http2`, `copy`: forwarding.
//! - `upstream`: connections to the application and to peers.
//! - `buffer`: memory, held only while it holds bytes.
//! - [`credentials`]: the certificate; `bulkhead_workload` gets it from the CA.
//! - `metrics`, `failure`: what is counted, and what is said.
//! - `status`, `probe`: the status and admin ports; [`wait`]: holding others back.

pub mod app;
mod buffer;
pub mod config;
mod copy;
pub mod detect;
mod failure;
pub mod http1;
mod http2;
mod inbound;
mod metrics;
mod outbound;
mod probe;
mod socket;
mod status;
mod upstream;
pub mod wait;
mod worker;

pub use bulkhead_workload::{RenewalRequests, credentials};
