//! What proxies hold of the mesh's trust, for whoever rotates a root.
//!
//! ```text
//!  streams ─▶ hub ─┐
//!  own certificate ┴▶ report ─▶ ConfigMap bulkhead-proxies-<replica>   (each replica)
//!                                   │ all replicas
//!  pods ─▶ index ──────────────▶ sum ─▶ CertificateAuthority.status.proxies  (lease)
//! ```
//!
//! - [`report`]: what one replica knows of the proxies that are connected to it.
//! - [`sum`]: all reports against all pods.
//! - [`keeper`]: writes both.
//!
//! Control's replicas are among the holders: every proxy verifies their
//! certificates as it does another proxy's.
//!
//! What a proxy says is a claim: it decides how fast a rotation goes, and no
//! more.

pub(crate) mod keeper;
pub(crate) mod report;
pub(crate) mod sum;
