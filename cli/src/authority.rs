//! The certificate authority as people meet it: what `bulkhead ca` and
//! `bulkhead secret` are made of. Everything goes over the API server.
//!
//! ```text
//!  CertificateAuthority ──▶ object ──▶ rotation (decides) ──▶ progress (shows)
//!  CA pods ── admin port ──▶ replicas ──▶ report ──▶ text
//!          └─ log ──▶ audit_log
//!  a workload's sidecar ── admin port ──▶ holding
//! ```
//!
//! - [`object`]: reads, follows and changes the CertificateAuthority.
//! - [`rotation`]: what a command does about a rotation, and how far one is.
//! - `progress`: that, on a terminal and elsewhere.
//! - [`replicas`]: the CA's pods, and what each says of itself.
//! - [`report`]: all of `bulkhead ca status`, for programs and for people.
//! - [`audit_log`]: what was issued to whom.
//! - [`holding`]: what a workload holds.

pub mod audit_log;
pub mod holding;
pub mod object;
pub(crate) mod progress;
pub mod replicas;
pub mod report;
pub mod rotation;
