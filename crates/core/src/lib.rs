//! The vocabulary that every part of Bulkhead agrees on: pure values and pure
//! decisions. There is no I/O here, nothing async and nothing of Kubernetes; a
//! script in CI keeps it so.
//!
//! ```text
//!  annotations ──▶ SidecarConfig ──env──▶ proxy        identity: who a workload is
//!  (annotation)    (sidecar, settings)                 policy:   who may connect, and why not
//! ```
//!
//! In reading order:
//! - [`identity`]: trust domains and SPIFFE IDs, valid by construction.
//! - [`annotation`]: the table of every annotation that people may write.
//! - [`pod_settings`], [`resources`]: what those annotations can change.
//! - [`sidecar`]: what the webhook tells the proxy, as one struct.
//! - [`redirect`]: what it tells the init container, likewise.
//! - [`settings`]: how every program reads its environment, all errors at once.
//! - [`policy`]: mTLS modes and the inbound decision.
//! - [`protocol`]: what is spoken inside a connection, and how we know.
//! - [`discovery`]: what control tells a proxy; [`held`]: what a proxy tells
//!   control of the trust that it holds.
//! - [`bypass`]: what takes a proxy out of the path without control.
//! - [`alpn`]: the names that mark mesh traffic on the wire.
//! - [`reason`]: the stable code of each refusal that the proxy makes.
//! - [`port_set`], [`cidr`], [`quantity`], [`duration`]: small values as people
//!   write them.
//! - [`ports`]: the table of every port that Bulkhead binds.

pub mod alpn;
pub mod annotation;
pub mod bypass;
pub mod cidr;
pub mod discovery;
pub mod duration;
pub mod held;
pub mod identity;
pub mod pod_settings;
pub mod policy;
pub mod port_set;
pub mod ports;
pub mod protocol;
pub mod quantity;
pub mod reason;
pub mod redirect;
pub mod resources;
pub mod settings;
pub mod sidecar;
