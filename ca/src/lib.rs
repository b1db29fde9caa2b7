//! The certificate authority: who proves to be a workload gets that workload's
//! certificate, and nobody gets anything else.
//!
//! ```text
//!  connection ─ server ─▶ service ─┬─ authenticate ─▶ Caller      (TokenReview, or JWKS)
//!                                  ├─ vet ──────────▶ VettedCsr   (asks for the caller, or nothing)
//!                                  ├─ issuer ───────▶ Issued      (self-signed; upstreams later)
//!                                  └─ audit, metrics
//!  store (directory or Secret) ──▶ issuer: root and intermediate, renewed in time
//! ```
//!
//! In reading order:
//! - [`config`]: the settings.
//! - [`app`]: the wiring.
//! - [`server`]: connections, TLS and HTTP/2, with bounds on everything.
//! - [`service`]: the call, as one paragraph.
//! - [`authenticate`]: a bearer token becomes a [`authenticate::Caller`].
//! - [`vet`]: a caller and a request become a [`vet::VettedCsr`].
//! - [`issuer`]: what signs; the place for another upstream.
//! - [`store`]: where root and intermediate are kept.
//! - [`serving`]: this server's own certificate.
//! - [`audit`], [`metrics`]: what is told about it all.
//!
//! A passed check is a value with private fields and one constructor, so that no
//! path leads past it.

pub mod app;
pub mod audit;
pub mod authenticate;
pub mod config;
pub mod issuer;
pub mod metrics;
pub mod server;
pub mod service;
pub mod serving;
pub mod store;
pub mod vet;
