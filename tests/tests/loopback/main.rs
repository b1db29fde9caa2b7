//! A mesh in one process: what its users rely on, and how it fails them.

mod modes;
mod pair;
