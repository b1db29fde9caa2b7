//! A real Envoy, set up as Istio's control plane sets up its sidecars, as the
//! peer of our proxy, both ways and under one root.
//!
//! - [`certificate`]: Envoy's certificate, from our CA.
//! - [`apps`]: what is behind the proxies, and its clients.
//! - [`client`]: Envoy calls a workload of ours.
//! - [`server`]: a workload of ours calls Envoy.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod apps;
mod certificate;
mod client;
mod server;
