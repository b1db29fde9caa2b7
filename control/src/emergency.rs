//! The kill switch's second level: sidecars stand aside, servers before clients.
//!
//! ```text
//!  Bypass objects ──▶ switches ──stages──▶ what each pod is told (hub)
//!        ▲               │
//!        └── status ◀────┘        time_limits: what was applied without a Job
//! ```
//!
//! - [`switches`]: which bypasses there are, and what each pod is told. Pure.
//! - [`stage`]: how one of them gets from nothing to forwarding, and back. Pure.
//! - `keeper`: the task that brings them forward, and says how far they are.
//! - `time_limits`: the objects whose time nobody keeps.

pub(crate) mod keeper;
pub mod stage;
pub mod switches;
pub(crate) mod time_limits;
