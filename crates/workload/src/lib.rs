//! A workload's own identity: getting its certificate from the CA, renewing it
//! before it is due, and handing the latest to connections. Every program that
//! is a workload uses it: the proxy for the pod that it stands beside, control
//! for itself.
//!
//! ```text
//!  new key ─▶ CSR ─▶ CA ─▶ verified as a peer would ─▶ published ─▶ wait ─▶ again
//! ```
//!
//! - [`renewal`]: the task that keeps the certificate fresh.
//! - `authority`: the CA, as a caller sees it.
//! - [`credentials`]: the latest certificate, as connections use it.
//! - [`metrics`]: how that goes.

mod authority;
pub mod credentials;
pub mod metrics;
pub mod renewal;

pub use renewal::{Renewal, RenewalRequests, Settings};
