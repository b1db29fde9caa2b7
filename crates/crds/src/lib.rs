//! The Kubernetes resources that Bulkhead defines or reads, as types.
//!
//! ```text
//!  crates/crds ──crdgen──▶ charts/bulkhead/files/crds/*.yaml ──helm──▶ API server
//!      └── the same types, read and written by control, the webhook and the command
//! ```
//!
//! - [`emergency`]: the kill switch's objects.
//! - [`istio`]: what people have written for Istio.
//! - [`owner`]: who owns what our programs make.
//! - [`generate`]: the definitions as the chart ships them; `crdgen` prints them.

pub mod emergency;
pub mod generate;
pub mod istio;
pub mod owner;
