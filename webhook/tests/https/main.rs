//! The webhook as its callers see it: real HTTPS on loopback, with namespaces
//! that are given instead of watched.

#![expect(
    clippy::unwrap_used,
    reason = "this is a test, and a failed unwrap says where"
)]

mod certificates;
mod client;
mod hostile;
mod injecting;
mod lifecycle;
mod pods;
