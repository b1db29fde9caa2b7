//! What the tests of the whole need: the real things around Bulkhead, started
//! for a test and gone after it.
//!
//! - [`api_server`]: a real Kubernetes API server.
//! - [`namespace`]: a namespace in it for one test, with its pods,
//!   ServiceAccounts and tokens.

pub mod api_server;
mod config;
pub mod namespace;
