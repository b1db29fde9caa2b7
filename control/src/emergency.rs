//! The kill switch's second level: sidecars stand aside, servers before clients.
//!
//! - [`switches`]: which bypasses there are, and what each pod is told. Pure.
//! - [`stage`]: how one of them gets from nothing to forwarding, and back. Pure.

pub mod stage;
pub mod switches;
