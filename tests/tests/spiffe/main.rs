//! Clients that the project has no part in: of the Workload API that a real
//! sidecar serves, of an application behind one, and of a real CA.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod application;
mod csr_api;
mod mutual_tls;
mod rotation;
mod workload_api;
