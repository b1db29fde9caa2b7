//! Where control learns of objects.
//!
//! ```text
//!  cluster:    a watch of each kind ─────┐
//!                                        ├──▶ Change ──▶ Hub
//!  directory:  manifests, looked at ─────┘
//!              twenty times a second
//! ```

pub(crate) mod cluster;
pub(crate) mod directory;
