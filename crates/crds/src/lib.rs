//! The Kubernetes resources that Bulkhead defines or reads, as types.
//!
//! ```text
//!  crates/crds ──crdgen──▶ charts/bulkhead/files/crds/*.yaml ──helm──▶ API server
//!      └── the same types, read and written by control, the webhook and the command
//! ```
//!
//! - [`certificate_authority`]: the CA's own object: its state, and what is asked of it.
//! - [`emergency`]: the kill switch's objects.
//! - [`istio`]: what people have written for Istio.
//! - [`client`]: how our programs reach the API server.
//! - [`owner`]: who owns what our programs make; [`lease`]: which replica does what
//!   is to be done once.
//! - [`generate`]: the definitions as the chart ships them; `crdgen` prints them.

pub mod certificate_authority;
pub mod client;
pub mod emergency;
pub mod generate;
pub mod istio;
pub mod lease;
pub mod owner;
