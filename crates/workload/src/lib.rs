//! A workload's own identity: getting its certificate from the CA, renewing it
//! before it is due, taking over new trust roots in between, and handing the
//! latest to connections. Every program that is a workload uses it: the proxy for
//! the pod that it stands beside, control for itself.
//!
//! ```text
//!  new key ─▶ CSR ─▶ CA ─▶ verified as a peer would ─▶ published ─▶ wait ─▶ again
//!                                  ▲                       │
//!   bundle file ─▶ later? ─────────┘   the old one serves ◀┘
//! ```
//!
//! - [`renewal`]: the task that keeps certificate and trust bundle fresh.
//! - `schedule`: when the next is due; `trust`: which bundle is later.
//! - `authority`: the CA, as a caller sees it; `bundle_file`: the bundle between
//!   two calls; [`settings`]: where both are.
//! - [`tokens`]: JWT-SVIDs, from the same CA.
//! - [`credentials`]: the latest certificate, as connections use it.
//! - [`state`], [`metrics`], `failure`: how that goes, and why not.

mod authority;
mod bundle_file;
pub mod credentials;
mod failure;
pub mod metrics;
pub mod renewal;
mod schedule;
pub mod settings;
pub mod state;
pub mod tokens;
mod trust;

pub use renewal::{Renewal, RenewalRequests};
pub use settings::Settings;
pub use trust::Source;
