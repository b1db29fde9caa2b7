//! A mesh in one process: what its users rely on, and how it fails them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod age;
mod broken;
mod bypass;
mod bytes;
mod control;
mod controlled;
mod destinations;
mod hostile;
mod http;
mod identity;
mod modes;
mod pair;
mod peers;
mod probes;
mod reasons;
mod rollouts;
mod rotation;
mod seen;
mod shutdown;
mod streams;
mod tunnels;
