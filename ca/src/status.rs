//! The CA in the API server: the one CertificateAuthority object, which people
//! read and steer it by.
//!
//! ```text
//!              ┌─ spec ───────────▶ orders  ─▶ rotation
//!  API server ─┼─ status.proxies ─▶ holders ─▶ rotation
//!    ▲         └─ status ─┐
//!    └── writer ◀─────────┴── issuer's status       (the replica with the Lease)
//!          └─▶ Events: what is new between the two
//! ```
//!
//! - [`follower`]: makes the object and follows it.
//! - [`orders`], [`holders`]: what is read of it.
//! - [`object`]: what is written into it. Pure.
//! - [`expiry`]: which authorities end too soon. Pure.
//! - [`events`]: what has happened between two statuses. Pure.
//! - [`writer`]: writes both.

mod events;
mod expiry;
mod follower;
mod holders;
mod object;
mod orders;
mod writer;

pub use follower::{Follower, Latest};
pub use holders::ReportedHolders;
pub use orders::SpecOrders;
pub use writer::Writer;

/// The owner of the fields that we apply.
const FIELD_MANAGER: &str = "bulkhead-ca";
